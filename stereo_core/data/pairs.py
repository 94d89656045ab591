"""Checks of stereo pairs that a caller passes in memory, shared by engines and networks."""

from __future__ import annotations

import os
import sys
from typing import Any

import numpy as np


def is_torch(images: Any) -> bool:
    """Whether these are torch tensors; does not import torch."""
    return "torch" in sys.modules and isinstance(images, sys.modules["torch"].Tensor)


def checked_arrays(left: Any, right: Any) -> tuple[np.ndarray, np.ndarray]:
    """NumPy (H, W, 3) or (B, H, W, 3) RGB, (H, W) or (B, H, W, 1) grey -> both as (B, H, W, 3).

    Raises:
        ValueError: a shape or type is unsupported, the values are in 0..1, or left and right differ in size.
    """
    left_BHWC, right_BHWC = _checked("left", left), _checked("right", right)
    if left_BHWC.shape != right_BHWC.shape:
        raise ValueError(f"left is {left.shape}, right is {right.shape}; both must have the same size")
    return left_BHWC, right_BHWC


def _checked(name: str, images: Any) -> np.ndarray:
    if isinstance(images, str | os.PathLike):
        raise ValueError(f"{name} is text; images must be arrays, such as cv2.imread(path)[..., ::-1]")
    shape = getattr(images, "shape", type(images).__name__)
    if isinstance(images, np.ndarray) and images.ndim == 2:
        images = images[..., None]
    if (
        not isinstance(images, np.ndarray)
        or images.ndim not in (3, 4)
        or images.shape[-1] not in (1, 3)
        or not images.size
    ):
        raise ValueError(f"images must be (H, W, 3), (H, W) or (B, H, W, 3) arrays, but {name} is {shape}")
    if images.dtype != np.uint8 and not np.issubdtype(images.dtype, np.floating):
        raise ValueError(f"images must be uint8 or float in 0..255, but {name} is {images.dtype}")
    check_range(name, images)
    images = images if images.ndim == 4 else images[None]
    return images if images.shape[-1] == 3 else np.repeat(images, 3, axis=-1)


def checked_tensors(left: Any, right: Any) -> tuple[Any, Any]:
    """torch (B, 3, H, W) RGB or (B, 1, H, W) grey -> both as (B, 3, H, W), on their device.

    Raises:
        ValueError: a shape or type is unsupported, or left and right differ in size.
    """
    if not is_torch(right):
        raise ValueError(f"left is a torch tensor and right is {type(right).__name__}; pass both as the same type")
    shape = tuple(left.shape)
    if left.ndim != 4 or shape != tuple(right.shape) or shape[1] not in (1, 3) or not len(left):
        shapes = f"{shape} and {tuple(right.shape)}"
        raise ValueError(f"torch images must be (B, 3, H, W), with left and right of the same size, not {shapes}")
    if any(str(x.dtype) != "torch.uint8" and not x.is_floating_point() for x in (left, right)):
        raise ValueError(f"images must be uint8 or float in 0..255, not {left.dtype} and {right.dtype}")
    return tuple(x.detach().expand(-1, 3, -1, -1) for x in (left, right))


def check_range(name: str, images: Any) -> None:
    """Refuse an array or tensor with fractions and no value above 1: a network would take it for a black image.

    Whole numbers up to 1 are accepted: they may be a nearly black image.
    """
    if "float" in str(images.dtype) and images.max() <= 1 and (images % 1 != 0).any():
        raise ValueError(
            f"the largest value of {name} is {float(images.max()):.4g}, but float images are 0..255; multiply by 255"
        )
