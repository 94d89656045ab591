"""The cost volume filter of the pruned network bp2, found by architecture search: lists of layers, not fixed stages.

B images, C channels, D disparity bins, h = H/4, w = W/4.
"""

from __future__ import annotations

from torch import Tensor, nn

from stereo_core.models.foundation_stereo.aggregation import (
    AxialPlanarConv,
    CostAggregation,
    DisparityTransformer,
    Run,
    enlarge,
    run,
)
from stereo_core.models.foundation_stereo.config import FoundationStereoConfig
from stereo_core.models.foundation_stereo.cost_volume import FeatureAttention
from stereo_core.models.foundation_stereo.layers import ConvNorm, ResidualConv

FEED_FORWARD = 4  # hidden width of the disparity transformer's layer, as a multiple of the volume's channels


def apply_layers(layers: nn.ModuleList | nn.Sequential, volume: Tensor, feature: Tensor | None) -> Tensor:
    """Apply the layers in order; a feature attention also gets the left image's feature."""
    for layer in layers:
        volume = layer(volume, feature) if isinstance(layer, FeatureAttention) else layer(volume)
    return volume


class Layers(nn.Module):
    """Volume and the left image's feature of the same scale -> volume."""

    def __init__(self, *layers: nn.Module):
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, volume: Tensor, feature: Tensor | None = None) -> Tensor:
        return apply_layers(self.layers, volume, feature)


class Merge(nn.Module):
    """Upsample the coarse volume, add the skip connection, apply `out`."""

    def __init__(self, upsample: list[nn.Module], out: list[nn.Module]):
        super().__init__()
        self.upsample = nn.ModuleList(upsample)
        self.out = nn.ModuleList(out)

    def forward(self, skip: Tensor, coarse: Tensor, feature: Tensor | None = None) -> Tensor:
        return apply_layers(self.out, apply_layers(self.upsample, coarse, None) + skip, feature)


class Enlarge(nn.Module):
    """Upsample by 4 in D, h and w."""

    def forward(self, volume: Tensor) -> Tensor:
        return enlarge(volume)


class SearchedAggregation(CostAggregation):
    """Cost volume (B, C, D, h, w) and the left image's features at 1/8, 1/16, 1/32 -> filtered volume, same shape.

    The replaced stages stay, unused and without gradients, because checkpoints contain their weights.
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

    def forward(self, volume: Tensor, x8: Tensor, x16: Tensor, x32: Tensor, run: Run = run) -> Tensor:
        """`run`: see CostAggregation.forward."""
        return run(self.post8_to_4, volume, run(self.hourglass, volume, x8, x16, x32))

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
