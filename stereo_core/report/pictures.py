"""Disparities and errors as 8-bit RGB pictures. Needs only NumPy and OpenCV."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np

ERROR_SCALE_PX = 8.0  # upper end of all error maps
SMALLEST_PX = 8.0  # end of the shortest disparity scale
SHOWN = 0.99  # share of the disparities below a scale's end: a few outliers would make the rest all blue
UNKNOWN = (128, 128, 128)  # grey, which is no colour of turbo
SMALL = 320  # px; narrower pictures are shown twice as large
STRIP = 22  # px; height of a text line
TICKS = 5


class Scale(NamedTuple):
    """A colour scale in px: dark blue at `start` and below, dark red at `end` and above."""

    end: float
    start: float = 0.0


def scale_of(*disparities_HW: np.ndarray | None) -> Scale:
    """The colour scale of a pair, from the first map that has a value: ground truth before prediction.

    So train and evaluate give a pair one scale. The end is 8, 12, 16, 24, 32, 48 ... px; the start is 0, or half the
    end if no disparity is below that. Both are round, so that pairs of like ranges share a scale.

    Args:
        disparities_HW: px; not finite or not above 0 where unknown; None: there is no such map.
    """
    for disparity_HW in disparities_HW:
        known = () if disparity_HW is None else disparity_HW[np.isfinite(disparity_HW) & (disparity_HW > 0)]
        if len(known):
            low, high = np.quantile(known, (1 - SHOWN, SHOWN))
            octave = 2.0 ** math.floor(math.log2(max(high, SMALLEST_PX)))
            end = next(octave * step for step in (1, 1.5, 2) if octave * step >= high)
            return Scale(end, end / 2 if low >= end / 2 else 0.0)
    return Scale(SMALLEST_PX)


def colour_disparity(disparity_HW: np.ndarray, scale: Scale) -> np.ndarray:
    """Disparity in px -> uint8 RGB (H, W, 3) in OpenCV's turbo.

    Pixels that are not finite or not above 0 are grey. Use the same scale for pictures that are compared.
    """
    known = np.isfinite(disparity_HW) & (disparity_HW > 0)
    return _turbo(np.where(known, disparity_HW, 0) - scale.start, known, scale.end - scale.start)


def error_map(
    prediction_HW: np.ndarray, gt_HW: np.ndarray, valid_HW: np.ndarray, maximum: float = ERROR_SCALE_PX
) -> np.ndarray:
    """|prediction - gt| in px -> uint8 RGB (H, W, 3) in turbo, saturated at `maximum`; invalid pixels are grey."""
    error = np.abs(prediction_HW.astype(np.float64) - gt_HW)
    return _turbo(np.where(valid_HW, np.nan_to_num(error, nan=maximum), 0), valid_HW, maximum)


def panel(left_HW3: np.ndarray, prediction_HW: np.ndarray, gt_HW: np.ndarray, valid_HW: np.ndarray) -> np.ndarray:
    """Left image, ground truth, prediction and error with titles and scales: uint8 RGB, in a row, or 2 x 2 for wide
    images.

    Ground truth and prediction share one colour scale, see `scale_of`.
    """
    shown_gt = np.where(valid_HW, gt_HW, 0)
    scale = scale_of(shown_gt, prediction_HW)
    cells = [
        labelled(left_HW3, "left image"),
        labelled(colour_disparity(shown_gt, scale), "ground truth (grey: none)", scale),
        labelled(colour_disparity(prediction_HW, scale), "prediction", scale),
        labelled(error_map(prediction_HW, gt_HW, valid_HW), "error (grey: no truth)", Scale(ERROR_SCALE_PX)),
    ]
    height, width = left_HW3.shape[:2]
    if width <= 2 * height:
        return np.hstack(cells)
    return np.vstack([np.hstack(cells[:2]), np.hstack(cells[2:])])


def labelled(picture_HW3: np.ndarray, title: str, scale: Scale | None = None) -> np.ndarray:
    """A picture with a title above and a scale in px below: uint8 RGB, higher by two strips of STRIP px.

    Small pictures are doubled in size. Without a scale the lower strip is empty, so pictures in a row have equal
    height.
    """
    if picture_HW3.shape[1] < SMALL:
        picture_HW3 = picture_HW3.repeat(2, axis=0).repeat(2, axis=1)
    width = picture_HW3.shape[1]
    above, below = np.full((2, STRIP, width, 3), 255, np.uint8)
    _write(above, title, 4)
    if scale is not None:
        _draw_scale(below, scale)
    return np.vstack([above, picture_HW3, below])


def _draw_scale(strip_HW3: np.ndarray, scale: Scale) -> None:
    """Draw turbo along the upper third of a strip, with px values below it."""
    width = strip_HW3.shape[1]
    levels_1W = np.linspace(scale.start, scale.end, width, dtype=np.float32)[None]
    strip_HW3[: STRIP // 3] = colour_disparity(np.maximum(levels_1W, 1e-3), scale)
    for number in range(TICKS):
        share = number / (TICKS - 1)
        text = f"{scale.start + (scale.end - scale.start) * share:.3g}" + (" px" if share == 1 else "")
        (wide, _), _ = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, 0.4, 1)
        _write(strip_HW3, text, round(4 + share * (width - wide - 8)))


def _write(strip_HW3: np.ndarray, text: str, x: int) -> None:
    cv2.putText(strip_HW3, text, (x, STRIP - 4), cv2.FONT_HERSHEY_SIMPLEX, 0.4, (20, 20, 20), 1, cv2.LINE_AA)


def stacked(pictures: Sequence[np.ndarray]) -> np.ndarray:
    """Pictures of any sizes below each other, on white."""
    widest = max(picture.shape[1] for picture in pictures)
    wide = [np.pad(p, ((0, 0), (0, widest - p.shape[1]), (0, 0)), constant_values=255) for p in pictures]
    return np.vstack(wide)


def sample_panel(
    left_HW3: np.ndarray, right_HW3: np.ndarray, disparity_HW: np.ndarray, valid_HW: np.ndarray
) -> np.ndarray:
    """Left image, right image, disparity and valid pixels (white) with titles and a scale side by side, uint8 RGB.

    Yellow lines run through both images at the same rows: a line crosses the same points in both images, in the right
    one further left by the disparity. If not, the pair is not rectified (or `yjitter_prob` has moved the right image).
    """
    rows = _lines(len(left_HW3))
    left_HW3, right_HW3 = left_HW3.copy(), right_HW3.copy()
    left_HW3[rows] = right_HW3[rows] = (255, 255, 0)
    mask_HW3 = np.repeat(valid_HW[:, :, None].astype(np.uint8) * 255, 3, axis=2)
    shown_HW = np.where(valid_HW, disparity_HW, 0)
    scale = scale_of(shown_HW)
    cells = [
        labelled(left_HW3, "left image"),
        labelled(right_HW3, "right image"),
        labelled(colour_disparity(shown_HW, scale), "disparity (grey: none)", scale),
        labelled(mask_HW3, "valid pixels (white)"),
    ]
    return np.hstack(cells)


def _lines(height: int) -> list[int]:
    """Seven rows that divide a picture into eight parts."""
    return [height * part // 8 for part in range(1, 8)]


def _turbo(values_HW: np.ndarray, shown_HW: np.ndarray, maximum: float) -> np.ndarray:
    levels = np.rint(np.clip(values_HW * (255.0 / maximum), 0, 255)).astype(np.uint8)
    colours = cv2.cvtColor(cv2.applyColorMap(levels, cv2.COLORMAP_TURBO), cv2.COLOR_BGR2RGB)
    colours[~shown_HW] = UNKNOWN
    return colours
