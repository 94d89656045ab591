"""The cost volume at quarter resolution, and the initial disparity computed from the filtered one.

B images, C channels, G groups, D disparity bins (one per quarter-resolution pixel), h = H/4, w = W/4.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stereo_core.models.foundation_stereo.layers import (
    ConvNorm,
    ResidualConv,
    at_least_float32,
    full_precision,
    unit_length,
)


def all_pairs(left_BChw: Tensor, right_BChw: Tensor) -> Tensor:
    """Cosine of every left with every right pixel of the same row, in [-1, 1]: (B, h, w left, w right)."""
    return _products(unit_length(left_BChw, 1), unit_length(right_BChw, 1))


def _products(left_BChw: Tensor, right_BChw: Tensor) -> Tensor:
    """Dot product of every left with every right pixel of the same row, in float32 or wider."""
    with full_precision(left_BChw):
        left, right = at_least_float32(left_BChw), at_least_float32(right_BChw)
        return left.permute(0, 2, 3, 1) @ right.permute(0, 2, 1, 3)


def group_correlation(left_BChw: Tensor, right_BChw: Tensor, bins: int, groups: int, normalised: bool = True) -> Tensor:
    """Cosine (or dot product) of left(x) and right(x - d) within each group of channels, 0 where x < d:
    (B, G, D, h, w).

    One matrix product multiplies all pixel pairs of a row. Its band of diagonals is extracted by padding each row to
    w + D - 1 and reading it with stride w + D, so no volume with C channels is needed.
    """
    B, C, h, w = left_BChw.shape
    left = left_BChw.reshape(B * groups, C // groups, h, w)
    right = right_BChw.reshape(B * groups, C // groups, h, w)
    pairs = (all_pairs if normalised else _products)(left, right).reshape(B, groups, h, w, w)
    padded = F.pad(pairs, (bins - 1, 0)).reshape(B, groups, h, w * (w + bins - 1))
    band = F.pad(padded, (0, w)).reshape(B, groups, h, w, w + bins)[..., :bins]  # column k holds d = D - 1 - k
    return band.flip(-1).permute(0, 1, 4, 2, 3)


def concatenation(left_BChw: Tensor, right_BChw: Tensor, bins: int) -> Tensor:
    """Left features, equal for every d, stacked with right features shifted by d, 0 where x < d: (B, 2C, D, h, w)."""
    B, C, h, w = left_BChw.shape
    column = torch.arange(w, device=left_BChw.device)
    shift = torch.arange(bins, device=left_BChw.device)
    index_Dw = column[None, :] - shift[:, None] + (bins - 1)
    moved = F.pad(right_BChw, (bins - 1, 0)).index_select(3, index_Dw.flatten())
    moved_BCDhw = moved.reshape(B, C, h, bins, w).permute(0, 1, 3, 2, 4)
    return torch.cat([left_BChw[:, :, None].expand(B, C, bins, h, w), moved_BCDhw], dim=1)


def expected_disparity(logits_B1Dhw: Tensor) -> Tensor:
    """Mean of softmax(logits) over the bins, in quarter-resolution px: (B, 1, h, w), float32 or wider."""
    weight = at_least_float32(logits_B1Dhw[:, 0]).softmax(dim=1)
    bins = torch.arange(weight.shape[1], device=weight.device, dtype=weight.dtype)
    return (weight * bins[:, None, None]).sum(1, keepdim=True)


class FeatureAttention(nn.Module):
    """Scale the volume's channels by a sigmoid of the left image's features, equal for every d."""

    def __init__(self, feature_dim: int, volume_dim: int, batch_norm: bool):
        super().__init__()
        half = feature_dim // 2
        norm = nn.BatchNorm2d(half) if batch_norm else nn.InstanceNorm2d(half)
        self.feat_att = nn.Sequential(
            ConvNorm(nn.Conv2d(feature_dim, half, 1, bias=False), norm), nn.Conv2d(half, volume_dim, 1)
        )

    def forward(self, volume_BCDhw: Tensor, feature_BChw: Tensor) -> Tensor:
        return self.feat_att(feature_BChw).sigmoid()[:, :, None] * volume_BCDhw


class SlicedConv3d(nn.Conv3d):
    """A 3-D convolution of odd size K to one channel, computed in the image plane: one 2-D convolution to K channels,
    one per slice of the kernel along D; the results are shifted along D and summed.

    Libraries have no fast kernel for a 3-D convolution to a single channel: this takes a quarter of the time on a CPU,
    and the gradients far less on a GPU.
    """

    def forward(self, volume_BCDhw: Tensor) -> Tensor:
        B, C, D, h, w = volume_BCDhw.shape
        K = self.kernel_size[0]
        planes = volume_BCDhw.transpose(1, 2).reshape(B * D, C, h, w)
        slices = F.conv2d(planes, self.weight[0].transpose(0, 1), padding=K // 2).reshape(B, D, K, h, w)
        slices = F.pad(at_least_float32(slices), (0, 0, 0, 0, 0, 0, K // 2, K // 2))
        moved = [slices[:, k : k + D, k] for k in range(K)]
        return sum(moved[1:], moved[0] + self.bias)[:, None]


def make_stem(in_dim: int, dim: int, batch_norm: bool) -> nn.Sequential:
    norm = nn.BatchNorm3d(dim) if batch_norm else nn.InstanceNorm3d(dim)
    return nn.Sequential(
        nn.Conv3d(in_dim, dim, 1),
        ConvNorm(nn.Conv3d(dim, dim, 3, padding=1, bias=False), norm),
        ResidualConv(dim, nn.Conv3d, nn.BatchNorm3d),
        ResidualConv(dim, nn.Conv3d, nn.BatchNorm3d),
    )


def make_classifier(dim: int, batch_norm: bool) -> nn.Sequential:
    """Filtered volume -> one logit per bin."""
    half = dim // 2
    norm = nn.BatchNorm3d(half) if batch_norm else nn.InstanceNorm3d(half)
    return nn.Sequential(
        ConvNorm(nn.Conv3d(dim, half, 3, padding=1, bias=False), norm),
        ResidualConv(half, nn.Conv3d, nn.BatchNorm3d),
        SlicedConv3d(half, 1, 7, padding=3),
    )
