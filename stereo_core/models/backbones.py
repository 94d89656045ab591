"""Weights of the backbones alone, for training from scratch: Depth Anything V2's ViT and EdgeNeXt-small."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from stereo_core.errors import ModelError
from stereo_core.models.checkpoints import POSITIONS, encoder_of, load_state, network_of
from stereo_core.models.files import read_weights
from stereo_core.models.foundation_stereo.config import VIT
from stereo_core.models.names import edgenext_from_authors


def load_depth_anything(model: nn.Module, path: str | Path) -> None:
    """Load Depth Anything V2 weights (keys pretrained.*, depth_head.*) into the ViT branch.

    Raises:
        ModelError: not such a file, or one of another ViT; the message names the encoder that fits.
    """
    file = read_weights(path)
    if network_of(file) != "DepthAnythingV2":
        raise ModelError(f"{path}: no Depth Anything V2 file (it has no keys pretrained.* and depth_head.*); give one")
    fits = encoder_of(file.state[POSITIONS].shape[-1], path)
    if fits != model.config.encoder:
        given = model.config.encoder
        widths = f"width {VIT[fits].dim}; {given} has {VIT[given].dim}"
        raise ModelError(f"{path}: the file holds the weights of encoder {fits} ({widths}); set model.encoder={fits}")
    load_state(
        model.feature.dino.depth_anything, file.state, path, "the file is incomplete or belongs to another network"
    )


def load_edgenext(model: nn.Module, path: str | Path) -> None:
    """Load EdgeNeXt-small weights with timm's or the authors' names; the classifier's norm and head are ignored.

    Raises:
        ModelError: not such a file, or one of another size.
    """
    file = read_weights(path)
    if network_of(file) != "EdgeNeXt":
        raise ModelError(
            f"model.stereo_backbone.edgenext_pretrained_path: {path} is no EdgeNeXt file (it has no keys stem.* and "
            "stages.*); give EdgeNeXt-small's weights, or leave the key out"
        )
    state = {edgenext_from_authors(key): t for key, t in file.state.items() if not key.startswith(("norm.", "head."))}
    backbone = nn.Module()
    backbone.stem, backbone.stages = model.feature.stem, model.feature.stages
    load_state(backbone, state, path, "use an EdgeNeXt-small file (widths 48, 96, 160, 304)")
