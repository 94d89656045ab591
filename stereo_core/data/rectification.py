"""Warn if a pair looks unrectified or swapped, by matching some of its patches. The check is a hint, not a proof."""

from __future__ import annotations

from typing import NamedTuple

import cv2
import numpy as np

WIDTHS = (640, 320, 160)  # px that larger pairs are reduced to; the next one finds larger moves
ENLARGED = 320  # px that smaller pairs are enlarged to; otherwise too few patches fit between their edges
MOST = 8.0  # times that they are enlarged; of an image of one column nothing would be seen
PATCHES = 200  # some 0.1 s on one core
HALF = 7  # px; a patch is 15 x 15
STRAIGHT = 0.05  # gradients along / across a patch's contour, squared; below it the match slides along the contour
ROWS = 12  # px; vertical search range
SHARE = 0.25  # of the width; horizontal search range to either side
ALIKE = 0.9  # normalised correlation from which a match counts
RIVALS = 30, 0.02  # more places than this, nearly as good as the best, leave open which one matches: ramps, stripes
FEWEST = 20  # matches needed for a warning
BESIDE = 1.0  # px to the wrong side from which a match indicates swapped views
BEYOND = 0.05  # share of the matches with a disparity above the network's that draws a warning
FLAT = 8  # grey levels between the 1st and 99th percentile; a covered lens or a broken cable shows fewer
ABOVE = 1.0  # px of the given size; larger row offsets of a quarter of the patches mean the pair is not rectified
NEAR = 0.5  # px of the given size; a patch so near to a shift and tilt follows it
LEAD = 0.2  # share of the matches by which a shift and tilt leads equal rows; a smaller lead is chance
TRIES = 200  # shifts and tilts, each through three matches; some are right if a third of the matches is


def doubts(left_HW3: np.ndarray, right_HW3: np.ndarray, reach: float | None = None) -> list[str]:
    """The sentences of `findings`."""
    return list(findings(left_HW3, right_HW3, reach).values())


class Matches(NamedTuple):
    """Patches of the left image that were found in the right one.

    Attributes:
        moves_N4: column and row in the left image; px by which the patch lies further right and further down in the
            right image. All px are those of the scaled images.
        scale: of the images for the search.
    """

    moves_N4: np.ndarray
    scale: float

    def disparities(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Rows and columns (whole px) in the left image and the disparities (px) at its own size."""
        columns_N, rows_N, right_N, _ = (self.moves_N4 / self.scale).T
        return rows_N.astype(int), columns_N.astype(int), -right_N


def matches(left_HW3: np.ndarray, right_HW3: np.ndarray) -> Matches | None:
    """The matches of a pair, uint8 RGB of one size; None if there are fewer than FEWEST."""
    for width in WIDTHS:
        scale = min(max(1.0, ENLARGED / left_HW3.shape[1]), width / left_HW3.shape[1], MOST)
        if left_HW3.shape[0] * scale < 2 * (HALF + ROWS) + 1:  # no patch fits
            continue
        moves_N4 = _moves(*(_grey(image, scale) for image in (left_HW3, right_HW3)))
        if len(moves_N4) >= FEWEST:
            return Matches(moves_N4, scale)
    return None


def findings(left_HW3: np.ndarray, right_HW3: np.ndarray, reach: float | None = None) -> dict[str, str]:
    """Warnings that a pair shows nothing, may not be rectified, its views may be swapped, or its disparities exceed the
    network's: a sentence for each kind; empty if it looks right.

    A point at column x of the left image appears at x - disparity of the right one, in the same row. Matches further to
    the right indicate swapped views; matches in other rows indicate views that are not rectified.

    Args:
        left_HW3, right_HW3: uint8 RGB, of one size.
        reach: px of these images; the largest disparity that the network can find, None if unknown.
    """
    found = of_images(left_HW3, right_HW3)
    matched = None if found else matches(left_HW3, right_HW3)
    return of_matches(matched, reach) if matched else found


def of_images(left_HW3: np.ndarray, right_HW3: np.ndarray) -> dict[str, str]:
    """Those of the `findings` that need no matches: an image shows nothing, or both are the same."""
    flat = {name: _flat(name, image) for name, image in (("left", left_HW3), ("right", right_HW3))}
    if any(flat.values()):
        return {name: text for name, text in flat.items() if text}
    if np.array_equal(left_HW3, right_HW3):
        return {"same": "both views are the same image; if it shows both views side by side, cut it into halves"}
    return {}


def of_matches(matched: Matches, reach: float | None = None) -> dict[str, str]:
    """Those of the `findings` that the matches show."""
    moves_N2, scale = matched.moves_N4[:, 2:], matched.scale
    found = {}
    wrong_side = float((moves_N2[:, 0] > BESIDE).mean())
    if wrong_side > 0.5:
        found["order"] = (
            f"{wrong_side:.0%} of {len(moves_N2)} patches of the left image lie further right in the right image: "
            "are the views swapped?"
        )
    beyond = float((-moves_N2[:, 0] / scale > (reach or np.inf)).mean())
    if beyond > BEYOND:
        found["reach"] = (
            f"{beyond:.0%} of {len(moves_N2)} patches have a disparity above {reach:.0f} px, the largest that the "
            "network finds, and get a wrong one; predict at a smaller scale"
        )
    rows_N, followers = _shift_and_tilt(matched)
    size = float(np.quantile(np.abs(rows_N), 0.75))
    if size > ABOVE:
        found["rows"] = (
            f"patches of the left image lie {_rows(rows_N, size)} in the right image ({followers} of {len(rows_N)} "
            "agree); rectify the pair, so that equal rows show the same points"
        )
    return found


def _flat(name: str, image_HW3: np.ndarray) -> str:
    """A warning if the image shows nothing; empty if it does."""
    low, high = np.percentile(image_HW3[::4, ::4], (1, 99))  # a part of the pixels will do, and is quick
    if high - low >= FLAT:
        return ""
    return f"the {name} image shows nothing: its values are about {low:.0f} to {high:.0f}; check camera and exposure"


def _rows(rows_N: np.ndarray, size: float) -> str:
    middle = float(np.median(rows_N))
    if abs(middle) > ABOVE / 2:
        return f"{abs(middle):.1f} px {'lower' if middle > 0 else 'higher'}"
    return f"{size:.1f} px higher or lower"


def _shift_and_tilt(matched: Matches) -> tuple[np.ndarray, int]:
    """The shift and tilt of the right image that most matches follow (RANSAC): its row offset at each match, in px of
    the given size, and how many matches follow it. Zeros if nearly as many lie in equal rows.

    The offsets of single matches mislead: where one contour hides another, or along a smooth contour, a patch may look
    most like one in another row though the pair is rectified. Such offsets scatter; those of a camera that is not
    aligned agree.
    """
    columns_N, lines_N, _, rows_N = matched.moves_N4.T / matched.scale
    terms_N3 = np.stack([np.ones_like(columns_N), columns_N, lines_N], axis=1)
    threes_T3 = np.random.default_rng(0).random((TRIES, len(rows_N))).argsort(axis=1)[:, :3]
    threes_T3 = threes_T3[np.abs(np.linalg.det(terms_N3[threes_T3])) > 1]  # not three on a line
    planes_T3 = np.linalg.solve(terms_N3[threes_T3], rows_N[threes_T3][..., None])[..., 0]
    planes_T3 = np.vstack([np.zeros(3), planes_T3])  # the first: equal rows
    near_TN = np.abs(planes_T3 @ terms_N3.T - rows_N) <= NEAR
    followers_T = near_TN.sum(axis=1)
    best = followers_T.argmax()
    if followers_T[best] - followers_T[0] <= LEAD * len(rows_N):
        return np.zeros_like(rows_N), int(followers_T[0])
    near_N = near_TN[best]
    plane_3 = np.linalg.lstsq(terms_N3[near_N], rows_N[near_N], rcond=None)[0]
    return terms_N3 @ plane_3, int(near_N.sum())


def _grey(image_HW3: np.ndarray, scale: float) -> np.ndarray:
    grey = cv2.cvtColor(np.ascontiguousarray(image_HW3), cv2.COLOR_RGB2GRAY)
    smooth = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    return grey if scale == 1 else cv2.resize(grey, None, fx=scale, fy=scale, interpolation=smooth)


def _moves(left_HW: np.ndarray, right_HW: np.ndarray) -> np.ndarray:
    """(N, 4): column and row of patches of the left image, and px by which they lie further right and further down in
    the right one."""
    height, width = left_HW.shape
    corners = cv2.goodFeaturesToTrack(left_HW, PATCHES, 0.01, 8)
    weak_HW, strong_HW = np.sort(cv2.cornerEigenValsAndVecs(left_HW, 2 * HALF + 1, 3)[..., :2]).transpose(2, 0, 1)
    reach = int(SHARE * width)
    moves = []
    for x, y in () if corners is None else np.rint(corners.reshape(-1, 2)).astype(int):
        inside = HALF <= x < width - HALF and HALF + ROWS <= y < height - HALF - ROWS
        crossed = inside and weak_HW[y, x] > STRAIGHT * strong_HW[y, x]
        if crossed and (move := _move(left_HW, right_HW, x, y, reach)):
            moves.append((x, y, *move))
    return np.array(moves, float).reshape(-1, 4)


def _move(left_HW: np.ndarray, right_HW: np.ndarray, x: int, y: int, reach: int) -> tuple[float, float] | None:
    """The offset of one patch; None if it has no good match or too many, or the best is at the edge of the search
    range."""
    patch = left_HW[y - HALF : y + HALF + 1, x - HALF : x + HALF + 1]
    first = max(0, x - HALF - reach)
    strip = right_HW[y - HALF - ROWS : y + HALF + ROWS + 1, first : x + HALF + reach + 1]
    alike = cv2.matchTemplate(strip, patch, cv2.TM_CCOEFF_NORMED)
    _, best, _, (column, row) = cv2.minMaxLoc(alike)
    if best < ALIKE or row in (0, 2 * ROWS) or np.count_nonzero(alike > best - RIVALS[1]) > RIVALS[0]:
        return None
    return first + column - (x - HALF), row - ROWS + _peak(*alike[row - 1 : row + 2, column])


def _peak(before: float, at: float, after: float) -> float:
    """The position of the peak of a parabola through three values at -1, 0 and 1."""
    bend = before - 2 * at + after
    return 0.5 * (before - after) / bend if bend < 0 else 0.0
