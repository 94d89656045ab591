"""Verify that an exported file computes the right disparity: test pairs, the reference run, the difference."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from stereo_core.data.synthetic.planes import make_scene
from stereo_core.engines.base import normalise

# Tolerances of the mean absolute difference in px between an engine and its ONNX file. fp32: another order of
# operations; fp16 and bf16: 11 and 8 bits of precision; int8 and fp8: the file quantises in the same places, so only
# values between two steps differ. It is the mean because the recurrent refinement can move single pixels (occlusions,
# repeated texture) to another, equally good match. NaN, the common fault of fp16 engines, exceeds every tolerance.
TOLERANCE_PX = {"fp32": 0.01, "fp16": 0.1, "bf16": 0.5, "int8": 0.5, "fp8": 0.5}


def synthetic_pair(height: int, width: int, batch: int) -> tuple[np.ndarray, np.ndarray]:
    """`batch` different synthetic pairs from fixed seeds, as normalised float32 (B, 3, H, W)."""
    scenes = [make_scene(height, width, max(4, width // 8), seed) for seed in range(batch)]
    left, right = (np.stack([scene[side] for scene in scenes]).astype(np.float32) for side in ("left", "right"))
    return normalise(left), normalise(right)


def reference_disparity(onnx: Path, left_B3HW: np.ndarray, right_B3HW: np.ndarray) -> np.ndarray:
    """Disparity (B, H, W) in px of an ONNX file, run node by node without optimisation by ONNX Runtime on the CPU."""
    from stereo_core.engines.files import DISPARITY, LEFT, RIGHT, without_channel
    from stereo_core.engines.onnxruntime import open_session

    session = open_session(onnx, "cpu", optimise=False)
    return without_channel(session.run([DISPARITY], {LEFT: left_B3HW, RIGHT: right_B3HW})[0])


def difference(
    disparity: np.ndarray, reference: np.ndarray, precision: str, differs: str, mend: str
) -> dict[str, float]:
    """Mean and largest absolute difference and the tolerance of the mean, in px.

    Args:
        differs, mend: the beginning and the end of the error: what differs from what, and what to do.

    Raises:
        ValueError: the shapes differ.
        RuntimeError: a value is not finite, or the mean exceeds TOLERANCE_PX: the file must not be used.
    """
    if disparity.shape != reference.shape:
        raise ValueError(f"disparities with shapes {disparity.shape} and {reference.shape} cannot be compared")
    error = np.abs(disparity.astype(np.float64) - reference)
    mean, largest = float(error.mean()), float(error.max())
    if not mean <= TOLERANCE_PX[precision]:  # also true for NaN
        raise RuntimeError(
            f"{differs} by {mean:.4g} px on average ({largest:.4g} px at most), more than the "
            f"{TOLERANCE_PX[precision]} px allowed for {precision}; {mend}"
        )
    return {
        "mean_abs_difference_px": mean,
        "max_abs_difference_px": largest,
        "tolerance_px": TOLERANCE_PX[precision],
    }
