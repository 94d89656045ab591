"""Images larger than the network's size, predicted in overlapping tiles.

A pixel at column x of the left image is found at x - d in the right one. In a tile that begins at column s, a pixel
with x - d < s has no partner: the tile guesses there. So where two tiles overlap, the left one decides nearly all of
it, and the right one takes over at the end, as far from its own left edge as can be: a disparity of up to RIGHT_FROM of
the overlap loses nothing. Rows have no such side; there the two fade into each other.
"""

from __future__ import annotations

from collections.abc import Callable
from math import ceil

import torch
from torch import Tensor

from stereo_core.errors import SpecError
from stereo_core.values import size_text

RIGHT_FROM = 7 / 8  # of an overlap's columns, from where on the right tile counts
BELOW_FROM = 0.0


def tiled(
    predict: Callable[[Tensor, Tensor], Tensor], size: tuple[int, int], overlap: tuple[int, int]
) -> Callable[[Tensor, Tensor], Tensor]:
    """Predict in tiles of `size` (height, width) px that overlap by at least `overlap` (rows, columns) px.

    Raises:
        SpecError: a tile would be all overlap.
    """
    if overlap[0] >= size[0] or overlap[1] >= size[1]:
        raise SpecError(
            f"inference.tile_overlap: {list(overlap)} ([height, width]) is no smaller than the tiles, "
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
    """Where tiles begin: as few as possible, evenly spaced, the last one at the end."""
    gaps = max(0, ceil((length - tile) / (tile - overlap)))
    return [round(i * (length - tile) / gaps) for i in range(gaps + 1)] if gaps else [0]


def _joined(parts: list[Tensor], starts: list[int], axis: int, begin: float) -> Tensor:
    """Lay parts over each other; from `begin` (a share of each overlap) on, the later part fades in."""
    whole = parts[0]
    for part, start in zip(parts[1:], starts[1:], strict=True):
        overlap = whole.shape[axis] - start
        before, shared = torch.split(whole, [start, overlap], axis)
        own, after = torch.split(part, [overlap, part.shape[axis] - overlap], axis)
        weight = _fade(overlap, begin).to(part).reshape(-1, *[1] * (-1 - axis))
        whole = torch.cat([before, torch.lerp(shared, own, weight), after], axis)
    return whole


def _fade(length: int, begin: float) -> Tensor:
    """0 up to `begin`, then smoothly towards 1 at the end; both slopes are flat."""
    place = (torch.arange(length) + 0.5) / length
    x = ((place - begin) / (1 - begin)).clamp(0, 1)
    return x * x * (3 - 2 * x)
