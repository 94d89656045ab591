"""Disparities and errors as 8-bit RGB pictures. Needs only NumPy and OpenCV."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

ERROR_SCALE_PX = 8.0  # upper end of all error maps
SCALE_PX = 128.0  # upper limit of the disparity colour scale
UNKNOWN = (128, 128, 128)  # grey, which is no colour of turbo
SMALL = 320  # px; narrower pictures are shown twice as large
STRIP = 22  # px; height of a text line
TICKS = 5


def colour_disparity(disparity_HW: np.ndarray, maximum: float) -> np.ndarray:
    """Disparity in px -> uint8 RGB (H, W, 3) in OpenCV's turbo: dark blue at 0, dark red at `maximum` and above.

    Pixels that are not finite or not above 0 are grey. Use the same `maximum` for pictures that are compared.
    """
    known = np.isfinite(disparity_HW) & (disparity_HW > 0)
    return _turbo(np.where(known, disparity_HW, 0), known, maximum)


def error_map(
    prediction_HW: np.ndarray, gt_HW: np.ndarray, valid_HW: np.ndarray, maximum: float = ERROR_SCALE_PX
) -> np.ndarray:
    """|prediction - gt| in px -> uint8 RGB (H, W, 3) in turbo, saturated at `maximum`; invalid pixels are grey."""
    error = np.abs(prediction_HW.astype(np.float64) - gt_HW)
    return _turbo(np.where(valid_HW, np.nan_to_num(error, nan=maximum), 0), valid_HW, maximum)


def scale_end(max_disparity: float) -> float:
    """The end of the disparity colour scale in px, equal in train, evaluate and inference: `dataset.max_disparity`, but
    at most SCALE_PX, because few images have more and the rest would all be blue."""
    return float(min(max_disparity, SCALE_PX))


def panel(
    left_HW3: np.ndarray, prediction_HW: np.ndarray, gt_HW: np.ndarray, valid_HW: np.ndarray, maximum: float
) -> np.ndarray:
    """Left image, ground truth, prediction and error with titles and scales: uint8 RGB, in a row, or 2 x 2 for wide
    images.

    Ground truth and prediction share one colour scale, from 0 to `maximum` px.
    """
    shown_gt = np.where(valid_HW, gt_HW, 0)
    cells = [
        labelled(left_HW3, "left image"),
        labelled(colour_disparity(shown_gt, maximum), "ground truth (grey: none)", maximum),
        labelled(colour_disparity(prediction_HW, maximum), "prediction", maximum),
        labelled(error_map(prediction_HW, gt_HW, valid_HW), "error (grey: no truth)", ERROR_SCALE_PX),
    ]
    height, width = left_HW3.shape[:2]
    if width <= 2 * height:
        return np.hstack(cells)
    return np.vstack([np.hstack(cells[:2]), np.hstack(cells[2:])])


def labelled(picture_HW3: np.ndarray, title: str, maximum: float | None = None) -> np.ndarray:
    """A picture with a title above and a scale from 0 to `maximum` px below: uint8 RGB, higher by two strips of STRIP
    px.

    Small pictures are doubled in size. Without a scale the lower strip is empty, so pictures in a row have equal
    height.
    """
    if picture_HW3.shape[1] < SMALL:
        picture_HW3 = picture_HW3.repeat(2, axis=0).repeat(2, axis=1)
    width = picture_HW3.shape[1]
    above, below = np.full((2, STRIP, width, 3), 255, np.uint8)
    _write(above, title, 4)
    if maximum is not None:
        _draw_scale(below, maximum)
    return np.vstack([above, picture_HW3, below])


def _draw_scale(strip_HW3: np.ndarray, maximum: float) -> None:
    """Draw turbo along the upper third of a strip, with px values below it."""
    width = strip_HW3.shape[1]
    levels_1W = np.linspace(1e-3, maximum, width, dtype=np.float32)[None]
    strip_HW3[: STRIP // 3] = colour_disparity(levels_1W, maximum)
    for number in range(TICKS):
        share = number / (TICKS - 1)
        text = f"{maximum * share:.3g}" + (" px" if share == 1 else "")
        (wide, _), _ = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, 0.4, 1)
        _write(strip_HW3, text, round(share * (width - wide)))


def _write(strip_HW3: np.ndarray, text: str, x: int) -> None:
    cv2.putText(strip_HW3, text, (x, STRIP - 4), cv2.FONT_HERSHEY_SIMPLEX, 0.4, (20, 20, 20), 1, cv2.LINE_AA)


def stacked(pictures: Sequence[np.ndarray]) -> np.ndarray:
    """Pictures of any sizes below each other, on white."""
    widest = max(picture.shape[1] for picture in pictures)
    wide = [np.pad(p, ((0, 0), (0, widest - p.shape[1]), (0, 0)), constant_values=255) for p in pictures]
    return np.vstack(wide)


def sample_panel(
    left_HW3: np.ndarray, right_HW3: np.ndarray, disparity_HW: np.ndarray, valid_HW: np.ndarray, maximum: float
) -> np.ndarray:
    """Left image | right image | disparity | valid pixels (white) side by side, uint8 RGB (H, 4W, 3).

    Yellow lines run through both images at the same rows: a line crosses the same points in both images, in the right
    one further left by the disparity. If not, the pair is not rectified (or `yjitter_prob` has moved the right image).
    """
    both_H2W3 = np.hstack([left_HW3, right_HW3])
    both_H2W3[_lines(len(left_HW3))] = (255, 255, 0)
    mask_HW3 = np.repeat(valid_HW[:, :, None].astype(np.uint8) * 255, 3, axis=2)
    return np.hstack([both_H2W3, colour_disparity(np.where(valid_HW, disparity_HW, 0), maximum), mask_HW3])


def _lines(height: int) -> list[int]:
    """Seven rows that divide a picture into eight parts."""
    return [height * part // 8 for part in range(1, 8)]


def disparity_range(disparity_HW: np.ndarray) -> float:
    """The largest finite disparity of a map in px, at least 1: the end of a colour scale without ground truth."""
    return float(max(1.0, np.max(disparity_HW, where=np.isfinite(disparity_HW), initial=0.0)))


def _turbo(values_HW: np.ndarray, shown_HW: np.ndarray, maximum: float) -> np.ndarray:
    levels = np.rint(np.clip(values_HW * (255.0 / maximum), 0, 255)).astype(np.uint8)
    colours = cv2.cvtColor(cv2.applyColorMap(levels, cv2.COLORMAP_TURBO), cv2.COLOR_BGR2RGB)
    colours[~shown_HW] = UNKNOWN
    return colours
