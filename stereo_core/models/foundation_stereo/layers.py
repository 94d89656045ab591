"""Small blocks shared by several parts of the network. Attribute names are the checkpoints' key names."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def at_least_float32(x: Tensor) -> Tensor:
    """Convert float16 and bfloat16 to float32; leave float32 and float64 unchanged."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def full_precision(x: Tensor) -> AbstractContextManager[Any]:
    """Disable autocast in a region. Without autocast it does nothing, and so leaves no trace in an exported
    graph."""
    if x.device.type != "meta" and torch.is_autocast_enabled(x.device.type):
        return torch.autocast(x.device.type, enabled=False)
    return nullcontext()


def unit_length(x: Tensor, dim: int) -> Tensor:
    """L2-normalised along `dim`, in float32 or wider."""
    return F.normalize(at_least_float32(x), dim=dim)


def resize(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize bilinearly with aligned corners."""
    return F.interpolate(x, size=size, mode="bilinear", align_corners=True)


class ConvNorm(nn.Module):
    """Convolution, normalisation and LeakyReLU(0.01); the last two may be left out."""

    def __init__(self, conv: nn.Module, norm: nn.Module | None = None, activation: bool = True):
        super().__init__()
        self.conv = conv
        self.bn = norm or nn.Identity()
        self.activation = nn.LeakyReLU(0.01) if activation else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.activation(self.bn(self.conv(x)))


class ResidualConv(nn.Module):
    """ReLU(x + norm(conv(ReLU(norm(conv(x)))))), 3-wide kernels without bias, in two or three dimensions."""

    def __init__(self, dim: int, conv: type[nn.Module], norm: type[nn.Module]):
        super().__init__()
        self.conv1 = conv(dim, dim, 3, padding=1, bias=False)
        self.bn1 = norm(dim)
        self.conv2 = conv(dim, dim, 3, padding=1, bias=False)
        self.bn2 = norm(dim)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.bn1(self.conv1(x)))
        return torch.relu(x + self.bn2(self.conv2(y)))


class ResidualBlock(nn.Module):
    """ReLU(shortcut(x) + ReLU(norm(conv(ReLU(norm(conv(x))))))), with bias; the first convolution may stride."""

    def __init__(self, in_dim: int, out_dim: int, norm: type[nn.Module], stride: int = 1):
        super().__init__()
        self.conv1 = nn.Conv2d(in_dim, out_dim, 3, stride, 1)
        self.conv2 = nn.Conv2d(out_dim, out_dim, 3, padding=1)
        self.norm1 = norm(out_dim)
        self.norm2 = norm(out_dim)
        self.downsample = None
        if stride != 1 or in_dim != out_dim:
            self.norm3 = norm(out_dim)  # checkpoints contain it under both names
            self.downsample = nn.Sequential(nn.Conv2d(in_dim, out_dim, 1, stride), self.norm3)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.norm1(self.conv1(x)))
        y = torch.relu(self.norm2(self.conv2(y)))
        return torch.relu((x if self.downsample is None else self.downsample(x)) + y)


class Mlp(nn.Module):
    """Linear, GELU, linear on the last axis."""

    def __init__(self, dim: int, hidden: int):
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))
