"""The searched cost volume filter of the pruned network, bp2: lists of layers where the classic one has fixed stages.

B images, C channels, D disparity bins, h = H/4, w = W/4.
"""

from __future__ import annotations

from torch import Tensor, nn

from stereo_core.models.foundation_stereo.aggregation import (
    AxialPlanarConv,
    CostAggregation,
    DisparityTransformer,
    enlarge,
)
from stereo_core.models.foundation_stereo.config import FoundationStereoConfig
from stereo_core.models.foundation_stereo.cost_volume import FeatureAttention
from stereo_core.models.foundation_stereo.layers import ConvNorm, ResidualConv

FEED_FORWARD = 4  # hidden width of the disparity transformer's layer, in widths of the volume


def apply_layers(layers: nn.ModuleList | nn.Sequential, volume: Tensor, feature: Tensor | None) -> Tensor:
    """One after the other; a feature attention also reads the left image's feature."""
    for layer in layers:
        volume = layer(volume, feature) if isinstance(layer, FeatureAttention) else layer(volume)
    return volume


class Layers(nn.Module):
    """Volume and left feature of its scale -> volume."""

    def __init__(self, *layers: nn.Module):
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, volume: Tensor, feature: Tensor | None = None) -> Tensor:
        return apply_layers(self.layers, volume, feature)


class Merge(nn.Module):
    """Coarse volume, made fine by `upsample`, plus the skip, through `out`."""

    def __init__(self, upsample: list[nn.Module], out: list[nn.Module]):
        super().__init__()
        self.upsample = nn.ModuleList(upsample)
        self.out = nn.ModuleList(out)

    def forward(self, skip: Tensor, coarse: Tensor, feature: Tensor | None = None) -> Tensor:
        return apply_layers(self.out, apply_layers(self.upsample, coarse, None) + skip, feature)


class Enlarge(nn.Module):
    """Four times the size in D, h, w."""

    def forward(self, volume: Tensor) -> Tensor:
        return enlarge(volume)


class SearchedAggregation(CostAggregation):
    """Cost volume (B, C, D, h, w) and the left image's features at 1/8, 1/16, 1/32 -> filtered volume, same shape.

    The stages that it replaces and that checkpoints hold nevertheless stay, unused and without gradients.
    """

    def __init__(self, config: FoundationStereoConfig):
        super().__init__(config)
        unused = [self.conv3_up, self.conv2_up, self.conv_out, self.agg_0, self.agg_1, self.atts, self.conv_patch]
        for stage in (*unused, self.feature_att_up_16, self.feature_att_up_8):
            stage.requires_grad_(False)
        c, heads = config.widths.volume, config.widths.volume_heads
        _, f8, f16, _ = config.feature_dims
        self.conv1 = self.conv2 = nn.Identity()
        self.feature_att_8 = Layers(
            _conv(c, c, stride=2), AxialPlanarConv(c, 2 * c, 17), FeatureAttention(f8, 2 * c, True)
        )
        self.feature_att_16 = Layers(
            _conv(2 * c, 4 * c, stride=2), AxialPlanarConv(4 * c, 2 * c, 13), AxialPlanarConv(2 * c, 4 * c, 3)
        )
        self.post32_to_16 = Merge(
            [_up(6 * c, 4 * c, 3, output_padding=1)],
            [FeatureAttention(f16, 4 * c, True), _conv(4 * c, 4 * c), AxialPlanarConv(4 * c, 4 * c, 9),
             _conv(4 * c, 4 * c)],
        )  # fmt: skip
        self.post16_to_8 = Merge(
            [_up(4 * c, 2 * c, 4)],
            [_conv(2 * c, 2 * c), FeatureAttention(f8, 2 * c, True), AxialPlanarConv(2 * c, 2 * c, 9)],
        )
        patches = ConvNorm(nn.Conv3d(c, c, 4, 4, bias=False), nn.BatchNorm3d(c), activation=False)
        transformer = DisparityTransformer(c, heads, config.disparity_attention, layers=1, hidden=FEED_FORWARD * c)
        self.post8_to_4 = Merge(
            [patches, transformer, Enlarge()], [_conv(c, c), ResidualConv(c, nn.Conv3d, nn.BatchNorm3d)]
        )

    def forward(self, volume: Tensor, x8: Tensor, x16: Tensor, x32: Tensor) -> Tensor:
        return self.post8_to_4(volume, self.hourglass(volume, x8, x16, x32))

    def hourglass(self, volume: Tensor, x8: Tensor, x16: Tensor, x32: Tensor) -> Tensor:
        v8 = self.feature_att_8(volume, x8)
        v16 = self.feature_att_16(v8, x16)
        v32 = self.feature_att_32(self.conv3(v16), x32)
        v16 = self.post32_to_16(v16, v32, x16)
        return self.conv1_up(self.post16_to_8(v8, v16, x8))


def make_volume_stem(in_dim: int, dim: int, feature_dim: int) -> Layers:
    return Layers(_conv(in_dim, dim), _conv(dim, dim), FeatureAttention(feature_dim, dim, True))


def _conv(in_dim: int, dim: int, stride: int = 1) -> ConvNorm:
    return ConvNorm(nn.Conv3d(in_dim, dim, 3, stride, 1, bias=False), nn.BatchNorm3d(dim))


def _up(in_dim: int, dim: int, kernel: int, output_padding: int = 0) -> ConvNorm:
    conv = nn.ConvTranspose3d(in_dim, dim, kernel, 2, 1, output_padding, bias=False)
    return ConvNorm(conv, nn.BatchNorm3d(dim))
