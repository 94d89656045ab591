"""Networks that estimate disparity from a rectified stereo pair, and their checkpoints."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
from torch import nn

from stereo_core.errors import ModelError, SpecError
from stereo_core.models.backbones import load_depth_anything, load_edgenext
from stereo_core.models.checkpoints import load_model, save_checkpoint
from stereo_core.models.fast_foundation_stereo import config as fast
from stereo_core.models.fast_foundation_stereo.model import FastFoundationStereo
from stereo_core.models.foundation_stereo.config import PRESET_SETTINGS, SETTINGS, FoundationStereoConfig, make_config
from stereo_core.models.foundation_stereo.model import FoundationStereo, StereoNetwork
from stereo_core.spec.experiment import ExperimentSpec
from stereo_core.spec.fields import Section
from stereo_core.spec.model import Model

LOG = logging.getLogger(__name__)

__all__ = ["channels_last", "create_model", "from_spec", "load_model", "network_facts", "save_checkpoint"]


def create_model(name: str = "FoundationStereo", **settings: Any) -> StereoNetwork:
    """A network with random weights. `name` is FoundationStereo or FastFoundationStereo, in upper or lower case.

    Settings of both networks: encoder, max_disparity (px, a multiple of 32), corr_levels, corr_radius, train_iters,
    valid_iters, low_memory, mixed_precision. Only FoundationStereo: variant (nvlabs, tao), disparity_attention
    (disparity, heads, tao), preset (tiny, small), train_vit, n_gru_layers. Only FastFoundationStereo: topology
    (bp2, unpruned), widths (a mapping of TAO's keys such as gru_hidden; missing keys take the published values),
    gwc_feature_normalize, hidden_dims. None means the preset's or the published value. `model.config` holds all.

    Raises:
        ModelError: an unknown name, or a value that no network can be built with.
    """
    if name.lower() == "fastfoundationstereo":
        return FastFoundationStereo(fast.make_config(**settings))
    if name.lower() != "foundationstereo":
        raise ModelError(f"model {name!r} is not available; choose FoundationStereo or FastFoundationStereo")
    return FoundationStereo(make_config(**settings))


def from_spec(spec: ExperimentSpec, checkpoint: str | Path | None = None) -> StereoNetwork:
    """The network that a spec's `model` section defines.

    With a checkpoint, its weights are loaded, and it supplies every setting that the spec does not set; the backbone
    files are not read. Without one, the network starts from random weights and the backbone files that the spec names.

    Raises:
        SpecError: the frozen ViT would keep random weights, and `allow_random_backbone` is not set.
        ModelError: a checkpoint or backbone file cannot be used.
    """
    section = spec.model
    if checkpoint:
        return load_model(checkpoint, **_user_settings(section), **_fast_settings(section))
    if section.model_type == "FastFoundationStereo":
        return _fast_from_scratch(section)
    backbone = section.stereo_backbone
    pretrained = backbone.depth_anything_v2_pretrained_path
    if not (pretrained or backbone.train_vit or backbone.allow_random_backbone):
        raise SpecError(
            "model.stereo_backbone.depth_anything_v2_pretrained_path is empty, so the frozen ViT would keep random "
            "weights; name a Depth Anything V2 file, set model.stereo_backbone.train_vit=true (as preset small does), "
            "or model.stereo_backbone.allow_random_backbone=true"
        )
    model = create_model(**_settings(section))
    if pretrained:
        load_depth_anything(model, pretrained)
    if backbone.edgenext_pretrained_path:
        load_edgenext(model, backbone.edgenext_pretrained_path)
    return model


def network_facts(config: Any) -> dict[str, Any]:
    """What results, ONNX files and engines say of a network with this `model.config`.

    FastFoundationStereo has no ViT, so it has no encoder.
    """
    names = ["variant", "max_disparity", "valid_iters"]
    if isinstance(config, FoundationStereoConfig):
        names.insert(0, "encoder")
    return {name: getattr(config, name) for name in names}


def channels_last(model: nn.Module, dims: tuple[int, ...] = (2, 3)) -> nn.Module:
    """Store the weights of convolutions with `dims` dimensions channels-last, the layout of cuDNN's tensor core
    kernels; their outputs then are channels-last too. Values, names and shapes do not change."""
    layouts = {2: torch.channels_last, 3: torch.channels_last_3d}
    for parameter in model.parameters():
        if parameter.dim() - 2 in set(dims) & set(layouts):
            parameter.data = parameter.data.contiguous(memory_format=layouts[parameter.dim() - 2])
    return model


def _settings(section: Model) -> dict[str, Any]:
    values = {name: getattr(_owner(section, name), name) for name in SETTINGS}
    return {name: None if value == "auto" else value for name, value in values.items()}


def _user_settings(section: Model) -> dict[str, Any]:
    """Settings that the user wrote, except those that only repeat the preset's value."""
    preset = PRESET_SETTINGS[section.preset] if section.preset else {}
    return {
        name: value
        for name, value in _settings(section).items()
        if name in _owner(section, name).model_fields_set and (name not in preset or value != preset[name])
    }


def _fast_settings(section: Model) -> dict[str, Any]:
    """The settings that FoundationStereo does not have, and the network's name if the user wrote it."""
    written = section.model_fields_set
    return {
        "model_type": section.model_type if "model_type" in written else None,
        "gwc_feature_normalize": section.gwc_feature_normalize,
        "widths": {key: getattr(section, key) for key in fast.WIDTH_KEYS},
    }


def _fast_from_scratch(section: Model) -> StereoNetwork:
    """Settings that the spec does not set take the published value; widths take TAO's."""
    shared = {key: value for key, value in _user_settings(section).items() if key in fast.SETTINGS}
    hidden_dims = section.hidden_dims[: section.n_gru_layers]
    widths = fast.complete_widths({key: getattr(section, key) for key in fast.WIDTH_KEYS}, hidden_dims[0])
    left_out = [key for key in fast.WIDTH_KEYS if getattr(section, key) is None and key != "spx_gru_out"]
    if left_out:
        LOG.info(
            "model.%s: TAO's defaults, since the spec leaves %s out; the published network has other widths, "
            "which docs/checkpoints.md lists",
            ", ".join(left_out),
            "it" if len(left_out) == 1 else "them",
        )
    normalised = section.gwc_feature_normalize
    settings = {"hidden_dims": hidden_dims, "widths": widths, "gwc_feature_normalize": normalised}
    model = create_model("FastFoundationStereo", **shared | settings)
    if "max_disparity" not in shared:
        LOG.info("model.max_disparity: using %d px, the value of the published weights", model.config.max_disparity)
    if section.stereo_backbone.edgenext_pretrained_path:
        load_edgenext(model, section.stereo_backbone.edgenext_pretrained_path)
    return model


def _owner(section: Model, name: str) -> Section:
    """The section of the spec that holds a setting."""
    return section.stereo_backbone if name == "train_vit" else section
