"""Networks that turn a rectified stereo pair into a disparity, and their checkpoints."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
from torch import nn

from stereo_core.errors import ModelError, SpecError
from stereo_core.models.checkpoints import load_depth_anything, load_edgenext, load_model, save_checkpoint
from stereo_core.models.fast_foundation_stereo import config as fast
from stereo_core.models.fast_foundation_stereo.model import FastFoundationStereo
from stereo_core.models.foundation_stereo.config import PRESET_SETTINGS, SETTINGS, make_config
from stereo_core.models.foundation_stereo.model import FoundationStereo, StereoNetwork
from stereo_core.spec.experiment import ExperimentSpec
from stereo_core.spec.fields import Section
from stereo_core.spec.model import Model

LOG = logging.getLogger(__name__)

__all__ = ["channels_last", "create_model", "from_spec", "load_model", "save_checkpoint"]


def create_model(name: str = "FoundationStereo", **settings: Any) -> StereoNetwork:
    """A network with random weights: FoundationStereo or FastFoundationStereo, in any case.

    Settings (None takes the preset's or the published value) of both: encoder, max_disparity (px, a multiple of 32),
    corr_levels, corr_radius, train_iters, valid_iters, low_memory, mixed_precision. FoundationStereo's: variant
    (nvlabs, tao), disparity_attention (disparity, heads, tao), preset (tiny, small), train_vit, n_gru_layers.
    FastFoundationStereo's: topology (bp2, unpruned), widths (a mapping of TAO's keys such as gru_hidden;
    the published values for the rest), gwc_feature_normalize, hidden_dims. `model.config` holds them all.

    Raises:
        ModelError: an unknown name, or a value the network can not be built with.
    """
    if name.lower() == "fastfoundationstereo":
        return FastFoundationStereo(fast.make_config(**settings))
    if name.lower() != "foundationstereo":
        raise ModelError(f"model {name!r} is not available; there are FoundationStereo and FastFoundationStereo")
    return FoundationStereo(make_config(**settings))


def from_spec(spec: ExperimentSpec, checkpoint: str | Path | None = None) -> StereoNetwork:
    """The network that a spec's `model` section asks for.

    With a checkpoint its weights are loaded, and it decides whatever the spec leaves unsaid; the backbone files are not
    read then. Without one the network starts from scratch: random weights, and the backbone files named there.

    Raises:
        SpecError: the frozen ViT would keep random weights, and `allow_random_backbone` is not set.
        ModelError: a checkpoint or backbone file that can not be used.
    """
    section = spec.model
    if checkpoint:
        return load_model(checkpoint, **_said(section), **_said_fast(section))
    if section.model_type == "FastFoundationStereo":
        return _fast_from_scratch(section)
    backbone = section.stereo_backbone
    pretrained = backbone.depth_anything_v2_pretrained_path
    if not (pretrained or backbone.train_vit or backbone.allow_random_backbone):
        raise SpecError(
            "model.stereo_backbone.depth_anything_v2_pretrained_path is empty: the frozen ViT would keep random "
            "weights; name a Depth Anything V2 file, set model.stereo_backbone.train_vit=true (as preset small), or "
            "model.stereo_backbone.allow_random_backbone=true"
        )
    model = create_model(**_settings(section))
    if pretrained:
        load_depth_anything(model, pretrained)
    if backbone.edgenext_pretrained_path:
        load_edgenext(model, backbone.edgenext_pretrained_path)
    return model


def channels_last(model: nn.Module, dims: tuple[int, ...] = (2, 3)) -> nn.Module:
    """Lay the weights of the convolutions in so many dimensions out with the channels innermost, and so what they
    compute: the layout of cuDNN's tensor core kernels. Values, names and shapes stay."""
    layouts = {2: torch.channels_last, 3: torch.channels_last_3d}
    for parameter in model.parameters():
        if parameter.dim() - 2 in set(dims) & set(layouts):
            parameter.data = parameter.data.contiguous(memory_format=layouts[parameter.dim() - 2])
    return model


def _settings(section: Model) -> dict[str, Any]:
    values = {name: getattr(_owner(section, name), name) for name in SETTINGS}
    return {name: None if value == "auto" else value for name, value in values.items()}


def _said(section: Model) -> dict[str, Any]:
    """Settings that the user wrote; what only repeats the preset's value does not count."""
    preset = PRESET_SETTINGS[section.preset] if section.preset else {}
    return {
        name: value
        for name, value in _settings(section).items()
        if name in _owner(section, name).model_fields_set and (name not in preset or value != preset[name])
    }


def _said_fast(section: Model) -> dict[str, Any]:
    """What FoundationStereo does not have, and the network's name, where the user wrote it."""
    written = section.model_fields_set
    return {
        "model_type": section.model_type if "model_type" in written else None,
        "gwc_feature_normalize": section.gwc_feature_normalize,
        "widths": {key: getattr(section, key) for key in fast.WIDTH_KEYS},
    }


def _fast_from_scratch(section: Model) -> StereoNetwork:
    """What a spec leaves unsaid takes the published value; widths take TAO's."""
    shared = {key: value for key, value in _said(section).items() if key in fast.SETTINGS}
    hidden_dims = section.hidden_dims[: section.n_gru_layers]
    widths = fast.complete_widths({key: getattr(section, key) for key in fast.WIDTH_KEYS}, hidden_dims[0])
    normalised = section.gwc_feature_normalize
    settings = {"hidden_dims": hidden_dims, "widths": widths, "gwc_feature_normalize": normalised}
    model = create_model("FastFoundationStereo", **shared | settings)
    if "max_disparity" not in shared:
        LOG.info("model.max_disparity: %d px, that of the published weights", model.config.max_disparity)
    if section.stereo_backbone.edgenext_pretrained_path:
        load_edgenext(model, section.stereo_backbone.edgenext_pretrained_path)
    return model


def _owner(section: Model, name: str) -> Section:
    """Where a setting stands in the spec."""
    return section.stereo_backbone if name == "train_vit" else section
