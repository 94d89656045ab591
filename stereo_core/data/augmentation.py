"""What happens to a training sample between the file and the network: a random crop, padded where it must be."""

from __future__ import annotations

import numpy as np

from stereo_core.errors import DataError

MULTIPLE = 32  # the network's training sizes


def random_crop(
    left: np.ndarray,
    right: np.ndarray,
    disparity: np.ndarray,
    valid: np.ndarray,
    size: tuple[int, int],
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Cut the same window, uniformly placed, out of a pair and its ground truth.

    A window that is not a multiple of 32 is padded on the right and below: images by their last row and column,
    disparity with 0 and `valid` with False, so that padding never trains anything.

    Args:
        left, right: (H, W, 3).
        disparity, valid: (H, W).
        size: height and width of the window, px.

    Raises:
        DataError: the window is larger than the image.
    """
    height, width = size
    if height > left.shape[0] or width > left.shape[1]:
        raise DataError(
            f"augmentation.crop_size [{height}, {width}] is larger than the image,"
            f" [{left.shape[0]}, {left.shape[1]}] (height, width); make it smaller"
        )
    top = int(rng.integers(left.shape[0] - height + 1))
    start = int(rng.integers(left.shape[1] - width + 1))
    window = (slice(top, top + height), slice(start, start + width))
    below, beside = -height % MULTIPLE, -width % MULTIPLE
    images = [np.pad(image[window], ((0, below), (0, beside), (0, 0)), mode="edge") for image in (left, right)]
    maps = [np.pad(values[window], ((0, below), (0, beside))) for values in (disparity, valid)]
    return images[0], images[1], maps[0], maps[1]
