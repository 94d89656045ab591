"""Networks that turn a rectified stereo pair into a disparity, and their checkpoints."""

from __future__ import annotations

from torch import nn

from stereo_core.errors import ModelError
from stereo_core.models.foundation_stereo.config import make_config
from stereo_core.models.foundation_stereo.model import FoundationStereo

__all__ = ["create_model"]


def create_model(name: str = "FoundationStereo", **settings) -> nn.Module:
    """A FoundationStereo network with random weights.

    Settings (None takes the preset's or the published value): encoder, max_disparity (px, a multiple of 32), variant
    (nvlabs, tao), disparity_attention (disparity, heads, tao), preset (tiny), corr_levels, corr_radius, n_gru_layers,
    train_iters, valid_iters, low_memory, mixed_precision. `model.config` holds them all.

    Raises:
        ModelError: an unknown name, or a value the network can not be built with.
    """
    if name.lower() != "foundationstereo":
        raise ModelError(f"model {name!r} is not available; there is FoundationStereo")
    return FoundationStereo(make_config(**settings))
