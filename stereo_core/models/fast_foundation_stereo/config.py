"""Settings and widths of FastFoundationStereo. The published network, bp2, is the default of every field."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from stereo_core.errors import ModelError
from stereo_core.models.foundation_stereo.config import FoundationStereoConfig, check_common, in_range

TOPOLOGIES = ("bp2", "unpruned")
ENCODERS = ("vits", "vitb", "vitl")


@dataclass(frozen=True)
class FastWidths:
    """Widths of the pruned layers, named as TAO's keys `model.*`."""

    motion_encoder_widths: tuple[int, int, int, int] = (
        56,
        96,
        16,
        12,
    )  # two convolutions of the costs, two of the disparity
    motion_encoder_final: int = 48  # motion features without the disparity
    gru_hidden: int = 60
    gru_gating_conv_widths: tuple[int, int] = (100, 168)
    disp_head_intermediate: int = 36
    disp_head_pwconv1_widths: tuple[int, int] = (212, 244)
    mask_widths: tuple[int, int] = (32, 16)
    stem_2_widths: tuple[int, int] = (12, 16)
    spx_2_gru_widths: tuple[int, int, int, int] = (16, 12, 16, 24)  # mask feature, enlarged, stem, output
    spx_gru_out: int = 9
    cnet_conv04_widths: tuple[int, int] = (60, 48)  # state, context
    cam_mid_channels: int = 8


WIDTHS = {
    "bp2": FastWidths(),
    "unpruned": FastWidths(
        motion_encoder_widths=(256, 256, 64, 64),
        motion_encoder_final=127,
        gru_hidden=128,
        gru_gating_conv_widths=(256, 384),
        disp_head_intermediate=128,
        disp_head_pwconv1_widths=(512, 512),
        mask_widths=(64, 32),
        stem_2_widths=(32, 32),
        spx_2_gru_widths=(32, 32, 32, 64),
        cnet_conv04_widths=(128, 128),
        cam_mid_channels=8,
    ),
}


@dataclass(frozen=True)
class FastFoundationStereoConfig:
    """All settings that define the network's graph. Sizes in px of the full image."""

    topology: str = "bp2"  # bp2: the searched hourglass of the published weights; unpruned: the classic one
    encoder: str = "vitl"  # there is no ViT: it only sets the width of the feature at 1/4
    max_disparity: int = 192  # range of the cost volume, px; a multiple of 32
    gwc_feature_normalize: bool = True  # group correlation by cosine instead of dot product
    hidden_dims: tuple[int, ...] = (128,)  # of layers that checkpoints contain but the network does not use
    corr_levels: int = 2
    corr_radius: int = 4
    train_iters: int = 22
    valid_iters: int = 8
    low_memory: int = 0  # accepted, but has no effect
    mixed_precision: bool = False
    widths: FastWidths = field(default_factory=FastWidths)

    preset = None
    variant = "fast"

    @property
    def bins(self) -> int:
        """Disparity bins of the cost volume: one per pixel at quarter resolution."""
        return self.max_disparity // 4

    @property
    def classic(self) -> FoundationStereoConfig:
        """The settings of the parts shared with FoundationStereo."""
        return FoundationStereoConfig(
            encoder=self.encoder, max_disparity=self.max_disparity, disparity_attention="heads"
        )

    @property
    def lookup(self) -> int:
        """Number of values looked up per pixel."""
        return self.corr_levels * (2 * self.corr_radius + 1) * (self.classic.widths.volume + 1)


SETTINGS = tuple(f.name for f in fields(FastFoundationStereoConfig) if f.name != "widths")


WIDTH_KEYS = tuple(f.name for f in fields(FastWidths))


def make_config(widths: Mapping[str, Any] | FastWidths | None = None, **settings: Any) -> FastFoundationStereoConfig:
    """A checked configuration. A setting or width that is None takes the topology's published value.

    Raises:
        ModelError: an unknown name, or a value that no network can be built with.
    """
    unknown = sorted(set(settings) - set(SETTINGS))
    if unknown:
        raise ModelError(f"unknown model setting {unknown[0]!r}; FastFoundationStereo has {', '.join(SETTINGS)}")
    given = {key: value for key, value in settings.items() if value is not None}
    topology = given.get("topology", "bp2")
    if topology not in TOPOLOGIES:
        raise ModelError(f"topology {topology!r} is unknown; choose one of {', '.join(TOPOLOGIES)}")
    if "hidden_dims" in given:
        given["hidden_dims"] = tuple(given["hidden_dims"])
    config = replace(FastFoundationStereoConfig(widths=_widths(widths, topology)), **given)
    if config.encoder not in ENCODERS:
        raise ModelError(f"encoder {config.encoder!r} is unknown; choose one of {', '.join(ENCODERS)}")
    if not config.hidden_dims:
        raise ModelError("hidden_dims is empty; the published network uses [128]")
    check_common(config)
    return config


def complete_widths(specified: Mapping[str, Any], hidden: int) -> FastWidths:
    """The widths of a spec; missing ones take TAO's defaults, which depend on the first hidden width."""
    widths = {
        "motion_encoder_widths": (256, 256, 64, 64),
        "motion_encoder_final": hidden - 1,
        "gru_hidden": hidden,
        "mask_widths": (64, 32),
        "stem_2_widths": (32, 32),
        "spx_2_gru_widths": (32, 32, 32, 32),
        "cnet_conv04_widths": (hidden, hidden),
    } | {key: value for key, value in specified.items() if value is not None}
    context, dim = widths["cnet_conv04_widths"][-1], widths.get("disp_head_intermediate", widths["gru_hidden"])
    x_dim = context + widths["motion_encoder_final"] + 1
    derived = {
        "gru_gating_conv_widths": (x_dim, x_dim + widths["gru_hidden"]),
        "disp_head_intermediate": dim,
        "disp_head_pwconv1_widths": (4 * dim, 4 * dim),
        "cam_mid_channels": max(1, context // 16),
    }
    return _widths(derived | widths, "bp2")


def _widths(given: Mapping[str, Any] | FastWidths | None, topology: str) -> FastWidths:
    if isinstance(given, FastWidths):
        given = asdict(given)
    specified = {key: value for key, value in (given or {}).items() if value is not None}
    known = {f.name: getattr(WIDTHS[topology], f.name) for f in fields(FastWidths)}
    for key, value in specified.items():
        if key not in known:
            raise ModelError(f"unknown width {key!r}; choose one of {', '.join(known)}")
        wanted = len(known[key]) if isinstance(known[key], tuple) else None
        if wanted != (len(value) if isinstance(value, (tuple, list)) else None):
            raise ModelError(f"{key} {value}: expected {'one number' if wanted is None else f'{wanted} numbers'}")
        for number in value if wanted else [value]:
            in_range(key, number, 1, None)
    widths = FastWidths(**{k: tuple(v) if isinstance(v, (tuple, list)) else v for k, v in (known | specified).items()})
    _consistent(widths)
    return widths


def _consistent(widths: FastWidths) -> None:
    """Check that connected layers have matching widths."""
    pairs = [
        ("stem_2_widths[1]", widths.stem_2_widths[1], "spx_2_gru_widths[2]", widths.spx_2_gru_widths[2]),
        ("mask_widths[1]", widths.mask_widths[1], "spx_2_gru_widths[0]", widths.spx_2_gru_widths[0]),
        ("cnet_conv04_widths[0]", widths.cnet_conv04_widths[0], "gru_hidden", widths.gru_hidden),
        ("spx_gru_out", widths.spx_gru_out, "the number of a pixel's neighbours", 9),
    ]
    for one, left, other, right in pairs:
        if left != right:
            raise ModelError(f"{one} is {left} and {other} is {right}, but they must be equal")
