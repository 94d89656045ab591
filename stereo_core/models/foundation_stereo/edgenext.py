"""EdgeNeXt (Maaz et al. 2022): convolution blocks, each stage but the first ending in a split-transpose block.

B images, C channels, H, W size of the map, N = H * W tokens. LayerNorms act on channels, eps 1e-6.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from stereo_core.models.foundation_stereo.layers import Mlp, unit_length

LAYER_SCALE = 1e-6
FREQUENCIES = 32  # each for rows and for columns


class ChannelNorm(nn.LayerNorm):
    """LayerNorm over the channels of a (B, C, H, W) map."""

    def __init__(self, dim: int):
        super().__init__(dim, eps=1e-6)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return super().forward(x_BCHW.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class ConvBlock(nn.Module):
    def __init__(self, dim: int, kernel: int):
        super().__init__()
        self.gamma = nn.Parameter(torch.full((dim,), LAYER_SCALE))
        self.conv_dw = nn.Conv2d(dim, dim, kernel, padding=kernel // 2, groups=dim)
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = Mlp(dim, 4 * dim)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        y_BHWC = self.conv_dw(x_BCHW).permute(0, 2, 3, 1)
        y_BHWC = self.gamma * self.mlp(self.norm(y_BHWC))
        return x_BCHW + y_BHWC.permute(0, 3, 1, 2)


class CrossCovarianceAttention(nn.Module):
    """Attention between channels (El-Nouby et al. 2021)."""

    def __init__(self, dim: int, heads: int):
        super().__init__()
        self.heads = heads
        self.temperature = nn.Parameter(torch.ones(heads, 1, 1))
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x_BNC: Tensor) -> Tensor:
        B, N, C = x_BNC.shape
        q, k, v = self.qkv(x_BNC).reshape(B, N, 3, self.heads, C // self.heads).permute(2, 0, 3, 4, 1).unbind(0)
        weight = (unit_length(q, -1) @ unit_length(k, -1).transpose(-2, -1)) * self.temperature
        y = weight.softmax(dim=-1).to(v.dtype) @ v
        return self.proj(y.permute(0, 3, 1, 2).reshape(B, N, C))


class FourierPositions(nn.Module):
    """Sine and cosine maps of row and column, projected to C channels; tables in float32."""

    def __init__(self, dim: int):
        super().__init__()
        self.token_projection = nn.Conv2d(2 * FREQUENCIES, dim, 1)

    def forward(self, H: int, W: int) -> Tensor:
        device = self.token_projection.weight.device
        rows_HF = _sinusoids(H, device)
        cols_WF = _sinusoids(W, device)
        table_HWF = torch.cat(
            [rows_HF[:, None].expand(H, W, FREQUENCIES), cols_WF[None].expand(H, W, FREQUENCIES)], dim=-1
        )
        return self.token_projection(table_HWF.permute(2, 0, 1)[None].to(self.token_projection.weight.dtype))


def _sinusoids(size: int, device: torch.device) -> Tensor:
    """(size, 32): sine at even, cosine at odd channels, of positions 1..size scaled to 2 pi."""
    position = torch.arange(1, size + 1, device=device, dtype=torch.float32)
    position = position / (size + 1e-6) * (2 * math.pi)
    channel = torch.arange(0, FREQUENCIES, 2, device=device, dtype=torch.float32)
    angle = position[:, None] / 10000 ** (channel / FREQUENCIES)
    return torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(1)


class SplitTransposeBlock(nn.Module):
    """Depth-wise convolutions over growing channel splits, channel attention and MLP, with one residual connection."""

    def __init__(self, dim: int, splits: int, heads: int, positions: bool):
        super().__init__()
        self.width = math.ceil(dim / splits)
        self.gamma_xca = nn.Parameter(torch.full((dim,), LAYER_SCALE))
        self.gamma = nn.Parameter(torch.full((dim,), LAYER_SCALE))
        self.convs = nn.ModuleList(
            nn.Conv2d(self.width, self.width, 3, padding=1, groups=self.width) for _ in range(splits - 1)
        )
        self.pos_embd = FourierPositions(dim) if positions else None
        self.norm_xca = nn.LayerNorm(dim, eps=1e-6)
        self.xca = CrossCovarianceAttention(dim, heads)
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = Mlp(dim, 4 * dim)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        B, C, H, W = x_BCHW.shape
        *chunks, rest = x_BCHW.split(self.width, dim=1)
        mixed: list[Tensor] = []
        for conv, chunk in zip(self.convs, chunks, strict=True):
            mixed.append(conv(chunk + mixed[-1] if mixed else chunk))
        y_BCHW = torch.cat([*mixed, rest], dim=1)
        if self.pos_embd is not None:
            y_BCHW = y_BCHW + self.pos_embd(H, W)
        y_BNC = y_BCHW.flatten(2).transpose(1, 2)
        y_BNC = y_BNC + self.gamma_xca * self.xca(self.norm_xca(y_BNC))
        y_BNC = self.gamma * self.mlp(self.norm(y_BNC))
        return x_BCHW + y_BNC.transpose(1, 2).reshape(B, C, H, W)


class Stage(nn.Module):
    """Stage i of 0..3: kernels 3, 5, 7, 9; splits -, 2, 3, 4; halves the resolution except stage 0."""

    def __init__(self, i: int, dims: tuple[int, ...], depth: int, heads: int):
        super().__init__()
        dim, kernel = dims[i], 3 + 2 * i
        self.downsample = nn.Identity()
        if i > 0:
            self.downsample = nn.Sequential(ChannelNorm(dims[i - 1]), nn.Conv2d(dims[i - 1], dim, 2, 2))
        blocks: list[nn.Module] = [ConvBlock(dim, kernel) for _ in range(depth - (i > 0))]
        if i > 0:
            blocks.append(SplitTransposeBlock(dim, i + 1, heads, positions=i == 1))
        self.blocks = nn.Sequential(*blocks)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return self.blocks(self.downsample(x_BCHW))


def make_stem(dim: int) -> nn.Sequential:
    """Image (B, 3, H, W) -> (B, dim, H/4, W/4)."""
    return nn.Sequential(nn.Conv2d(3, dim, 4, 4), ChannelNorm(dim))


def make_stages(dims: tuple[int, ...], depths: tuple[int, ...], heads: int) -> nn.ModuleList:
    return nn.ModuleList(Stage(i, dims, depths[i], heads) for i in range(4))
