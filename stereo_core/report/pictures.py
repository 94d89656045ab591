"""Disparities and errors as 8-bit RGB pictures. NumPy and OpenCV only, but for the colour bar."""

from __future__ import annotations

import cv2
import numpy as np

ERROR_SCALE_PX = 8.0


def colour_disparity(disparity_HW: np.ndarray, maximum: float) -> np.ndarray:
    """Disparity in px -> uint8 RGB (H, W, 3) in OpenCV's turbo: dark blue at 0, dark red at `maximum` and above.

    Pixels that are not finite or not above 0 are black. Give one `maximum` to pictures that are to be compared.
    """
    known = np.isfinite(disparity_HW) & (disparity_HW > 0)
    return _turbo(np.where(known, disparity_HW, 0), known, maximum)


def with_colour_bar(picture_HW3: np.ndarray, maximum: float) -> np.ndarray:
    """A picture of `colour_disparity` with its scale, labelled in px, at the right: uint8 RGB (H, wider, 3)."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # no display, and no state of pyplot's
    from matplotlib.figure import Figure

    dpi, height = 100, len(picture_HW3)
    figure = Figure(figsize=(0.9, height / dpi), dpi=dpi)
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_axes((0.12, 12 / (height + 24), 0.22, height / (height + 24)))
    levels_256 = np.linspace(1e-3, 1, 256, dtype=np.float32)[:, None]
    axes.imshow(colour_disparity(levels_256, 1.0), aspect="auto", origin="lower", extent=(0, 1, 0, maximum))
    axes.set_xticks([])
    axes.yaxis.tick_right()
    axes.yaxis.set_label_position("right")
    axes.set_ylabel("disparity (px)")
    canvas.draw()
    bar_HW3 = np.asarray(canvas.buffer_rgba())[..., :3]
    return np.hstack([picture_HW3, bar_HW3[:height]])


def error_map(
    prediction_HW: np.ndarray, gt_HW: np.ndarray, valid_HW: np.ndarray, maximum: float = ERROR_SCALE_PX
) -> np.ndarray:
    """|prediction - gt| in px -> uint8 RGB (H, W, 3) in turbo, saturated at `maximum`; invalid pixels are black."""
    error = np.abs(prediction_HW.astype(np.float64) - gt_HW)
    return _turbo(np.where(valid_HW, np.nan_to_num(error, nan=maximum), 0), valid_HW, maximum)


def panel(
    left_HW3: np.ndarray,
    prediction_HW: np.ndarray,
    gt_HW: np.ndarray,
    valid_HW: np.ndarray,
    maximum: float | None = None,
) -> np.ndarray:
    """Left image | ground truth | prediction | error side by side, uint8 RGB (H, 4W, 3).

    Ground truth and prediction share one colour scale, from 0 to `maximum` px; None: to the largest valid ground truth.
    """
    if maximum is None:
        maximum = float(gt_HW[valid_HW].max()) if valid_HW.any() else disparity_range(prediction_HW)
    shown_gt = np.where(valid_HW, gt_HW, 0)
    return np.hstack(
        [
            left_HW3,
            colour_disparity(shown_gt, maximum),
            colour_disparity(prediction_HW, maximum),
            error_map(prediction_HW, gt_HW, valid_HW),
        ]
    )


def sample_panel(
    left_HW3: np.ndarray, right_HW3: np.ndarray, disparity_HW: np.ndarray, valid_HW: np.ndarray, maximum: float
) -> np.ndarray:
    """Left image | right image | disparity | valid pixels (white) side by side, uint8 RGB (H, 4W, 3).

    Yellow lines run through both images, at the same rows: what one touches on the left, it touches on the right,
    further left by the disparity. Where it does not, the pair is not rectified (or `yjitter_prob` moved the right one).
    """
    both_H2W3 = np.hstack([left_HW3, right_HW3])
    both_H2W3[_lines(len(left_HW3))] = (255, 255, 0)
    mask_HW3 = np.repeat(valid_HW[:, :, None].astype(np.uint8) * 255, 3, axis=2)
    return np.hstack([both_H2W3, colour_disparity(np.where(valid_HW, disparity_HW, 0), maximum), mask_HW3])


def _lines(height: int) -> list[int]:
    """Seven rows that part a picture in eight."""
    return [height * part // 8 for part in range(1, 8)]


def disparity_range(disparity_HW: np.ndarray) -> float:
    """The largest finite disparity of a map in px, at least 1: a colour scale where no ground truth gives one."""
    return float(max(1.0, np.max(disparity_HW, where=np.isfinite(disparity_HW), initial=0.0)))


def _turbo(values_HW: np.ndarray, shown_HW: np.ndarray, maximum: float) -> np.ndarray:
    levels = np.rint(np.clip(values_HW * (255.0 / maximum), 0, 255)).astype(np.uint8)
    colours = cv2.cvtColor(cv2.applyColorMap(levels, cv2.COLORMAP_TURBO), cv2.COLOR_BGR2RGB)
    colours[~shown_HW] = 0
    return colours
