"""Images larger than the network's size, predicted in overlapping tiles.

A pixel at column x of the left image appears at x - d in the right one. In a tile that begins at column s, a pixel with
x - d < s has no match, so the tile can only guess there. Where two tiles overlap, the left tile is therefore used for
most of the overlap, and the right tile only at its end, far from the right tile's left edge: disparities up to
RIGHT_FROM of the overlap are not affected. Vertically there is no such asymmetry; the tiles are blended evenly.
"""

from __future__ import annotations

from collections.abc import Callable
from math import ceil

import torch
from torch import Tensor

from stereo_core.errors import SpecError
from stereo_core.values import size_text

RIGHT_FROM = 7 / 8  # share of an overlap's columns after which the right tile fades in
BELOW_FROM = 0.0


def tiled(
    predict: Callable[[Tensor, Tensor], Tensor], size: tuple[int, int], overlap: tuple[int, int]
) -> Callable[[Tensor, Tensor], Tensor]:
    """Predict in tiles of `size` (height, width) px that overlap by at least `overlap` (rows, columns) px.

    Raises:
        SpecError: the overlap is not smaller than the tile.
    """
    if overlap[0] >= size[0] or overlap[1] >= size[1]:
        raise SpecError(
            f"inference.tile_overlap: {list(overlap)} ([height, width]) must be smaller than the tiles, "
            f"{size_text(size)} px"
        )

    def run(left_B3HW: Tensor, right_B3HW: Tensor) -> Tensor:
        rows, columns = (_starts(*x) for x in zip(left_B3HW.shape[-2:], size, overlap, strict=True))
        strips = []
        for y in rows:
            left, right = (image[..., y : y + size[0], :] for image in (left_B3HW, right_B3HW))
            parts = [predict(left[..., x : x + size[1]], right[..., x : x + size[1]]) for x in columns]
            strips.append(_joined(parts, columns, -1, RIGHT_FROM))
        return _joined(strips, rows, -2, BELOW_FROM)

    return run


def _starts(length: int, tile: int, overlap: int) -> list[int]:
    """The starts of the tiles: as few as possible, evenly spaced, the last one aligned with the end."""
    gaps = max(0, ceil((length - tile) / (tile - overlap)))
    return [round(i * (length - tile) / gaps) for i in range(gaps + 1)] if gaps else [0]


def _joined(parts: list[Tensor], starts: list[int], axis: int, begin: float) -> Tensor:
    """Blend overlapping parts; the later part fades in from `begin` (a share of each overlap)."""
    whole = parts[0]
    for part, start in zip(parts[1:], starts[1:], strict=True):
        overlap = whole.shape[axis] - start
        before, shared = torch.split(whole, [start, overlap], axis)
        own, after = torch.split(part, [overlap, part.shape[axis] - overlap], axis)
        weight = _fade(overlap, begin).to(part).reshape(-1, *[1] * (-1 - axis))
        whole = torch.cat([before, torch.lerp(shared, own, weight), after], axis)
    return whole


def _fade(length: int, begin: float) -> Tensor:
    """0 up to `begin`, then smoothly to 1 at the end, with zero slope at both."""
    place = (torch.arange(length) + 0.5) / length
    x = ((place - begin) / (1 - begin)).clamp(0, 1)
    return x * x * (3 - 2 * x)
