"""The same as `fit`, for tensors on their device; the values are equal."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import interpolate, pad

from stereo_core.engines.fit import MEAN, STD, Fit, shrinks


def prepare(place: Fit, images_B3HW: Tensor) -> Tensor:
    """RGB 0..255, uint8 or float, of the image size -> normalised float32 (B, 3, H, W) of the frame, contiguous."""
    (top, left), (height, width) = place.offset, place.scaled
    borders = (left, place.frame[1] - width - left, top, place.frame[0] - height - top)
    mean, std = (torch.from_numpy(x).to(images_B3HW.device)[:, None, None] for x in (MEAN, STD))
    images_B3HW = pad(_resize(images_B3HW.float(), place.scaled), borders, mode="replicate")
    return ((images_B3HW / 255 - mean) / std).contiguous()


def take_back(place: Fit, disparity_BHW: Tensor) -> Tensor:
    """Disparity (B, H, W) of the frame -> (B, H, W) of the images, in px of the images."""
    (top, left), (height, width) = place.offset, place.scaled
    inside_B1HW = disparity_BHW[:, None, top : top + height, left : left + width]
    return _resize(inside_B1HW, place.image)[:, 0] * (place.image[1] / width)


def join(parts: list[Tensor]) -> Tensor:
    """Concatenate several batches."""
    return torch.cat(parts)


def _resize(images_BCHW: Tensor, size: tuple[int, int]) -> Tensor:
    image = (images_BCHW.shape[-2], images_BCHW.shape[-1])
    if image == size:
        return images_BCHW
    if not shrinks(image, size):
        return interpolate(images_BCHW, size, mode="bilinear")
    rows, columns = (_averages(n, m, images_BCHW) for n, m in zip(image, size, strict=True))
    return rows @ images_BCHW @ columns.T


def _averages(length: int, parts: int, like: Tensor) -> Tensor:
    """(parts, length): the weight of every pixel in each of `parts` equal sections of a line (INTER_AREA)."""
    ends = torch.arange(parts + 1, device=like.device, dtype=torch.float64) * (length / parts)
    pixels = torch.arange(length, device=like.device, dtype=torch.float64)
    overlap = torch.minimum(ends[1:, None], pixels + 1) - torch.maximum(ends[:-1, None], pixels)
    return (overlap.clamp(min=0) * (parts / length)).to(like.dtype)
