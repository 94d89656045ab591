"""Image features: EdgeNeXt, decoded to 1/4, 1/8, 1/16, and joined with the Depth Anything V2 feature at 1/4.

B images, C channels, H, W image size, h = H/4, w = W/4.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from stereo_core.models.foundation_stereo.config import FoundationStereoConfig, Widths
from stereo_core.models.foundation_stereo.dpt import DepthAnything
from stereo_core.models.foundation_stereo.edgenext import make_stages, make_stem
from stereo_core.models.foundation_stereo.layers import ConvNorm, ResidualBlock, ResidualConv


class UpFuse(nn.Module):
    """Double the resolution of the coarse map, concatenate the skip connection, and mix both."""

    def __init__(self, in_dim: int, skip_dim: int):
        super().__init__()
        self.conv1 = ConvNorm(nn.ConvTranspose2d(in_dim, skip_dim, 4, 2, 1, bias=False), nn.InstanceNorm2d(skip_dim))
        self.conv2 = ResidualConv(2 * skip_dim, nn.Conv2d, nn.InstanceNorm2d)

    def forward(self, coarse: Tensor, skip: Tensor) -> Tensor:
        return self.conv2(torch.cat([self.conv1(coarse), skip], dim=1))


class ConvolutionalFeatures(nn.Module):
    """EdgeNeXt and its decoder."""

    def __init__(self, widths: Widths):
        super().__init__()
        d4, d8, d16, d32 = widths.edgenext_dims
        self.stem = make_stem(d4)
        self.stages = make_stages(widths.edgenext_dims, widths.edgenext_depths, widths.edgenext_heads)
        self.deconv32_16 = UpFuse(d32, d16)
        self.deconv16_8 = UpFuse(2 * d16, d8)
        self.deconv8_4 = UpFuse(2 * d8, d4)

    def convolutional(self, image_B3HW: Tensor) -> list[Tensor]:
        """Decoded EdgeNeXt features at 1/4, 1/8, 1/16, 1/32."""
        x4 = self.stages[0](self.stem(image_B3HW))
        x8 = self.stages[1](x4)
        x16 = self.stages[2](x8)
        x32 = self.stages[3](x16)
        x16 = self.deconv32_16(x32, x16)
        x8 = self.deconv16_8(x16, x8)
        return [self.deconv8_4(x8, x4), x8, x16, x32]


class Features(ConvolutionalFeatures):
    """ImageNet-normalised images (B, 3, H, W) -> features at 1/4, 1/8, 1/16, 1/32, and the ViT feature at 1/4."""

    def __init__(self, config: FoundationStereoConfig):
        super().__init__(config.widths)
        c4 = config.feature_dims[0]
        self.dino = DepthAnything(config.vit, config.train_vit)
        self.conv4 = nn.Sequential(
            ConvNorm(nn.Conv2d(c4, c4, 3, padding=1, bias=False), nn.InstanceNorm2d(c4)),
            ResidualBlock(c4, c4, nn.InstanceNorm2d),
            ResidualBlock(c4, c4, nn.InstanceNorm2d),
        )

    def forward(self, image_B3HW: Tensor) -> tuple[list[Tensor], Tensor]:
        vit_BChw = self.dino(image_B3HW)
        return self.joined(self.convolutional(image_B3HW), vit_BChw), vit_BChw

    def joined(self, features: list[Tensor], vit_BChw: Tensor) -> list[Tensor]:
        """The features, the one at 1/4 joined with the ViT's."""
        x4, *coarser = features
        return [self.conv4(torch.cat([x4, vit_BChw.to(x4.dtype)], dim=1)), *coarser]
