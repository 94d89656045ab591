"""FastFoundationStereo (CVPR 2026): a rectified stereo pair -> disparity of the left view, at video rate.

B images, C channels, H, W image size, h = H/4, w = W/4.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from stereo_core.models.fast_foundation_stereo.aggregation import Layers, SearchedAggregation, make_volume_stem
from stereo_core.models.fast_foundation_stereo.config import FastFoundationStereoConfig
from stereo_core.models.foundation_stereo.aggregation import CostAggregation
from stereo_core.models.foundation_stereo.config import Widths
from stereo_core.models.foundation_stereo.context import ChannelAttention, SpatialAttention
from stereo_core.models.foundation_stereo.cost_volume import (
    FeatureAttention,
    SlicedConv3d,
    group_correlation,
    make_classifier,
    make_stem,
)
from stereo_core.models.foundation_stereo.features import ConvolutionalFeatures
from stereo_core.models.foundation_stereo.layers import ConvNorm
from stereo_core.models.foundation_stereo.model import StereoNetwork, make_image_stem
from stereo_core.models.foundation_stereo.refinement import (
    DisparityHead,
    MotionEncoder,
    SelectiveGRU,
    UpdateBlock,
    UpsamplingFuse,
    make_logits,
)


class Features(ConvolutionalFeatures):
    """ImageNet-normalised images (B, 3, H, W) -> features at 1/4, 1/8, 1/16, 1/32, and again the feature at 1/4, the
    input of the context network."""

    def __init__(self, widths: Widths, dim: int):
        super().__init__(widths)
        self.conv4 = nn.Conv2d(2 * widths.edgenext_dims[0], dim, 1)

    def forward(self, image_B3HW: Tensor) -> tuple[list[Tensor], Tensor]:
        x4, *coarser = self.convolutional(image_B3HW)
        x4 = self.conv4(x4)
        return [x4, *coarser], x4


class ContextHeads(nn.Module):
    """Left feature at 1/4 -> the pair (state, context) of the only level, before activation."""

    def __init__(self, heads: list[nn.Module]):
        super().__init__()
        self.conv04 = nn.ModuleList(heads)

    def forward(self, left_B3HW: Tensor, feature_BChw: Tensor) -> list[tuple[Tensor, Tensor]]:
        return [(self.conv04[0](feature_BChw), self.conv04[1](feature_BChw))]


class FastFoundationStereo(StereoNetwork):
    """Both published networks, "bp2" and "unpruned"; see `StereoNetwork`."""

    def __init__(self, config: FastFoundationStereoConfig):
        super().__init__(config)
        classic, widths = config.classic, config.widths
        common, (c4, *_) = classic.widths, classic.feature_dims
        _, context = widths.cnet_conv04_widths
        _, enlarged, stem, half = widths.spx_2_gru_widths
        # Checkpoints contain the offsets, but the lookup computes its own; a file's values are replaced.
        self.register_buffer("dx", offsets(config.corr_radius))
        self.register_load_state_dict_pre_hook(_with_offsets)
        self.update_block = _make_update_block(config)
        self.sam = SpatialAttention()
        self.cam = ChannelAttention(context, widths.cam_mid_channels)
        # Checkpoints contain these; the network does not use them:
        self.context_zqr_convs = nn.ModuleList(nn.Conv2d(n, 3 * n, 3, padding=1) for n in config.hidden_dims)
        self.context_zqr_convs.requires_grad_(False)
        self.feature = Features(common, c4)
        self.proj_cmb = nn.Conv2d(c4, common.concat, 1)
        self.stem_2 = make_image_stem(3, *widths.stem_2_widths)
        self.spx_2_gru = UpsamplingFuse(widths.mask_widths[-1], enlarged, stem, half)
        self.spx_gru = make_logits(half)
        volume_dim = common.correlation_groups + 2 * common.concat
        if config.topology == "unpruned":
            self.cnet = ContextHeads([nn.Conv2d(c4, n, 3, padding=1) for n in widths.cnet_conv04_widths])
            self.corr_stem = make_stem(volume_dim, common.volume, True)
            self.corr_feature_att = FeatureAttention(c4, common.volume, True)
            self.cost_agg = CostAggregation(classic)
            self.classifier = make_classifier(common.volume, True)
        else:
            self.cnet = ContextHeads([_context_head(c4, n) for n in widths.cnet_conv04_widths])
            self.corr_stem = nn.Identity()
            self.corr_feature_att = make_volume_stem(volume_dim, common.volume, c4)
            self.cost_agg = SearchedAggregation(classic)
            self.classifier = Layers(SlicedConv3d(common.volume, 1, 3, padding=1))

    def correlation(self, left4: Tensor, right4: Tensor) -> Tensor:
        config = self.config
        groups = config.classic.widths.correlation_groups
        return group_correlation(left4, right4, config.bins, groups, config.gwc_feature_normalize)


def _make_update_block(config: FastFoundationStereoConfig) -> UpdateBlock:
    widths = config.widths
    hidden, motion = widths.gru_hidden, widths.motion_encoder_final
    kernel = 1 if config.topology == "unpruned" else 3
    encoder = MotionEncoder(config.lookup, widths.motion_encoder_widths, motion, kernel)
    gru = SelectiveGRU(hidden, widths.cnet_conv04_widths[1] + motion + 1, widths.gru_gating_conv_widths)
    head = DisparityHead(hidden, widths.disp_head_intermediate, widths.disp_head_pwconv1_widths)
    return UpdateBlock(encoder, [gru], head, (hidden, *widths.mask_widths))


def _context_head(in_dim: int, dim: int) -> ConvNorm:
    return ConvNorm(nn.Conv2d(in_dim, dim, 3, padding=1, bias=False), nn.BatchNorm2d(dim))


def offsets(radius: int) -> Tensor:
    """The offsets of the lookup around a disparity, as checkpoints store them."""
    return torch.arange(-radius, radius + 1, dtype=torch.int8).reshape(1, 1, -1, 1)


def _with_offsets(network: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    state[f"{prefix}dx"] = offsets(network.config.corr_radius)
