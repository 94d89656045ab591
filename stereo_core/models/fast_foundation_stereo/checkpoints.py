"""Settings from the keys and shapes of a FastFoundationStereo checkpoint, combined with those of a spec."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from torch import Tensor

from stereo_core.errors import ModelError
from stereo_core.models.fast_foundation_stereo.config import (
    ENCODERS,
    SETTINGS,
    FastFoundationStereoConfig,
    make_config,
)
from stereo_core.models.fast_foundation_stereo.model import offsets
from stereo_core.models.foundation_stereo.config import FoundationStereoConfig

__all__ = ["PUBLISHED_RANGE", "SETTINGS", "complete", "config_of", "fixed_by_weights", "trained_for"]

PUBLISHED_RANGE = FastFoundationStereoConfig().max_disparity  # px
LOG = logging.getLogger(__name__)
TAO_RANGE = 416  # px: default of TAO's schema; no published weights of this network use it

# Width -> the weights whose first dimension has this width.
FIRST_DIMENSIONS = {
    "motion_encoder_widths": [f"update_block.encoder.{name}" for name in ("convc1", "convc2", "convd1", "convd2")],
    "motion_encoder_final": "update_block.encoder.conv",
    "gru_hidden": "update_block.gru04.small_gru.convz",
    "gru_gating_conv_widths": ["update_block.gru04.conv0.0", "update_block.gru04.conv1.0"],
    "disp_head_intermediate": "update_block.disp_head.conv.0",
    "disp_head_pwconv1_widths": [f"update_block.disp_head.conv.{i}.pwconv1" for i in (2, 3)],
    "mask_widths": ["update_block.mask.0", "update_block.mask.2"],
    "stem_2_widths": ["stem_2.0.conv", "stem_2.1"],
    "cam_mid_channels": "cam.fc.0",
}


def complete(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Set the offsets of the lookup: the published file lacks them, and stored ones are replaced."""
    convc1 = state.get("update_block.encoder.convc1.weight")
    found = {} if convc1 is None else _lookup(convc1.shape[1])
    return {"dx": offsets(found.get("corr_radius", 4))} | {key: t for key, t in state.items() if key != "dx"}


def fixed_by_weights(state: dict[str, Tensor], path: str | Path) -> dict[str, Any]:
    """Settings that the keys and shapes determine: topology, encoder, widths, sizes of the lookup, unused layers.

    Raises:
        ModelError: neither of the two known networks, or weights are missing.
    """
    if "cost_agg.post32_to_16.upsample.0.conv.weight" in state:
        topology, head = "bp2", "cnet.conv04.{}.conv"
    elif "corr_stem.0.weight" in state:
        topology, head = "unpruned", "cnet.conv04.{}"
    else:
        raise ModelError(
            f"{path}: a FastFoundationStereo with an unknown pruned structure; supported are bp2 "
            "(model_best_bp2_serialize.pth, TAO) and the un-pruned network"
        )
    try:
        found = {
            "topology": topology,
            "encoder": _encoder(state["proj_cmb.weight"].shape[1], path),
            "hidden_dims": _unused_widths(state),
            "widths": _widths(state, head),
        }
        return found | _lookup(state["update_block.encoder.convc1.weight"].shape[1])
    except KeyError as error:
        raise ModelError(
            f"{path}: the weight {error.args[0]} is missing; the file is incomplete, or of another network: copy it "
            "again, or see `depth_net describe`"
        ) from error


def config_of(
    found: dict[str, Any], stored: dict[str, Any], given: dict[str, Any], path: str | Path
) -> FastFoundationStereoConfig:
    """The configuration of a file: from its weights, else from the caller, else from the settings stored beside them.

    Raises:
        ModelError: the caller contradicts the weights, or sets TAO's default of max_disparity, which no published
            weights were trained for.
    """
    ignored = ("hidden_dims", "n_gru_layers")  # they only shape unused layers: the file's values are kept
    given = {key: value for key, value in given.items() if key not in ignored}
    for key, value in (given.pop("widths", None) or {}).items():
        held = found["widths"].get(key)
        if value is not None and held != (tuple(value) if isinstance(value, (tuple, list)) else value):
            shown = list(held) if isinstance(held, tuple) else held
            raise ModelError(
                f"{path}: the file has {key} {shown}, not {value}; remove model.{key} from the spec: the "
                "checkpoint decides"
            )
    for key in given.keys() & found.keys():
        if given[key] != found[key]:
            raise ModelError(
                f"{path}: the file has {key} {found[key]}, not {given[key]}; remove model.{key} from the spec"
            )
    if given.get("preset"):
        raise ModelError(
            f"{path}: the file holds FastFoundationStereo, which has no preset; remove model.preset from the spec"
        )
    asked, trained = (settings.get("gwc_feature_normalize") for settings in (given, stored))
    if None not in (asked, trained) and asked != trained:
        LOG.warning(
            "%s: model.gwc_feature_normalize is %s, but the weights were trained with %s, so disparities may be wrong; "
            "leave it out, or train on",
            *(path, str(asked).lower(), str(trained).lower()),
        )
    fitting = trained_for(stored)
    if given.get("max_disparity") == TAO_RANGE != fitting:
        raise ModelError(
            f"{path}: the weights were not trained for a max_disparity of {TAO_RANGE} px, so disparities would be "
            f"biased; set model.max_disparity={fitting} or leave it out"
        )
    return make_config(**stored | given | found)


def trained_for(stored: dict[str, Any]) -> int:
    """The max_disparity, in px, that the weights were trained for: the file's, or that of the published weights."""
    return stored.get("max_disparity") or PUBLISHED_RANGE


def _widths(state: dict[str, Tensor], head: str) -> dict[str, Any]:
    def first(layer: str) -> int:
        return state[f"{layer}.weight"].shape[0]

    widths = {
        key: first(layers) if isinstance(layers, str) else tuple(first(layer) for layer in layers)
        for key, layers in FIRST_DIMENSIONS.items()
    }
    enlarge, mix = state["spx_2_gru.conv1.conv.weight"], state["spx_2_gru.conv2.conv.weight"]
    in_dim, mid = enlarge.shape[:2]  # transposed convolution: the input channels come first
    widths["spx_2_gru_widths"] = (in_dim, mid, mix.shape[1] - mid, mix.shape[0])
    widths["spx_gru_out"] = state["spx_gru.0.weight"].shape[1]
    widths["cnet_conv04_widths"] = (first(head.format(0)), first(head.format(1)))
    return widths


def _unused_widths(state: dict[str, Tensor]) -> tuple[int, ...]:
    found: list[int] = []
    while (weight := state.get(f"context_zqr_convs.{len(found)}.weight")) is not None:
        found.append(weight.shape[1])
    if not found:
        raise KeyError("context_zqr_convs.0.weight")
    return tuple(found)


def _lookup(width: int) -> dict[str, Any]:
    """Levels and radius of a lookup of levels * 29 * (2 radius + 1) values."""
    channels = FoundationStereoConfig().widths.volume + 1
    for levels in (1, 2):
        taps = width // (levels * channels)
        if taps * levels * channels == width and taps % 2:
            return {"corr_levels": levels, "corr_radius": taps // 2}
    return {}


def _encoder(dim: int, path: str | Path) -> str:
    known = {FoundationStereoConfig(encoder=name).feature_dims[0]: name for name in ENCODERS}
    if dim not in known:
        fits = ", ".join(f"{width} ({name})" for width, name in known.items())
        raise ModelError(f"{path}: the feature at 1/4 of the resolution has {dim} channels; supported are {fits}")
    return known[dim]
