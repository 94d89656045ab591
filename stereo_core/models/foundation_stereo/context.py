"""Context network: initial state and context from the left image, for each level of the recurrent refinement.

B images, H, W image size, h = H/4, w = W/4.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from stereo_core.models.foundation_stereo.config import FoundationStereoConfig
from stereo_core.models.foundation_stereo.layers import ConvNorm, ResidualBlock


class ContextNetwork(nn.Module):
    """Left image (B, 3, H, W) and its ViT feature at 1/4 -> for 1/4, 1/8, 1/16 the pair (state, context), each
    with `hidden` channels and before activation."""

    def __init__(self, config: FoundationStereoConfig):
        super().__init__()
        d1, d2, d4 = config.widths.context
        dim = config.widths.hidden
        self.levels = config.n_gru_layers
        batch_norm = config.variant != "tao"
        self.conv1 = nn.Conv2d(3, d1, 7, padding=3)
        self.norm1 = nn.BatchNorm2d(d1)
        self.layer1 = _layer(d1, d1, 1)
        self.layer2 = _layer(d1, d2, 2)
        self.layer3 = _layer(d2, d4, 2)
        fuse = nn.Conv2d(d4 + config.vit.features // 2, dim, 3, padding=1, bias=False)
        self.conv2 = ConvNorm(fuse, nn.BatchNorm2d(dim) if batch_norm else nn.InstanceNorm2d(dim))
        self.outputs04 = _heads(dim, block=True)
        if self.levels > 1:
            self.layer4 = _layer(dim, dim, 2)
            self.outputs08 = _heads(dim, block=True)
        if self.levels > 2:
            self.layer5 = _layer(dim, dim, 2)
            self.outputs16 = _heads(dim, block=False)
        # Checkpoints contain these; the network does not use them:
        self.down = nn.Sequential(nn.Conv2d(dim, dim, 4, 4), nn.BatchNorm2d(dim))
        self.norm = nn.BatchNorm2d(2 * dim)
        for unused in (self.down, self.norm):
            unused.requires_grad_(False)

    def forward(self, left_B3HW: Tensor, vit_BChw: Tensor) -> list[tuple[Tensor, Tensor]]:
        x = torch.relu(self.norm1(self.conv1(left_B3HW)))
        x = self.layer3(self.layer2(self.layer1(x)))
        x = self.conv2(torch.cat([x, vit_BChw.to(x.dtype)], dim=1))
        outputs = [_apply(self.outputs04, x)]
        if self.levels > 1:
            x = self.layer4(x)
            outputs.append(_apply(self.outputs08, x))
        if self.levels > 2:
            x = self.layer5(x)
            outputs.append(_apply(self.outputs16, x))
        return outputs


class ChannelAttention(nn.Module):
    """Sigmoid weight per channel from its global mean and maximum (CBAM: Woo et al. 2018)."""

    def __init__(self, dim: int, hidden: int):
        super().__init__()
        self.fc = nn.Sequential(nn.Conv2d(dim, hidden, 1, bias=False), nn.ReLU(), nn.Conv2d(hidden, dim, 1, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        mean, peak = x.mean((2, 3), keepdim=True), x.amax((2, 3), keepdim=True)
        return (self.fc(mean) + self.fc(peak)).sigmoid()


class SpatialAttention(nn.Module):
    """Sigmoid weight per pixel from its mean and maximum over the channels."""

    def __init__(self) -> None:
        super().__init__()
        self.samconv = nn.Conv2d(2, 1, 7, padding=3, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        summary = torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], dim=1)
        return self.samconv(summary).sigmoid()


def _layer(in_dim: int, dim: int, stride: int) -> nn.Sequential:
    return nn.Sequential(ResidualBlock(in_dim, dim, nn.BatchNorm2d, stride), ResidualBlock(dim, dim, nn.BatchNorm2d))


def _heads(dim: int, block: bool) -> nn.ModuleList:
    def head() -> nn.Module:
        conv = nn.Conv2d(dim, dim, 3, padding=1)
        return nn.Sequential(ResidualBlock(dim, dim, nn.BatchNorm2d), conv) if block else conv

    return nn.ModuleList([head(), head()])


def _apply(heads: nn.ModuleList, x: Tensor) -> tuple[Tensor, Tensor]:
    return heads[0](x), heads[1](x)
