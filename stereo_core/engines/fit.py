"""Fit NumPy images of any size into an engine's frame, and take the disparity out again; fit_torch is for tensors."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from stereo_core.errors import UserError
from stereo_core.values import size_text

# ImageNet statistics of RGB in 0..1; every published ONNX file of this network expects them.
MEAN = np.array([0.485, 0.456, 0.406], np.float32)
STD = np.array([0.229, 0.224, 0.225], np.float32)

RESIZE = ("pad", "stretch", "none")


@dataclass(frozen=True)
class Fit:
    """The position of images in the frame: scaled to `scaled`, then offset by `top` rows and `left` columns. All px.

    Attributes:
        image: (height, width) of the images.
        scaled: (height, width) of the images inside the frame.
        frame: (height, width) of the engine's input.
    """

    image: tuple[int, int]
    scaled: tuple[int, int]
    frame: tuple[int, int]

    @property
    def offset(self) -> tuple[int, int]:
        """(top, left) padding; an odd pixel goes to the bottom and right, as in the network's own padding."""
        return (self.frame[0] - self.scaled[0]) // 2, (self.frame[1] - self.scaled[1]) // 2

    def place(self, images_BHWC: np.ndarray) -> np.ndarray:
        """float32 (B, H, W, 3) of the image size -> float32 (B, H, W, 3) of the frame; borders are replicated."""
        (top, left), (height, width) = self.offset, self.scaled
        images_BHWC = np.stack([_resize(image, self.scaled) for image in images_BHWC])
        bottom, right = self.frame[0] - height - top, self.frame[1] - width - left
        return np.pad(images_BHWC, ((0, 0), (top, bottom), (left, right), (0, 0)), mode="edge")

    def take_back(self, disparity_BHW: np.ndarray) -> np.ndarray:
        """Disparity (B, H, W) of the frame -> (B, H, W) of the images, in px of the images."""
        (top, left), (height, width) = self.offset, self.scaled
        inside = disparity_BHW[:, top : top + height, left : left + width]
        # A disparity is a horizontal distance: it scales with the width only.
        return np.stack([_resize(one, self.image) for one in inside]) * np.float32(self.image[1] / width)


def fit(image: tuple[int, int], frame: tuple[int, int], resize: str) -> Fit:
    """Choose how images of size `image` (height, width) fit into `frame`.

    Args:
        resize: "pad": keep every pixel and pad; images larger than the frame are first scaled down with their aspect
            ratio kept. "stretch": scale height and width to the frame's, as TAO does. "none": the sizes must be equal.

    Raises:
        UserError: `resize` is "none" and the sizes differ, or `resize` is unknown.
    """
    if resize == "stretch":
        return Fit(image, frame, frame)
    if resize == "none" and image != frame:
        raise UserError(
            f"evaluate.resize is none, but the images are {size_text(image)} px and the engine needs "
            f"{size_text(frame)}; set it to pad or stretch"
        )
    if resize not in RESIZE:
        raise UserError(f"resize: {resize!r} is not one of {', '.join(RESIZE)}")
    scale = min(1.0, frame[0] / image[0], frame[1] / image[1])
    return Fit(image, (max(1, round(image[0] * scale)), max(1, round(image[1] * scale))), frame)


def normalise(images_BHWC: np.ndarray) -> np.ndarray:
    """float32 RGB (B, H, W, 3) in 0..255 -> ImageNet-normalised float32 (B, 3, H, W), contiguous."""
    return np.ascontiguousarray(((images_BHWC / np.float32(255) - MEAN) / STD).transpose(0, 3, 1, 2))


def prepare(place: Fit, images_BHWC: np.ndarray) -> np.ndarray:
    """RGB 0..255, uint8 or float, of the image size -> normalised float32 (B, 3, H, W) of the frame."""
    return normalise(place.place(images_BHWC.astype(np.float32)))


def take_back(place: Fit, disparity_BHW: np.ndarray) -> np.ndarray:
    """See Fit.take_back."""
    return place.take_back(disparity_BHW)


def join(parts: list[np.ndarray]) -> np.ndarray:
    """Concatenate several batches."""
    return np.concatenate(parts)


def shrinks(image: tuple[int, int], size: tuple[int, int]) -> bool:
    """Whether a resize averages to avoid aliasing; else it interpolates linearly."""
    return size[0] <= image[0] and size[1] <= image[1]


def _resize(array: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize (H, W) or (H, W, C) float32 to `size`, with aligned pixel centres."""
    if array.shape[:2] == size:
        return array
    method = cv2.INTER_AREA if shrinks(array.shape[:2], size) else cv2.INTER_LINEAR
    return cv2.resize(array, size[::-1], interpolation=method)
