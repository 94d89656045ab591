"""Settings and widths of the network. The published network is the default of every field."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from typing import Any

from stereo_core.errors import ModelError

VARIANTS = ("nvlabs", "tao")
ATTENTIONS = ("disparity", "heads", "tao")
ENCODERS = ("vits", "vitb", "vitl", "vitg", "vitt")
PRESETS = ("tiny", "small")


@dataclass(frozen=True)
class VitWidths:
    """A DINOv2 vision transformer and the Depth Anything V2 head on it."""

    dim: int
    depth: int
    heads: int
    taken: tuple[int, int, int, int]  # indices of the blocks whose output the head uses
    features: int  # channels of the head's fusion
    reassemble: tuple[int, int, int, int]  # channels of the head's four scales
    swiglu_dim: int | None = None  # hidden width of the gated feed-forward; None: MLP of ratio 4


VIT = {
    "vitt": VitWidths(64, 4, 2, (0, 1, 2, 3), 16, (8, 16, 32, 64)),
    "vits": VitWidths(384, 12, 6, (2, 5, 8, 11), 64, (48, 96, 192, 384)),
    "vitb": VitWidths(768, 12, 12, (2, 5, 8, 11), 128, (96, 192, 384, 768)),
    "vitl": VitWidths(1024, 24, 16, (4, 11, 17, 23), 256, (256, 512, 1024, 1024)),
    "vitg": VitWidths(1536, 40, 24, (9, 19, 29, 39), 384, (1536, 1536, 1536, 1536), swiglu_dim=4096),
}


@dataclass(frozen=True)
class Widths:
    """All widths except the ViT's."""

    edgenext_dims: tuple[int, int, int, int] = (48, 96, 160, 304)
    edgenext_depths: tuple[int, int, int, int] = (3, 3, 9, 3)
    edgenext_heads: int = 8
    correlation_groups: int = 8
    concat: int = 12  # channels per image in the concatenation volume
    volume: int = 28  # channels of the filtered cost volume
    volume_heads: int = 4  # heads of the disparity transformer
    context: tuple[int, int, int] = (64, 96, 128)  # context network at 1/1, 1/2, 1/4
    hidden: int = 128  # GRU state, context and motion features
    motion_lookup: int = 256  # motion encoder, branch of the looked-up costs
    motion_disparity: int = 64  # motion encoder, branch of the disparity
    mask: int = 64  # upsampling mask head
    stem: int = 32  # half-resolution image features, also the output of the mask head


_NARROW = Widths(
    edgenext_dims=(24, 48, 88, 168),
    edgenext_depths=(2, 2, 6, 2),
    edgenext_heads=4,
    concat=4,
    volume=8,
    context=(16, 24, 32),
    hidden=32,
    motion_lookup=64,
    motion_disparity=16,
    mask=16,
    stem=8,
)
WIDTHS = {None: Widths(), "tiny": _NARROW, "small": _NARROW}

# The preset's values for settings that the caller does not set.
PRESET_SETTINGS = {
    None: {"encoder": "vitl", "max_disparity": 416, "train_iters": 22, "valid_iters": 22},
    "tiny": {"encoder": "vitt", "max_disparity": 64, "train_iters": 4, "valid_iters": 8},
    "small": {"encoder": "vitt", "max_disparity": 192, "train_iters": 4, "valid_iters": 8, "train_vit": True},
}


@dataclass(frozen=True)
class FoundationStereoConfig:
    """All settings that define the network's graph. Sizes in px of the full image."""

    encoder: str = "vitl"
    max_disparity: int = 416  # range of the cost volume, px; a multiple of 32
    variant: str = "nvlabs"
    disparity_attention: str = "disparity"
    preset: str | None = None
    train_vit: bool = False  # False: the ViT is frozen
    corr_levels: int = 2
    corr_radius: int = 4
    n_gru_layers: int = 3
    train_iters: int = 22
    valid_iters: int = 22
    low_memory: int = 0  # accepted, but has no effect: the lookup that TAO splits never determines the peak memory
    mixed_precision: bool = False
    widths: Widths = field(default_factory=Widths)

    @property
    def vit(self) -> VitWidths:
        return VIT[self.encoder]

    @property
    def bins(self) -> int:
        """Disparity bins of the cost volume: one per pixel at quarter resolution."""
        return self.max_disparity // 4

    @property
    def feature_dims(self) -> tuple[int, int, int, int]:
        """Channels of the fused features at 1/4, 1/8, 1/16, 1/32."""
        d4, d8, d16, d32 = self.widths.edgenext_dims
        return 2 * d4 + self.vit.features // 2, 2 * d8, 2 * d16, d32


SETTINGS = tuple(f.name for f in fields(FoundationStereoConfig) if f.name != "widths")


def make_config(**settings: Any) -> FoundationStereoConfig:
    """A checked configuration. A setting that is None takes the preset's or the published value.

    `disparity_attention=None` means "disparity" for variant nvlabs and "tao" for variant tao.

    Raises:
        ModelError: an unknown name, or a value that no network can be built with.
    """
    unknown = sorted(set(settings) - set(SETTINGS))
    if unknown:
        raise ModelError(f"unknown model setting {unknown[0]!r}; choose one of {', '.join(SETTINGS)}")
    given = {key: value for key, value in settings.items() if value is not None}
    preset = given.get("preset")
    _choice("preset", preset, (None, *PRESETS))
    config = replace(FoundationStereoConfig(widths=WIDTHS[preset]), **{**PRESET_SETTINGS[preset], **given})
    _choice("variant", config.variant, VARIANTS)
    if "disparity_attention" not in given:
        config = replace(config, disparity_attention="tao" if config.variant == "tao" else "disparity")
    _choice("disparity_attention", config.disparity_attention, ATTENTIONS)
    _choice("encoder", config.encoder, ENCODERS)
    if preset and config.encoder != PRESET_SETTINGS[preset]["encoder"]:
        own = PRESET_SETTINGS[preset]["encoder"]
        raise ModelError(
            f"encoder {config.encoder!r} does not fit preset {preset!r}, whose encoder is {own!r}; leave encoder out"
        )
    in_range("n_gru_layers", config.n_gru_layers, 1, 3)
    check_common(config)
    return config


def check_common(config: Any) -> None:
    """Raise ModelError for values that no network of the family can be built with."""
    if config.max_disparity < 32 or config.max_disparity % 32:
        low = max(32, config.max_disparity // 32 * 32)
        raise ModelError(
            f"max_disparity {config.max_disparity} is not a multiple of 32 (three stride-2 stages on a quarter-"
            f"resolution volume): use {low} or {low + 32}"
        )
    in_range("corr_levels", config.corr_levels, 1, 2)
    in_range("corr_radius", config.corr_radius, 2, 8)
    in_range("low_memory", config.low_memory, 0, 4)
    in_range("train_iters", config.train_iters, 1, None)
    in_range("valid_iters", config.valid_iters, 1, None)


def settings_of(config: Any) -> dict[str, Any]:
    """The settings of a network's configuration, without the widths, which follow from its weights."""
    return {f.name: getattr(config, f.name) for f in fields(config) if f.name != "widths"}


def _choice(name: str, value: object, choices: tuple[Any, ...]) -> None:
    if value not in choices:
        raise ModelError(f"{name} {value!r} is unknown; choose one of {', '.join(str(c) for c in choices)}")


def in_range(name: str, value: int, low: int, high: int | None) -> None:
    if value < low or (high is not None and value > high):
        raise ModelError(f"{name} is {value}; it must be {f'at least {low}' if high is None else f'{low} to {high}'}")
