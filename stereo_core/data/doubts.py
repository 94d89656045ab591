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
class Doubts:
    """What is doubtful about some pairs of a data source; `add` takes them one by one, so that one is in memory."""

    _pairs: int = 0
    _views: dict[str, list[tuple[str, str]]] = field(default_factory=lambda: defaultdict(list))  # pair and sentence
    _ratios: list[float] = field(default_factory=list)  # ground truth / disparity of a matched patch, of all pairs
    _better: list[int] = field(default_factory=lambda: [0, 0])  # matches that ground truth of the left, right view fits
    _largest: list[tuple[float, int]] = field(default_factory=list)  # largest disparity and width of each pair, px

    def add(self, where: str, pair: Pair) -> None:
        """Look at one more pair as it is in its files, not augmented. `where` names it in messages."""
        self._pairs += 1
        found = rectification.of_images(pair.left, pair.right)
        matched = None if found else rectification.matches(pair.left, pair.right)
        if matched:
            found = rectification.of_matches(matched)
            self._compare(matched, pair.disparity)
        for kind, text in found.items():
            self._views[kind].append((where, text))
        if (largest := float(pair.disparity.max())) > 0:
            self._largest.append((largest, pair.disparity.shape[1]))

    def _compare(self, matched: rectification.Matches, disparity_HW: np.ndarray) -> None:
        """Note the ratios, and which view's pixel the ground truth belongs to: a match is at `column` of the left image
        and at `column - move` of the right one."""
        half = round(rectification.HALF / 3 / matched.scale)  # of a patch's middle
        for row, column, move in zip(*matched.disparities(), strict=True):
            if move <= CLEAR:
                continue
            left, right = (_nearest(disparity_HW, row, at, half, move) for at in (column, round(column - move)))
            if left is not None:
                self._ratios.append(left / move)
            if left is not None and right is not None and abs(abs(left - move) - abs(right - move)) > APART:
                self._better[int(abs(right - move) < abs(left - move))] += 1

    def of_views(self) -> dict[str, str]:
        """A sentence for each kind of doubt (see `rectification.findings`): that of the first pair that shows it.

        Shifted rows count only if most pairs show them: a few scenes, of moving things or unlike exposures, look so.
        """
        return {
            kind: f"{found[0][0]} ({len(found)} of {counted(self._pairs, 'pair')} looked at): {found[0][1]}"
            for kind, found in self._views.items()
            if kind != "rows" or 2 * len(found) > self._pairs
        }

    def of_ground_truth(self) -> Iterator[str]:
        """A sentence if the disparities of all pairs are too small or too large for their images, or of another scale
        than those of matched patches."""
        if not self._largest:
            return
        number = counted(len(self._largest), "pair")
        largest = max(self._largest)[0]
        if largest < LEAST:
            yield f"the largest ground-truth disparity is {largest:.2g} px in {number}; is disparity_scale right?"
        elif all(disparity > width for disparity, width in self._largest):
            yield (
                f"the largest ground-truth disparity is {largest:.0f} px in {number}, more than the images are wide; "
                "is disparity_scale right?"
            )
        elif len(self._ratios) >= rectification.FEWEST and not FITS[0] < (ratio := median(self._ratios)) < FITS[1]:
            yield (
                f"the ground-truth disparities are {ratio:.2f} times those of {len(self._ratios)} patches that were "
                f"matched in {number} (median); is disparity_scale right?"
            )
        left, right = self._better
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
