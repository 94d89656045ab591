"""Filtering of the cost volume: a 3-D hourglass of axial-planar convolutions in parallel with a disparity transformer.

B images, C channels, D disparity bins, h = H/4, w = W/4; M = B * h rows of w columns (pixels) of L tokens (bins);
H heads, c channels a head.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stereo_core.models.foundation_stereo.config import FoundationStereoConfig
from stereo_core.models.foundation_stereo.cost_volume import FeatureAttention
from stereo_core.models.foundation_stereo.layers import ConvNorm

LAYERS = 4
DROPOUT = 0.1

Run = Callable[..., Tensor]


def run(part: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    """Call a part; see CostAggregation.forward."""
    return part(*inputs)


class AxialPlanarConv(nn.Module):
    """A 3 x 3 convolution in the image plane, then one of `length` along the disparity; each with BN and ReLU."""

    def __init__(self, in_dim: int, dim: int, length: int = 17):
        super().__init__()
        plane = nn.Conv3d(in_dim, dim, (1, 3, 3), padding=(0, 1, 1))
        depth = nn.Conv3d(dim, dim, (length, 1, 1), padding=(length // 2, 0, 0))
        self.conv1 = nn.Sequential(plane, nn.BatchNorm3d(dim), nn.ReLU())
        self.conv2 = nn.Sequential(depth, nn.BatchNorm3d(dim), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x)
        if x.device.type == "cpu" and torch.is_autocast_enabled("cpu"):
            # torch 2.13's bfloat16 gradient of this convolution writes out of bounds where D is below the padding.
            with torch.autocast("cpu", enabled=False):
                return self.conv2(x.float())
        return self.conv2(x)


class PatchConv3d(nn.Conv3d):
    """A depth-wise convolution whose kernel size equals its stride: on a GPU, one sum of products per patch.

    Libraries have no fast kernel for its gradients: they took 26 of a training step's 247 ms (benchmarks/RESULTS.md).
    """

    def forward(self, volume_BCDhw: Tensor) -> Tensor:
        if volume_BCDhw.device.type != "cuda":
            return super().forward(volume_BCDhw)
        return self.by_patches(volume_BCDhw)

    def by_patches(self, volume_BCDhw: Tensor) -> Tensor:
        """The same by a product and a sum; like a convolution, it ignores an incomplete patch at the end."""
        k = self.kernel_size[0]
        padded = F.pad(volume_BCDhw, [pad for pad in reversed(self.padding) for _ in range(2)])
        size = [n // k * k for n in padded.shape[2:]]
        patches = padded[:, :, : size[0], : size[1], : size[2]]
        for axis in (4, 3, 2):
            patches = patches.unflatten(axis, (-1, k))
        weight_C1k1k1k = self.weight[:, 0, None, :, None, :, None, :].to(patches.dtype)
        y = (patches * weight_C1k1k1k).sum((3, 5, 7), dtype=torch.promote_types(patches.dtype, torch.float32))
        return (y + self.bias[:, None, None, None]).to(volume_BCDhw.dtype)


class DisparityAttention(nn.Module):
    """Self-attention in one of three forms; the same weights were published with all three.

    "disparity": multi-head attention between the tokens of a column, as in the paper and the first release.
    "heads": softmax over the heads within each token (NVlabs since 2025-06-26).
    "tao": the (L, C) projection is read as (heads, L, c) without a transpose.
    """

    def __init__(self, dim: int, heads: int, form: str):
        super().__init__()
        self.heads, self.form = heads, form
        self.q_proj = nn.Linear(dim, dim)
        self.k_proj = nn.Linear(dim, dim)
        self.v_proj = nn.Linear(dim, dim)
        self.out_proj = nn.Linear(dim, dim)

    def split(self, x_MwLC: Tensor) -> Tensor:
        """Separate the heads. Columns are the second dimension: CUDA's fused kernels allow at most 65535 in each of the
        first two, and an image has more columns than that in all."""
        M, w, L, C = x_MwLC.shape
        H, c = self.heads, C // self.heads
        if self.form == "tao":
            return x_MwLC.reshape(M, w * H, L, c)
        if self.form == "heads":
            return x_MwLC.reshape(M, w * L, H, c)
        return x_MwLC.reshape(M, w, L, H, c).transpose(2, 3).reshape(M, w * H, L, c)

    def forward(self, x_MwLC: Tensor) -> Tensor:
        M, w, L, C = x_MwLC.shape
        q, k, v = (self.split(proj(x_MwLC)) for proj in (self.q_proj, self.k_proj, self.v_proj))
        y = F.scaled_dot_product_attention(q, k, v)
        if self.form == "disparity":
            y = y.reshape(M, w, self.heads, L, C // self.heads).transpose(2, 3)
        return self.out_proj(y.reshape(M, w, L, C))


class TransformerLayer(nn.Module):
    """Post-norm."""

    def __init__(self, dim: int, heads: int, form: str, hidden: int):
        super().__init__()
        self.self_attn = DisparityAttention(dim, heads, form)
        self.linear1 = nn.Linear(dim, hidden)
        self.linear2 = nn.Linear(hidden, dim)
        self.norm1 = nn.LayerNorm(dim)
        self.norm2 = nn.LayerNorm(dim)
        self.dropout = nn.Dropout(DROPOUT)

    def forward(self, x_MwLC: Tensor) -> Tensor:
        x_MwLC = self.norm1(x_MwLC + self.dropout(self.self_attn(x_MwLC)))
        hidden = self.dropout(F.gelu(self.linear1(x_MwLC)))
        return self.norm2(x_MwLC + self.dropout(self.linear2(hidden)))


class DisparityTransformer(nn.Module):
    """Volume (B, C, D, h, w) -> the same shape; the bins of each pixel form one sequence."""

    def __init__(self, dim: int, heads: int, form: str, layers: int = LAYERS, hidden: int | None = None):
        super().__init__()
        self.sa = nn.ModuleList(TransformerLayer(dim, heads, form, hidden or dim) for _ in range(layers))

    def forward(self, x_BCDhw: Tensor) -> Tensor:
        B, C, D, h, w = x_BCDhw.shape
        x_MwLC = x_BCDhw.permute(0, 3, 4, 2, 1).reshape(B * h, w, D, C)
        x_MwLC = x_MwLC + sinusoids(D, C, x_MwLC.device).to(x_MwLC.dtype)
        for layer in self.sa:
            x_MwLC = layer(x_MwLC)
        return x_MwLC.reshape(B, h, w, D, C).permute(0, 4, 3, 1, 2)


def sinusoids(length: int, dim: int, device: torch.device) -> Tensor:
    """Position table (length, dim) in float32: even channels sine, odd channels cosine."""
    position = torch.arange(length, device=device, dtype=torch.float32)
    channel = torch.arange(0, dim, 2, device=device, dtype=torch.float32)
    angle = position[:, None] * (channel * (-math.log(10000.0) / dim)).exp()
    return torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(1)


class CostAggregation(nn.Module):
    """Cost volume (B, C, D, h, w) and the left image's features at 1/8, 1/16, 1/32 -> filtered volume, same shape."""

    def __init__(self, config: FoundationStereoConfig):
        super().__init__()
        tao = config.variant == "tao"
        self.transformer_first = not tao
        c = config.widths.volume
        _, f8, f16, f32 = config.feature_dims
        self.conv1 = _down(c, 2 * c)
        self.conv2 = _down(2 * c, 4 * c)
        self.conv3 = _down(4 * c, 6 * c)
        self.conv3_up = _up(6 * c, 4 * c)
        self.conv2_up = _up(4 * c, 2 * c)
        self.conv1_up = _up(2 * c, c)
        self.conv_out = nn.Sequential(AxialPlanarConv(c, c), AxialPlanarConv(c, c))
        self.agg_0 = _merge(8 * c, 4 * c, nn.Conv3d)
        self.agg_1 = _merge(4 * c, 2 * c, nn.ConvTranspose3d if tao else nn.Conv3d)
        transformer = DisparityTransformer(c, config.widths.volume_heads, config.disparity_attention)
        self.atts = nn.ModuleDict({"4": transformer})
        padding = (1, 1, 0) if tao else 0
        self.conv_patch = nn.Sequential(PatchConv3d(c, c, 4, 4, padding, groups=c), nn.BatchNorm3d(c))
        self.feature_att_8 = FeatureAttention(f8, 2 * c, not tao)
        self.feature_att_16 = FeatureAttention(f16, 4 * c, not tao)
        self.feature_att_32 = FeatureAttention(f32, 6 * c, not tao)
        self.feature_att_up_16 = FeatureAttention(f16, 4 * c, not tao)
        self.feature_att_up_8 = FeatureAttention(f8, 2 * c, not tao)

    def forward(self, volume: Tensor, x8: Tensor, x16: Tensor, x32: Tensor, run: Run = run) -> Tensor:
        """`run` calls a part with its inputs; it may compute the part again for the gradients."""
        volume = run(self.hourglass, volume, x8, x16, x32) + run(self.along_disparity, volume)
        for part in self.conv_out:
            volume = run(part, volume)
        return volume

    def hourglass(self, volume: Tensor, x8: Tensor, x16: Tensor, x32: Tensor) -> Tensor:
        v8 = self.feature_att_8(self.conv1(volume), x8)
        v16 = self.feature_att_16(self.conv2(v8), x16)
        v32 = self.feature_att_32(self.conv3(v16), x32)
        v16 = self.agg_0(torch.cat([self.conv3_up(v32), v16], dim=1))
        v16 = self.feature_att_up_16(v16, x16)
        v8 = self.agg_1(torch.cat([self.conv2_up(v16), v8], dim=1))
        v8 = self.feature_att_up_8(v8, x8)
        return self.conv1_up(v8)

    def along_disparity(self, volume: Tensor) -> Tensor:
        patches = self.conv_patch(volume)
        if self.transformer_first:
            return enlarge(self.atts["4"](patches))
        return self.atts["4"](enlarge(patches))


def enlarge(volume: Tensor) -> Tensor:
    return F.interpolate(volume, scale_factor=4, mode="trilinear", align_corners=False)


def _down(in_dim: int, dim: int) -> nn.Sequential:
    conv = nn.Conv3d(in_dim, dim, 3, 2, 1, bias=False)
    return nn.Sequential(ConvNorm(conv, nn.BatchNorm3d(dim)), AxialPlanarConv(dim, dim))


def _up(in_dim: int, dim: int) -> ConvNorm:
    return ConvNorm(nn.ConvTranspose3d(in_dim, dim, 4, 2, 1, bias=False), nn.BatchNorm3d(dim))


def _merge(in_dim: int, dim: int, conv: type[nn.Module]) -> nn.Sequential:
    first = ConvNorm(conv(in_dim, dim, 1, bias=False), nn.BatchNorm3d(dim))
    return nn.Sequential(first, AxialPlanarConv(dim, dim), AxialPlanarConv(dim, dim))
