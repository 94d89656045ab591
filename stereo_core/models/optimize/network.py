"""The networks rewritten for inference in one type, with the same weights and the same output.

B images, C channels, H, W image size (multiples of 32), h = H/4, w = W/4.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from stereo_core.models.fast_foundation_stereo.model import FastFoundationStereo
from stereo_core.models.foundation_stereo.aggregation import AxialPlanarConv, DisparityTransformer
from stereo_core.models.foundation_stereo.config import FoundationStereoConfig
from stereo_core.models.foundation_stereo.cost_volume import SlicedConv3d, concatenation, expected_disparity
from stereo_core.models.foundation_stereo.model import FoundationStereo, StereoNetwork
from stereo_core.models.foundation_stereo.refinement import SCALES
from stereo_core.models.optimize.channels import (
    Doubling,
    aligned_convolution,
    fold_batch_norms,
    pad_channels,
    pad_convolution,
    replace,
)
from stereo_core.models.optimize.depthwise import speed_up_depthwise
from stereo_core.models.optimize.lookup import ALIGNED, Tables, make_tables, rounded_up
from stereo_core.models.optimize.update import FastGRU, FastHead, FastMotion
from stereo_core.models.optimize.volume import (
    DepthConv,
    FastTransformer,
    PlaneConv,
    ToOneVolume,
    UnpaddedTransformer,
    all_pairs,
    group_correlation,
)


class FastNetwork(nn.Module):
    """The shared parts of both networks, compiled one by one. Each network has its own `forward`.

    Args:
        model: it is not changed.
        dtype: of weights and features. Norms, softmax over disparity, the disparity and lookup positions stay in
            float32.
        classic: the settings of the shared parts.
        context: channels of a context.
        normalised: whether the group correlation is a cosine.
    """

    def __init__(
        self,
        model: StereoNetwork,
        dtype: torch.dtype,
        classic: FoundationStereoConfig,
        context: int,
        normalised: bool = True,
    ):
        super().__init__()
        network = self.network = deepcopy(model).eval().requires_grad_(False)
        self.config, self.classic, self.normalised = network.config, classic, normalised
        fold_batch_norms(network)
        _speed_up_volume(network, classic)
        self._speed_up_update(context)
        self._align()
        speed_up_depthwise(self)
        self.to(dtype)
        _channels_last(self)
        self.side: torch.cuda.Stream | None = None  # stream for parallel parts; None: everything in one stream
        self.compiled = False
        self.parts = {
            "volume": self.volume,
            "context": self.context,
            "motion": self.motion,
            "head": self.head,
            "finest": self.grus[0].finest,
            "coarse": lambda i, *inputs: self.grus[i].coarse(*inputs),
            "upsample": network.upsample,
        }

    def _speed_up_update(self, context: int) -> None:
        update, config = self.network.update_block, self.config
        scales = SCALES[: update.levels]
        grus = [getattr(update, f"gru{scale}") for scale in scales]
        self.grus = nn.ModuleList(FastGRU(gru, context, gru is not grus[-1]) for gru in grus)
        self.motion = FastMotion(update.encoder, self.classic.widths.volume, config.corr_levels, config.corr_radius)
        self.head = FastHead(update.disp_head)
        for replaced in [*(f"gru{scale}" for scale in scales), "encoder", "disp_head"]:
            delattr(update, replaced)

    def _align(self) -> None:
        """Round up the channels of the remaining layers for the tensor cores."""

    def compile(self) -> None:
        """Let TorchInductor compile all parts at their first use."""
        self.compiled = True
        self.parts = {name: torch.compile(part, dynamic=False, fullgraph=True) for name, part in self.parts.items()}

    def refine(
        self,
        disp_B1hw: Tensor,
        tables: Tables,
        states: list[Tensor],
        fixed: list[Tensor],
        attentions: list[Tensor],
        iters: int,
    ) -> tuple[list[Tensor], Tensor]:
        """All iterations. On a GPU the coarse levels run in parallel with the finest: they need only its state.

        A tensor of one stream that the other reads is kept until the streams have synchronised, so that its memory is
        not reused too early.
        """
        parts, states = self.parts, list(states)
        finest_done = self._mark()
        for _ in range(iters):
            with self._beside(None):
                for i in reversed(range(1, len(states))):
                    if i == 1:
                        self._wait(finest_done)
                    coarser = states[i + 1] if i + 1 < len(states) else None
                    states[i] = parts["coarse"](i, fixed[i], attentions[i], states[i], states[i - 1], coarser)
                coarse_done = self._mark()
            motion = parts["motion"](disp_B1hw, tables)
            self._wait(coarse_done)
            coarser = states[1] if len(states) > 1 else None
            states[0] = parts["finest"](fixed[0], attentions[0], states[0], motion, coarser)
            finest_done = self._mark()
            disp_B1hw = parts["head"](states[0], disp_B1hw)
        return states, disp_B1hw

    def volume(self, left4: Tensor, right4: Tensor, left_features: list[Tensor]) -> tuple[Tensor, Tables]:
        """Features at 1/4 of both images, at 1/8, 1/16, 1/32 of the left one -> initial disparity, lookup tables."""
        network, config, widths = self.network, self.config, self.classic.widths
        correlation = group_correlation(left4, right4, config.bins, widths.correlation_groups, self.normalised)
        pair = concatenation(network.proj_cmb(left4), network.proj_cmb(right4), config.bins)
        volume = torch.cat([correlation, pair], dim=1).contiguous(memory_format=torch.channels_last_3d)
        volume = network.corr_feature_att(network.corr_stem(volume), left4)
        volume = network.cost_agg(volume, *left_features)
        disp_B1hw = expected_disparity(network.classifier(volume))
        pairs = all_pairs(left4, right4)
        levels, radius = config.corr_levels, config.corr_radius
        return disp_B1hw, make_tables(volume, pairs, widths.volume, levels, radius)

    def context(
        self, left_B3HW: Tensor, feature_BChw: Tensor
    ) -> tuple[list[Tensor], list[Tensor], list[Tensor], Tensor]:
        """States, the contexts' contribution to each GRU's first convolution, spatial attentions, and the 1/2 stem."""
        states, contexts, attentions = self.network.context(left_B3HW, feature_BChw)
        fixed = [gru.context(context) for gru, context in zip(self.grus, contexts, strict=True)]
        return states, fixed, attentions, self.network.stem_2(left_B3HW)

    def _mark(self) -> torch.cuda.Event | None:
        """An event after the work queued so far in the current stream."""
        return None if self.side is None else torch.cuda.current_stream().record_event()

    def _wait(self, event: torch.cuda.Event | None) -> None:
        if event is not None:
            torch.cuda.current_stream().wait_event(event)

    def _beside(self, event: torch.cuda.Event | None) -> AbstractContextManager[Any]:
        """A region whose kernels run in parallel with the others, after `event`."""
        if self.side is None:
            return nullcontext()
        if event is not None:
            self.side.wait_event(event)
        return torch.cuda.stream(self.side)


class WithViT(FastNetwork):
    """FoundationStereo."""

    def __init__(self, model: FoundationStereo, dtype: torch.dtype):
        super().__init__(model, dtype, model.config, model.config.widths.hidden)
        feature = self.network.feature
        self.parts |= {"vit": feature.dino, "convolutional": feature.convolutional, "joined": feature.joined}

    def forward(self, left_B3HW: Tensor, right_B3HW: Tensor, iters: int) -> Tensor:
        """ImageNet-normalised images in the network's type, H and W multiples of 32 -> (B, 1, H, W) in px, float32.

        Tensors that cross streams keep a reference to the end, so that their memory is not reused too early.
        """
        B, parts = left_B3HW.shape[0], self.parts
        images = torch.cat([left_B3HW, right_B3HW]).contiguous(memory_format=torch.channels_last)
        with self._beside(self._mark()):
            convolutional = parts["convolutional"](images)
            features_done = self._mark()
        vit_BChw = parts["vit"](images)
        with self._beside(self._mark()):
            states, fixed, attentions, stem_2x = parts["context"](images[:B], vit_BChw[:B])
            context_done = self._mark()
        self._wait(features_done)
        features = parts["joined"](convolutional, vit_BChw)
        disp_B1hw, tables = parts["volume"](features[0][:B], features[0][B:], [x[:B] for x in features[1:]])
        self._wait(context_done)
        refined, disp_B1hw = self.refine(disp_B1hw, tables, states, fixed, attentions, iters)
        return parts["upsample"](disp_B1hw, refined[0], stem_2x)


class WithoutViT(FastNetwork):
    """FastFoundationStereo."""

    def __init__(self, model: FastFoundationStereo, dtype: torch.dtype):
        config = model.config
        _, context = config.widths.cnet_conv04_widths
        super().__init__(model, dtype, config.classic, context, config.gwc_feature_normalize)
        self.parts["features"] = self.network.feature

    def _align(self) -> None:
        network = self.network
        _, enlarged, stem, _ = self.config.widths.spx_2_gru_widths
        fuse = network.spx_2_gru
        for part in (network.cnet.conv04[0], network.update_block.mask, fuse.conv1):
            pad_channels(part)
        pad_channels(network.stem_2, of_images=True)
        fuse.conv2.conv = aligned_convolution(fuse.conv2.conv, enlarged, stem)
        pad_convolution(network.spx_gru[0], rounded_up(network.spx_gru[0].in_channels), 9)
        network.spx_gru[0] = Doubling(network.spx_gru[0])

    def forward(self, left_B3HW: Tensor, right_B3HW: Tensor, iters: int) -> Tensor:
        """As `WithViT.forward`."""
        B, parts = left_B3HW.shape[0], self.parts
        images = torch.cat([left_B3HW, right_B3HW]).contiguous(memory_format=torch.channels_last)
        features, context_BChw = parts["features"](images)
        with self._beside(self._mark()):
            states, fixed, attentions, stem_2x = parts["context"](images[:B], context_BChw[:B])
            context_done = self._mark()
        disp_B1hw, tables = parts["volume"](features[0][:B], features[0][B:], [x[:B] for x in features[1:]])
        self._wait(context_done)
        refined, disp_B1hw = self.refine(disp_B1hw, tables, states, fixed, attentions, iters)
        return parts["upsample"](disp_B1hw, refined[0], stem_2x)


def _speed_up_volume(network: StereoNetwork, classic: FoundationStereoConfig) -> None:
    """Rewrite the parts that work on volumes; batch normalisations must have been folded."""
    widths = classic.widths
    replace(network.classifier, SlicedConv3d, ToOneVolume)
    inputs = (*classic.feature_dims, 2 * widths.volume, widths.correlation_groups + 2 * widths.concat)
    parts = (network.corr_stem, network.corr_feature_att, network.cost_agg, network.classifier)
    if all(dim % ALIGNED == 0 for dim in inputs):  # otherwise concatenated channels would not match their weights
        for part in parts:
            pad_channels(part)
        faster = UnpaddedTransformer if classic.disparity_attention == "tao" else FastTransformer
        replace(network.cost_agg, DisparityTransformer, faster)
    for module in network.cost_agg.modules():
        if isinstance(module, AxialPlanarConv):
            module.conv1[0], module.conv2[0] = PlaneConv(module.conv1[0]), DepthConv(module.conv2[0])


def _channels_last(module: nn.Module) -> None:
    layouts = {4: torch.channels_last, 5: torch.channels_last_3d}
    for parameter in module.parameters():
        if parameter.dim() in layouts:
            parameter.data = parameter.data.contiguous(memory_format=layouts[parameter.dim()])
