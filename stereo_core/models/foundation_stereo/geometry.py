"""Lookup of the filtered volume and of the all-pairs correlation around a disparity, on a pyramid of both.

B images, C channels, D disparity bins, h = H/4, w = W/4, N = B * h * w pixels, L length of a row to read from,
K = 2 * radius + 1 offsets.
"""

from __future__ import annotations

import torch
from torch import Tensor

from stereo_core.models.foundation_stereo.cost_volume import all_pairs
from stereo_core.models.foundation_stereo.layers import at_least_float32


class GeometryLookup:
    """Volumes of one image pair, ready to be read at any disparity.

    Level 0 holds them as they are, level 1 the means of neighbouring pairs along the disparity (geometry) or along the
    right image's columns (all-pairs). Everything in float32 or wider.
    """

    def __init__(self, volume_BCDhw: Tensor, left_BChw: Tensor, right_BChw: Tensor, levels: int, radius: int):
        B, C, D, h, w = volume_BCDhw.shape
        self.levels, self.radius = levels, radius
        self.size = B, h, w  # not each disparity's: in an exported graph that would be computed in every iteration
        geometry_NDC = at_least_float32(volume_BCDhw).permute(0, 3, 4, 2, 1).reshape(B * h * w, D, C)
        pairs_Nw1 = all_pairs(left_BChw, right_BChw).reshape(B * h * w, w, 1)
        self.geometry = _pyramid(geometry_NDC, levels)
        self.pairs = _pyramid(pairs_Nw1, levels)
        self.column_1h1w = torch.arange(w, device=left_BChw.device, dtype=geometry_NDC.dtype).expand(1, 1, h, w)

    def __call__(self, disp_B1hw: Tensor) -> Tensor:
        """Disparity in quarter-resolution px -> (B, levels * (C + 1) * K, h, w).

        Channel order: for each level, the geometry channels with the K offsets innermost, then the all-pairs offsets.
        """
        B, h, w = self.size
        disp_N = disp_B1hw.reshape(-1)
        match_N = (self.column_1h1w - disp_B1hw).reshape(-1)
        found = []
        for level in range(self.levels):
            scale = 2**level
            found.append(read_around(self.geometry[level], disp_N / scale, self.radius))
            found.append(read_around(self.pairs[level], match_N / scale, self.radius))
        return torch.cat(found, dim=1).reshape(B, h, w, -1).permute(0, 3, 1, 2)


def read_around(rows_NLC: Tensor, centre_N: Tensor, radius: int) -> Tensor:
    """Row n at positions centre[n] - radius .. centre[n] + radius, linear in between, zero outside: (N, C * K)."""
    N, L, C = rows_NLC.shape
    device = rows_NLC.device
    centre_N1 = centre_N.clamp(-radius - 2, L + radius + 1)[:, None]
    base_N1 = centre_N1.floor()
    t_N11 = (centre_N1 - base_N1)[..., None]
    taps_NT = base_N1.long() + torch.arange(-radius, radius + 2, device=device)
    inside_NT1 = ((taps_NT >= 0) & (taps_NT < L))[..., None]
    index_NT = taps_NT.clamp(0, L - 1) + torch.arange(N, device=device)[:, None] * L
    values_NTC = rows_NLC.reshape(N * L, C).index_select(0, index_NT.reshape(-1)).reshape(N, 2 * radius + 2, C)
    values_NTC = values_NTC * inside_NT1
    found_NKC = values_NTC[:, :-1] * (1 - t_N11) + values_NTC[:, 1:] * t_N11
    return found_NKC.transpose(1, 2).reshape(N, C * (2 * radius + 1))


def _pyramid(rows_NLC: Tensor, levels: int) -> list[Tensor]:
    pyramid = [rows_NLC]
    for _ in range(levels - 1):
        finer = pyramid[-1]
        even = finer.shape[1] // 2 * 2
        pyramid.append((finer[:, 0:even:2] + finer[:, 1:even:2]) / 2)
    return pyramid
