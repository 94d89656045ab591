"""`model`: the network."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from stereo_core.spec.fields import Int, Positive, Section, Text, any_case, key, section

Two = Annotated[list[Positive], Field(min_length=2, max_length=2)]
Four = Annotated[list[Positive], Field(min_length=4, max_length=4)]
_FAST = "FastFoundationStereo"


class StereoBackbone(Section):
    depth_anything_v2_pretrained_path: Text = key(
        "", "File of Depth Anything V2 weights for the ViT; not needed with a checkpoint"
    )
    edgenext_pretrained_path: Text = key("", "File of EdgeNeXt-small weights; not needed with a checkpoint")
    use_bn: bool = key(False, "BatchNorm in the DPT head; only false is supported")
    use_clstoken: bool = key(False, "Class token in the DPT head; only false is supported")
    allow_random_backbone: bool = key(False, "Allow training with random weights in the frozen ViT (not in TAO)")
    train_vit: bool = key(False, "Train the ViT too; true with preset small (not in TAO)")


class MonoBackbone(Section):
    pretrained_path: Text = key("", "Only for monocular depth")
    use_bn: bool = key(False, "Only for monocular depth")
    use_clstoken: bool = key(False, "Only for monocular depth")


class FoundationStereoModel(Section):
    model_type: Annotated[
        Literal["FoundationStereo", "MetricDepthAnything", "RelativeDepthAnything", "FastFoundationStereo"],
        any_case("FoundationStereo", "MetricDepthAnything", "RelativeDepthAnything", "FastFoundationStereo"),
    ] = key(
        "FoundationStereo",
        "Network: FoundationStereo or FastFoundationStereo, in upper or lower case; unset: the checkpoint's",
    )
    preset: Literal["tiny", "small"] | None = key(
        None,
        "A smaller network. small: that of the starter model; tiny: the same layers with max_disparity 64, for tests "
        "and demos (not in TAO)",
    )
    variant: Literal["auto", "nvlabs", "tao"] = key(
        "auto", "Whose code the layers follow, NVlabs' or TAO's; auto: as the checkpoint (not in TAO)"
    )
    disparity_attention: Literal["auto", "disparity", "heads", "tao"] = key(
        "auto", "How attention along the disparity axis is computed; auto: as the variant does (not in TAO)"
    )
    encoder: Literal["vits", "vitb", "vitl", "vitg", "vitt"] = key(
        "vitl",
        "Size of the ViT; vitt: only with a preset. FastFoundationStereo has no ViT: there it is the width of a layer",
    )
    stereo_backbone: StereoBackbone = section(StereoBackbone, "Pretrained backbones")
    mono_backbone: MonoBackbone = section(MonoBackbone, "Only for monocular depth")
    hidden_dims: list[Positive] = key([128, 128, 128], "Width of each GRU level; only 128 is supported")
    n_gru_layers: Int = key(3, "GRU levels", ge=1, le=3)
    n_downsample: Int = key(2, "The network works at 1 / 2^n of the resolution; only 2 is supported", ge=1, le=2)
    corr_levels: Int = key(2, "Levels of the pyramid of matching costs that the GRU looks up", ge=1, le=2)
    corr_radius: Int = key(4, "Radius of the lookup of matching costs, in disparity bins", ge=2, le=8, automl=True)
    cv_group: Int = key(8, "Groups of the correlation volume; only 8 is supported", ge=4, le=16)
    volume_dim: Int = key(32, "Channels of the cost volume; always 28 (TAO's default 32 also means 28)", ge=16, le=64)
    max_disparity: Int = key(416, "Range of the cost volume in px, a multiple of 32", ge=32, multiple_of=32)
    train_iters: Int = key(22, "GRU iterations in training", ge=1)
    valid_iters: Int = key(22, "GRU iterations in validation, evaluate and inference", ge=1)
    mixed_precision: bool = key(False, "Mixed precision (autocast) inside the network")
    low_memory: Int = key(0, "Memory saving level", ge=0, le=4)


class Model(FoundationStereoModel):
    gwc_feature_normalize: bool | None = key(None, f"{_FAST}: correlate features by cosine instead of dot product")
    motion_encoder_widths: Four | None = key(
        None, f"{_FAST}: channels of the motion encoder: two layers for costs, two for disparity"
    )
    motion_encoder_final: Positive | None = key(None, f"{_FAST}: channels of the motion features")
    gru_hidden: Positive | None = key(None, f"{_FAST}: channels of the GRU's hidden state")
    gru_gating_conv_widths: Two | None = key(None, f"{_FAST}: channels of the two layers before the GRU's gates")
    disp_head_input_dim: Positive | None = key(None, f"{_FAST}: input channels of the disparity head")
    disp_head_intermediate: Positive | None = key(None, f"{_FAST}: channels of the disparity head")
    disp_head_pwconv1_widths: Two | None = key(None, f"{_FAST}: inner channels of the disparity head's two blocks")
    mask_widths: Two | None = key(None, f"{_FAST}: channels of the upsampling mask's two layers")
    stem_2_widths: Two | None = key(None, f"{_FAST}: channels of the two layers of image features at half resolution")
    spx_2_gru_widths: Four | None = key(
        None, f"{_FAST}: channels in the upsampling: mask, enlarged mask, image features, output"
    )
    spx_gru_out: Positive | None = key(None, f"{_FAST}: neighbours of a pixel that the upsampling weighs; always 9")
    classifier_mid: Positive | None = key(None, f"{_FAST}: not used")
    cnet_conv04_widths: Two | None = key(None, f"{_FAST}: channels of the context network: GRU state and context")
    cam_mid_channels: Positive | None = key(None, f"{_FAST}: inner channels of the channel attention")
    cost_agg_conv_patch_padding: list[Int] | None = key(None, f"{_FAST}: not used")


FAST_KEYS = tuple(name for name in Model.model_fields if name not in FoundationStereoModel.model_fields)
"""The keys that FoundationStereo does not have."""

PRESETS: dict[str, dict[str, Any]] = {
    "tiny": {"encoder": "vitt", "max_disparity": 64, "train_iters": 4, "valid_iters": 8},
    "small": {
        "encoder": "vitt",
        "max_disparity": 192,
        "train_iters": 4,
        "valid_iters": 8,
        "stereo_backbone": {"train_vit": True},
    },
}
"""Defaults of `model` for each preset; values that the user sets win."""
