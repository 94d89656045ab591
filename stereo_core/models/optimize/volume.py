"""A faster cost volume and filter: channels in multiples of eight, 2-D convolutions for planes, no float32 copies.

B images, C channels, D disparity bins, h = H/4, w = W/4, N columns (pixels) of L tokens (bins), H heads, c channels a
head.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stereo_core.models.foundation_stereo.aggregation import DisparityTransformer, TransformerLayer, sinusoids
from stereo_core.models.foundation_stereo.cost_volume import SlicedConv3d
from stereo_core.models.foundation_stereo.layers import at_least_float32, unit_length
from stereo_core.models.optimize.channels import aligned_linear, convolution, linear, pad_rows
from stereo_core.models.optimize.lookup import rounded_up

MOST_COLUMNS = 65535  # limit of CUDA's fused attention per call


def all_pairs(left_BChw: Tensor, right_BChw: Tensor) -> Tensor:
    """As `cost_volume.all_pairs`, normalised in float32 and multiplied in the features' type: (B, h, w, w)."""
    return _products(*(unit_length(x, 1).to(x.dtype) for x in (left_BChw, right_BChw)))


def _products(left_BChw: Tensor, right_BChw: Tensor) -> Tensor:
    return left_BChw.permute(0, 2, 3, 1) @ right_BChw.permute(0, 2, 1, 3)


def group_correlation(left_BChw: Tensor, right_BChw: Tensor, bins: int, groups: int, normalised: bool = True) -> Tensor:
    """As `cost_volume.group_correlation`, but it reads the band from the products without a padded copy."""
    B, C, h, w = left_BChw.shape
    left, right = (x.reshape(B * groups, C // groups, h, w) for x in (left_BChw, right_BChw))
    pairs = (all_pairs if normalised else _products)(left, right).reshape(B, groups, h, w, w)
    column = torch.arange(w, device=left.device)
    match_Dw = column - torch.arange(bins, device=left.device)[:, None]
    band = pairs[..., column.expand(bins, w), match_Dw.clamp(min=0)] * (match_Dw >= 0)
    return band.permute(0, 1, 3, 2, 4)


class PlaneConv(nn.Module):
    """A (1, k, k) convolution of volumes, computed as one of images."""

    def __init__(self, conv: nn.Conv3d):
        super().__init__()
        self.conv = convolution(conv.weight[:, :, 0], conv.bias)

    def forward(self, x_BCDhw: Tensor) -> Tensor:
        B, C, D, h, w = x_BCDhw.shape
        y = self.conv(x_BCDhw.transpose(1, 2).reshape(B * D, C, h, w))
        return y.reshape(B, D, -1, h, w).transpose(1, 2)


class DepthConv(nn.Module):
    """A (k, 1, 1) convolution of volumes, computed as one of images: rows are the bins, columns are all pixels."""

    def __init__(self, conv: nn.Conv3d):
        super().__init__()
        self.conv = convolution(conv.weight[..., 0], conv.bias)

    def forward(self, x_BCDhw: Tensor) -> Tensor:
        B, C, D, h, w = x_BCDhw.shape
        return self.conv(x_BCDhw.reshape(B, C, D, h * w)).reshape(B, -1, D, h, w)


class ToOneVolume(nn.Module):
    """`SlicedConv3d` with the number of slices rounded up, channels-last throughout."""

    def __init__(self, conv: SlicedConv3d):
        super().__init__()
        self.K = conv.kernel_size[0]
        self.slices = convolution(pad_rows(conv.weight[0].transpose(0, 1), rounded_up(self.K)), None)
        self.bias = nn.Parameter(conv.bias.detach().clone())

    def forward(self, volume_BCDhw: Tensor) -> Tensor:
        B, C, D, h, w = volume_BCDhw.shape
        slices = self.slices(volume_BCDhw.transpose(1, 2).reshape(B * D, C, h, w)).reshape(B, D, -1, h, w)
        slices = F.pad(at_least_float32(slices), (0, 0, 0, 0, 0, 0, self.K // 2, self.K // 2))
        moved = [slices[:, k : k + D, k] for k in range(self.K)]
        return sum(moved[1:], moved[0] + self.bias)[:, None]


class FastAttention(nn.Module):
    """Attention in the forms "disparity" and "heads", with its three projections joined and each head padded with
    zeros."""

    def __init__(self, attention: nn.Module):
        super().__init__()
        self.H, self.form = attention.heads, attention.form
        C = attention.q_proj.in_features
        self.c = rounded_up(C // self.H)
        self.scale = (C // self.H) ** -0.5
        lanes = rounded_up(C)
        projections = (attention.q_proj, attention.k_proj, attention.v_proj)
        weight = torch.cat([self._padded_heads(p.weight) for p in projections])
        bias = torch.cat([self._padded_heads(p.bias) for p in projections])
        self.qkv = linear(F.pad(weight, (0, lanes - C)), bias)
        out = self._padded_heads(attention.out_proj.weight.transpose(0, 1)).transpose(0, 1)
        self.out = linear(pad_rows(out, lanes), pad_rows(attention.out_proj.bias, lanes))

    def _padded_heads(self, x: Tensor) -> Tensor:
        heads = x.detach().reshape(self.H, -1, *x.shape[1:])
        return torch.cat([pad_rows(head, self.c) for head in heads])

    def forward(self, x_NLC: Tensor) -> Tensor:
        N, L, _ = x_NLC.shape
        qkv = self.qkv(x_NLC).reshape(N, L, 3, self.H, self.c)
        y = self._between_heads(*qkv.unbind(2)) if self.form == "heads" else self._between_tokens(qkv)
        return self.out(y.reshape(N, L, self.H * self.c))

    def _between_tokens(self, qkv: Tensor) -> Tensor:
        chunks = qkv.permute(2, 0, 3, 1, 4).split(MOST_COLUMNS, dim=1)
        parts = [F.scaled_dot_product_attention(*chunk, scale=self.scale) for chunk in chunks]
        return (parts[0] if len(parts) == 1 else torch.cat(parts)).transpose(1, 2)

    def _between_heads(self, q_NLHc: Tensor, k_NLHc: Tensor, v_NLHc: Tensor) -> Tensor:
        """Sums of products: an attention kernel would spend a whole block on each token's few heads."""
        q, k, v = (at_least_float32(x) for x in (q_NLHc, k_NLHc, v_NLHc))
        weight_NLHH = ((q[..., :, None, :] * k[..., None, :, :]).sum(-1) * self.scale).softmax(-1)
        return (weight_NLHH[..., None] * v[..., None, :, :]).sum(-2).to(q_NLHc.dtype)


class FastLayer(nn.Module):
    """A layer of the disparity transformer whose tokens are padded with zero channels."""

    def __init__(self, layer: TransformerLayer):
        super().__init__()
        self.C = layer.linear1.in_features
        lanes = rounded_up(self.C)
        self.attention = FastAttention(layer.self_attn)
        self.linear1, self.linear2 = aligned_linear(layer.linear1), aligned_linear(layer.linear2)
        self.norm1, self.norm2 = (PaddedNorm(norm, lanes) for norm in (layer.norm1, layer.norm2))

    def forward(self, x_NLC: Tensor) -> Tensor:
        x_NLC = self.norm1(x_NLC + self.attention(x_NLC))
        return self.norm2(x_NLC + self.linear2(F.gelu(self.linear1(x_NLC))))


class PaddedNorm(nn.Module):
    """Layer normalisation over the first C channels; the others are zero before and after it."""

    def __init__(self, norm: nn.LayerNorm, lanes: int):
        super().__init__()
        self.C, self.eps = norm.normalized_shape[0], norm.eps
        self.weight = nn.Parameter(pad_rows(norm.weight.detach(), lanes))
        self.bias = nn.Parameter(pad_rows(norm.bias.detach(), lanes))

    def forward(self, x_NLC: Tensor) -> Tensor:
        x = x_NLC.to(torch.promote_types(x_NLC.dtype, torch.float32))
        mean = x.sum(-1, keepdim=True) / self.C
        variance = (x * x).sum(-1, keepdim=True) / self.C - mean * mean
        x = (x - mean) * (variance + self.eps).rsqrt() * self.weight + self.bias
        return x.to(x_NLC.dtype)


class FastTransformer(nn.Module):
    def __init__(self, transformer: DisparityTransformer):
        super().__init__()
        self.layers = nn.ModuleList(FastLayer(layer) for layer in transformer.sa)
        self.C = self.layers[0].C

    def forward(self, x_BCDhw: Tensor) -> Tensor:
        B, lanes, D, h, w = x_BCDhw.shape
        x_NLC = x_BCDhw.permute(0, 3, 4, 2, 1).reshape(B * h * w, D, lanes)
        table = F.pad(sinusoids(D, self.C, x_NLC.device), (0, lanes - self.C)).to(x_NLC.dtype)
        x_NLC = x_NLC + table
        for layer in self.layers:
            x_NLC = layer(x_NLC)
        return x_NLC.reshape(B, h, w, D, lanes).permute(0, 4, 3, 1, 2)


class UnpaddedTransformer(nn.Module):
    """The original transformer between padded volumes, for the form "tao", which mixes all channels."""

    def __init__(self, transformer: DisparityTransformer):
        super().__init__()
        self.transformer = transformer
        self.C = transformer.sa[0].linear1.in_features

    def forward(self, x_BCDhw: Tensor) -> Tensor:
        y = self.transformer(x_BCDhw[:, : self.C])
        return F.pad(y, (0, 0, 0, 0, 0, 0, 0, x_BCDhw.shape[1] - self.C))
