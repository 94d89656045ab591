"""Doubts about a data source, from some of its pairs: views that cannot be a rectified pair, wrongly scaled ground
truth. They are hints, not proofs."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from statistics import median

import numpy as np

from stereo_core.data import rectification
from stereo_core.data.augmentation import Pair
from stereo_core.values import counted

FITS = 0.85, 1.18  # ground truth / disparity of matched patches; the median of a right source is 0.95 to 1.05
CLEAR = 2.0  # px; the ratio of smaller disparities says little
APART = 1.0  # px by which the ground truth of one view fits a match better than that of the other
FEWEST_APART = 10  # such matches needed for a warning
MORE = 3  # times as many matches that fit the right view as fit the left one; real pairs have 5 to 25 times
LEAST = 1.0  # px; the largest disparity of a source is larger, unless its ground truth has another unit


@dataclass
class Look:
    """What a look at one pair has found.

    Attributes:
        where: names the pair in messages.
        size: height and width, px.
        views: kind of doubt -> sentence, see `rectification.findings`.
        largest: disparity, px; 0 without ground truth.
        ratios: ground truth / disparity of each matched patch.
        fits: number of matches that the ground truth of the left and of the right view's pixel fits better.
    """

    where: str
    size: tuple[int, int]
    views: dict[str, str]
    largest: float
    ratios: list[float] = field(default_factory=list)
    fits: list[int] = field(default_factory=lambda: [0, 0])


def look(where: str, pair: Pair) -> Look:
    """Look at a pair as it is in its files, not augmented. `where` names it in messages."""
    found = rectification.of_images(pair.left, pair.right)
    matched = None if found else rectification.matches(pair.left, pair.right)
    views = rectification.of_matches(matched) if matched else found
    seen = Look(where, pair.disparity.shape, views, float(pair.disparity.max()))
    if matched:
        _compare(seen, matched, pair.disparity)
    return seen


def _compare(seen: Look, matched: rectification.Matches, disparity_HW: np.ndarray) -> None:
    """Note the ratios, and which view's pixel the ground truth belongs to: a match is at `column` of the left image
    and at `column - move` of the right one."""
    half = round(rectification.HALF / 3 / matched.scale)  # of a patch's middle
    for row, column, move in zip(*matched.disparities(), strict=True):
        if move <= CLEAR:
            continue
        left, right = (_nearest(disparity_HW, row, at, half, move) for at in (column, round(column - move)))
        if left is not None:
            seen.ratios.append(left / move)
        if left is not None and right is not None and abs(abs(left - move) - abs(right - move)) > APART:
            seen.fits[int(abs(right - move) < abs(left - move))] += 1


@dataclass(frozen=True)
class Doubts:
    """What is doubtful about a data source, from looks at some of its pairs."""

    looks: list[Look]

    def of_views(self) -> dict[str, str]:
        """A sentence for each kind of doubt (see `rectification.findings`): that of the first pair that shows it.

        Shifted rows count only if most pairs show them: a few scenes, of moving things or unlike exposures, look so.
        """
        found = defaultdict(list)
        for one in self.looks:
            for kind in one.views:
                found[kind].append(one)
        pairs = counted(len(self.looks), "pair")
        return {
            kind: f"{doubtful[0].where} ({len(doubtful)} of {pairs} looked at): {doubtful[0].views[kind]}"
            for kind, doubtful in found.items()
            if kind != "rows" or 2 * len(doubtful) > len(self.looks)
        }

    def of_ground_truth(self) -> Iterator[str]:
        """A sentence if the disparities of all pairs are too small or too large for their images, or of another scale
        than those of matched patches."""
        known = [one for one in self.looks if one.largest > 0]
        if not known:
            return
        number = f"{counted(len(known), 'pair')} (from {known[0].where})"
        largest = max(one.largest for one in known)
        ratios = [ratio for one in known for ratio in one.ratios]
        if largest < LEAST:
            yield f"the largest ground-truth disparity is {largest:.2g} px in {number}; is disparity_scale right?"
        elif all(one.largest > one.size[1] for one in known):
            yield (
                f"the largest ground-truth disparity is {largest:.0f} px in {number}, more than the images are wide; "
                "is disparity_scale right?"
            )
        elif len(ratios) >= rectification.FEWEST and not FITS[0] < (ratio := median(ratios)) < FITS[1]:
            yield (
                f"the ground-truth disparities are {ratio:.2f} times those of {len(ratios)} patches that were "
                f"matched in {number} (median); is disparity_scale right?"
            )
        left, right = (sum(one.fits[view] for one in known) for view in (0, 1))
        if right >= FEWEST_APART and right > MORE * left:
            yield (
                f"the ground truth fits the pixels of the right image in {right} of {left + right} matched patches in "
                f"{number}, not those of the left; use the left view's disparity files"
            )


def _nearest(disparity_HW: np.ndarray, row: int, column: int, half: int, move: float) -> float | None:
    """The known disparity nearest to `move` px around a pixel, or None. At the edge of a thing there are several."""
    rows, columns = (slice(max(0, middle - half), max(0, middle + half + 1)) for middle in (row, column))
    known_N = disparity_HW[rows, columns]
    known_N = known_N[known_N > 0]
    return float(np.clip(move, known_N.min(), known_N.max())) if known_N.size else None
