"""Lookup around a disparity in the filtered volume and the all-pairs correlation, with a pyramid of both.

B images, C channels, D disparity bins, h = H/4, w = W/4, N = B * h * w pixels, K = 2 * radius + 1 offsets.
"""

from __future__ import annotations

import torch
from torch import Tensor

from stereo_core.models.foundation_stereo.cost_volume import all_pairs
from stereo_core.models.foundation_stereo.layers import at_least_float32
from stereo_core.models.foundation_stereo.rows import Rows


class GeometryLookup:
    """Volumes of one image pair, which can be read at any disparity.

    Level 0 holds them unchanged; level 1 holds the means of two neighbours along the disparity (geometry) or along the
    right image's columns (all-pairs). All in float32 or wider.
    """

    def __init__(self, volume_BCDhw: Tensor, left_BChw: Tensor, right_BChw: Tensor, levels: int, radius: int):
        B, C, D, h, w = volume_BCDhw.shape
        self.levels = levels
        self.size = B, h, w  # read once here: an exported graph would compute a disparity's size in every iteration
        geometry_NDC = at_least_float32(volume_BCDhw).permute(0, 3, 4, 2, 1).reshape(B * h * w, D, C)
        pairs_Nw1 = all_pairs(left_BChw, right_BChw).reshape(B * h * w, w, 1)
        by_level = zip(_pyramid(geometry_NDC, levels), _pyramid(pairs_Nw1, levels), strict=True)
        self.rows = Rows([table for both in by_level for table in both], radius)
        self.column_1h1w = torch.arange(w, device=left_BChw.device, dtype=geometry_NDC.dtype).expand(1, 1, h, w)

    def __call__(self, disp_B1hw: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """Disparity in quarter-resolution px -> (B, levels * (C + 1) * K, h, w) in `dtype`.

        Channel order: for each level, the geometry channels with the K offsets innermost, then the all-pairs offsets.
        """
        B, h, w = self.size
        disp_N = disp_B1hw.reshape(-1)
        match_N = (self.column_1h1w - disp_B1hw).reshape(-1)
        centres = [where_N / 2**level for level in range(self.levels) for where_N in (disp_N, match_N)]
        return self.rows.read(centres, dtype).reshape(B, h, w, -1).permute(0, 3, 1, 2)


def _pyramid(rows_NLC: Tensor, levels: int) -> list[Tensor]:
    pyramid = [rows_NLC]
    for _ in range(levels - 1):
        finer = pyramid[-1]
        even = finer.shape[1] // 2 * 2
        pyramid.append((finer[:, 0:even:2] + finer[:, 1:even:2]) / 2)
    return pyramid
