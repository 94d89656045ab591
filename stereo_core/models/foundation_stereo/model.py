"""FoundationStereo (Wen et al., CVPR 2025): a rectified stereo pair -> disparity of the left view.

B images, C channels, H, W image size, h = H/4, w = W/4, D disparity bins. Sizes inside are multiples of 32.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from stereo_core.models.foundation_stereo.aggregation import CostAggregation
from stereo_core.models.foundation_stereo.config import FoundationStereoConfig
from stereo_core.models.foundation_stereo.context import ChannelAttention, ContextNetwork, SpatialAttention
from stereo_core.models.foundation_stereo.cost_volume import (
    FeatureAttention,
    concatenation,
    expected_disparity,
    group_correlation,
    make_classifier,
    make_stem,
)
from stereo_core.models.foundation_stereo.features import Features
from stereo_core.models.foundation_stereo.geometry import GeometryLookup
from stereo_core.models.foundation_stereo.layers import ConvNorm
from stereo_core.models.foundation_stereo.refinement import convex_upsample, make_update_block, make_upsampling
from stereo_core.models.infer import Infers

MULTIPLE = 32
# ImageNet statistics as Python floats: exact for any image type, and not in the state dict.
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)


def normalise(image_B3HW: Tensor) -> Tensor:
    """RGB 0..255 -> ImageNet-normalised."""
    return torch.stack([(image_B3HW[:, c] / 255 - MEAN[c]) / STD[c] for c in range(3)], dim=1)


def padding_to_multiple(height: int, width: int, multiple: int = MULTIPLE) -> tuple[int, int, int, int]:
    """Padding (left, right, top, bottom) in px that makes both sides multiples; the smaller half goes left and top."""
    y, x = -height % multiple, -width % multiple
    return x // 2, x - x // 2, y // 2, y - y // 2


def unpad(image_BCHW: Tensor, padding: tuple[int, int, int, int]) -> Tensor:
    left, right, top, bottom = padding
    H, W = image_BCHW.shape[-2:]
    return image_BCHW[..., top : H - bottom, left : W - right]


class StereoNetwork(Infers, nn.Module):
    """Left and right image (B, 3, H, W), RGB, float, 0..255 -> disparity in px of the left view.

    eval: (B, 1, H, W), float32 or wider, for any H and W: the images are padded to multiples of 32 by repeating their
    edges, and the disparity is cropped. train: (initial disparity (B, 1, H/4, W/4) in quarter-resolution px, list of
    disparities (B, 1, H, W) in px, one per iteration); H and W must be multiples of 32, else ValueError.

    With `config.mixed_precision` the network runs under float16 autocast on CUDA; norms, cost volume products, softmax
    over disparity and the disparity itself stay in float32. `model.double()` computes everything in float64.

    A subclass supplies the parts, named as in the checkpoints, and `correlation`.

    Attributes:
        recompute: in training, store only the inputs of the cost volume filter and of every iteration, and recompute
            the rest for the gradients: less memory, the same gradients.
    """

    def __init__(self, config: Any):
        super().__init__()
        self.config = config
        self.recompute = False

    def forward(
        self, left_B3HW: Tensor, right_B3HW: Tensor, iters: int | None = None
    ) -> Tensor | tuple[Tensor, list[Tensor]]:
        """The disparity of rectified pairs.

        Args:
            left_B3HW, right_B3HW: images (B, 3, H, W), RGB, float, 0..255, with the device and type of the
                weights. `infer` accepts other types, NumPy arrays and grey images.
            iters: refinement iterations; None: `config.train_iters` in training, else `config.valid_iters`.

        Returns:
            eval: disparity (B, 1, H, W), float32 or wider, px of the given size, left x minus right x; any H and W.
            train: the initial disparity (B, 1, H/4, W/4) in px of that size, and a list of disparities (B, 1, H, W)
            in px, one per iteration.

        Raises:
            ValueError: in training H or W is no multiple of 32; `iters` is below 1.
        """
        H, W = left_B3HW.shape[-2:]
        if self.training:
            if H % MULTIPLE or W % MULTIPLE:
                raise ValueError(f"training images are {W} x {H} px; width and height must be multiples of {MULTIPLE}")
            left, right = normalise(left_B3HW), normalise(right_B3HW)
            return self.predict(left, right, _or(iters, self.config.train_iters), every=True)
        return self._padded(left_B3HW, right_B3HW, iters)

    def core(self, left_B3HW: Tensor, right_B3HW: Tensor, iters: int | None = None) -> Tensor:
        """The graph that is exported: ImageNet-normalised images whose H and W are multiples of 32 -> (B, 1, H, W) in
        px, the last iteration only."""
        _, disparities = self.predict(left_B3HW, right_B3HW, _or(iters, self.config.valid_iters))
        return disparities[-1]

    def open_size(self, is_open: bool) -> None:
        """Set whether graphs exported from now on accept any height and width."""

    def hierarchical(
        self, left_B3HW: Tensor, right_B3HW: Tensor, iters: int | None = None, small_ratio: float = 0.5
    ) -> Tensor:
        """Two passes: the enlarged disparity of the reduced pair initialises the full-size pass.

        Shapes and units as in eval mode. Finds disparities up to max_disparity / small_ratio.
        """
        H, W = left_B3HW.shape[-2:]
        small = [
            F.interpolate(image, scale_factor=small_ratio, mode="bilinear", align_corners=False)
            for image in (left_B3HW, right_B3HW)
        ]
        disp = self._padded(*small, iters)
        disp = F.interpolate(disp, size=(H, W), mode="bilinear", align_corners=True) / small_ratio
        padding = padding_to_multiple(H, W)
        # As in the original code, the left padding is added to the disparity, although both images shift equally.
        disp = F.pad(disp.clamp(min=0), padding, mode="replicate") + padding[0]
        size = (disp.shape[-2] // 4, disp.shape[-1] // 4)
        start = F.interpolate(disp, size=size, mode="bilinear", align_corners=True) / 4
        return self._padded(left_B3HW, right_B3HW, iters, start)

    def predict(
        self, left_B3HW: Tensor, right_B3HW: Tensor, iters: int, start_B1hw: Tensor | None = None, every: bool = False
    ) -> tuple[Tensor, list[Tensor]]:
        """Normalised images (sides multiples of 32) -> initial disparity, and the last (or every) upsampled
        disparity."""
        if iters < 1:
            raise ValueError(f"iters is {iters}; it must be at least 1")
        with self._autocast(left_B3HW):
            B = left_B3HW.shape[0]
            features, context_BChw = self.feature(torch.cat([left_B3HW, right_B3HW]))
            left4, right4 = features[0][:B], features[0][B:]
            volume = self.filtered_volume(left4, right4, [x[:B] for x in features[1:]])
            disp_B1hw = self._run(self.initial_disparity, volume) if start_B1hw is None else start_B1hw
            start_B1hw = disp_B1hw
            states, contexts, attentions = self.context(left_B3HW, context_BChw[:B])
            stem_2x = self.stem_2(left_B3HW)
            config = self.config
            lookup = GeometryLookup(volume, left4, right4, config.corr_levels, config.corr_radius)
            disparities = []
            for i in range(iters):
                fixed = (lookup, contexts, attentions, stem_2x if every or i == iters - 1 else None)
                states, disp_B1hw, upsampled = self._run(self.iteration, disp_B1hw.detach(), states, *fixed)
                if upsampled is not None:
                    disparities.append(upsampled)
        return start_B1hw, disparities

    def iteration(
        self,
        disp_B1hw: Tensor,
        states: list[Tensor],
        lookup: GeometryLookup,
        contexts: list[Tensor],
        attentions: list[Tensor],
        stem_2x: Tensor | None,
    ) -> tuple[list[Tensor], Tensor, Tensor | None]:
        """New states, new disparity and, if a stem is given, that disparity at full resolution."""
        costs = lookup(disp_B1hw, states[0].dtype)
        states, step = self.update_block(states, contexts, attentions, costs, disp_B1hw)
        disp_B1hw = disp_B1hw + step
        return states, disp_B1hw, None if stem_2x is None else self.upsample(disp_B1hw, states[0], stem_2x)

    def filtered_volume(self, left4: Tensor, right4: Tensor, left_features: list[Tensor]) -> Tensor:
        """Features at 1/4 of both images, at 1/8, 1/16, 1/32 of the left one -> (B, C, D, h, w)."""
        return self.cost_agg(self._run(self.cost_volume, left4, right4), *left_features, run=self._run)

    def cost_volume(self, left4: Tensor, right4: Tensor) -> Tensor:
        """Features at 1/4 -> volume before the filter (B, C, D, h, w)."""
        correlation = self.correlation(left4, right4)
        pair = concatenation(self.proj_cmb(left4), self.proj_cmb(right4), self.config.bins)
        volume = self.corr_stem(torch.cat([correlation.to(pair.dtype), pair], dim=1))
        return self.corr_feature_att(volume, left4)

    def initial_disparity(self, volume_BCDhw: Tensor) -> Tensor:
        return expected_disparity(self.classifier(volume_BCDhw))

    def context(self, left_B3HW: Tensor, feature_BChw: Tensor) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """States, contexts and spatial attentions at 1/4, 1/8, 1/16."""
        states, contexts, attentions = [], [], []
        for state, context in self.cnet(left_B3HW, feature_BChw):
            context = torch.relu(context)
            context = self.cam(context) * context
            states.append(torch.tanh(state))
            contexts.append(context)
            attentions.append(self.sam(context))
        return states, contexts, attentions

    def upsample(self, disp_B1hw: Tensor, state_BChw: Tensor, stem_2x: Tensor) -> Tensor:
        mask_BChw = 0.25 * self.update_block.mask(state_BChw)
        return convex_upsample(disp_B1hw, self.spx_gru(self.spx_2_gru(mask_BChw, stem_2x)))

    def _padded(
        self, left_B3HW: Tensor, right_B3HW: Tensor, iters: int | None, start_B1hw: Tensor | None = None
    ) -> Tensor:
        padding = padding_to_multiple(*left_B3HW.shape[-2:])
        left, right = (normalise(F.pad(image, padding, mode="replicate")) for image in (left_B3HW, right_B3HW))
        _, disparities = self.predict(left, right, _or(iters, self.config.valid_iters), start_B1hw)
        return unpad(disparities[-1], padding)

    def _run(self, part: Callable[..., Any], *inputs: Any) -> Any:
        if not self.recompute or not torch.is_grad_enabled():
            return part(*inputs)
        gpu = inputs[0].is_cuda
        contexts = partial(_contexts, self, gpu)
        return checkpoint(part, *inputs, use_reentrant=False, context_fn=contexts, preserve_rng_state=not gpu)

    def _autocast(self, image: Tensor) -> AbstractContextManager[Any]:
        if self.config.mixed_precision and image.device.type == "cuda":
            return torch.autocast("cuda", torch.float16)
        return nullcontext()


class FoundationStereo(StereoNetwork):
    """The published network; see `StereoNetwork`.

    Its Depth Anything V2 branch stays in eval mode and has no gradients unless `config.train_vit` is set.
    """

    def __init__(self, config: FoundationStereoConfig):
        super().__init__(config)
        widths, tao = config.widths, config.variant == "tao"
        c4 = config.feature_dims[0]
        hidden, stem = widths.hidden, widths.stem
        self.cnet = ContextNetwork(config)
        self.update_block = make_update_block(config)
        self.sam = SpatialAttention()
        self.cam = ChannelAttention(hidden, hidden // 16)
        self.feature = Features(config)
        self.proj_cmb = nn.Conv2d(c4, widths.concat, 1)
        self.stem_2 = make_image_stem(3, stem, stem)
        self.spx_2_gru, self.spx_gru = make_upsampling(stem, tao)
        self.corr_stem = make_stem(widths.correlation_groups + 2 * widths.concat, widths.volume, not tao)
        self.corr_feature_att = FeatureAttention(c4, widths.volume, not tao)
        self.cost_agg = CostAggregation(config)
        self.classifier = make_classifier(widths.volume, not tao)
        # Checkpoints contain these; the network does not use them:
        self.context_zqr_convs = nn.ModuleList(
            nn.Conv2d(hidden, 3 * hidden, 3, padding=1) for _ in range(config.n_gru_layers)
        )
        self.stem_4 = make_image_stem(stem, stem * 3 // 2, stem * 3 // 2)
        for unused in (self.context_zqr_convs, self.stem_4):
            unused.requires_grad_(False)  # it never gets a gradient, and with several ranks all would wait for one

    def open_size(self, is_open: bool) -> None:
        self.feature.dino.open_size = is_open

    def correlation(self, left4: Tensor, right4: Tensor) -> Tensor:
        return group_correlation(left4, right4, self.config.bins, self.config.widths.correlation_groups)


def _contexts(module: nn.Module, gpu: bool) -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
    """Contexts of the first and of the second computation of a part.

    On a GPU dropout is not computed again, but stored: a CUDA graph, which a step may be captured as, allows no change
    of the generator's state.
    """
    if not gpu:
        return nullcontext(), _statistics_kept(module)
    kept: deque[tuple[Tensor, Tensor]] = deque()
    return _Dropout(kept, again=False), _both(_Dropout(kept, again=True), _statistics_kept(module))


class _Dropout(TorchDispatchMode):
    """Stores the results of dropout, or gives the stored ones.

    PyTorch's create_selective_checkpoint_contexts does so too, but from 2.13 on fails if the second computation differs
    in any operation. Under autocast it does: it casts weights that the first one found in autocast's cache.
    """

    def __init__(self, kept: deque[tuple[Tensor, Tensor]], again: bool) -> None:
        super().__init__()
        self.kept, self.again = kept, again

    @classmethod
    def ignore_compile_internals(cls) -> bool:  # otherwise compiled parts would run eagerly
        return True

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not torch.ops.aten.native_dropout.default:
            return func(*args, **(kwargs or {}))
        if self.again:
            return self.kept.popleft()
        values, mask = func(*args, **(kwargs or {}))
        self.kept.append((values.detach(), mask.detach()))  # the result itself would hold its own gradient's graph
        return values, mask


@contextmanager
def _both(first: AbstractContextManager[Any], second: AbstractContextManager[Any]) -> Iterator[None]:
    with first, second:
        yield


@contextmanager
def _statistics_kept(module: nn.Module) -> Iterator[None]:
    """Keep the running statistics of batch normalisation, so that a recomputed batch does not count twice."""
    norms = [norm for norm in module.modules() if isinstance(norm, _BatchNorm)]
    before = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    scratch = norms[0].num_batches_tracked.clone() if norms else None
    for norm in norms:
        norm.momentum, norm.num_batches_tracked = 0.0, scratch
    try:
        yield
    finally:
        for norm, (momentum, batches) in zip(norms, before, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, batches


def _or(iters: int | None, default: int) -> int:
    return default if iters is None else iters


def make_image_stem(in_dim: int, mid_dim: int, dim: int) -> nn.Sequential:
    """A stem that halves the resolution."""
    return nn.Sequential(
        ConvNorm(nn.Conv2d(in_dim, mid_dim, 3, 2, 1, bias=False), nn.InstanceNorm2d(mid_dim)),
        nn.Conv2d(mid_dim, dim, 3, padding=1, bias=False),
        nn.InstanceNorm2d(dim),
        nn.ReLU(),
    )
