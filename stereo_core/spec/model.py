"""`model`: the network."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from stereo_core.spec.fields import Int, Positive, Section, Text, any_case, key, section

Two = Annotated[list[Positive], Field(min_length=2, max_length=2)]
Four = Annotated[list[Positive], Field(min_length=4, max_length=4)]
_FAST = "FastFoundationStereo"


class StereoBackbone(Section):
    depth_anything_v2_pretrained_path: Text = key("", "Depth Anything V2 weights of the ViT")
    edgenext_pretrained_path: Text = key("", "EdgeNeXt weights")
    use_bn: bool = key(False, "BatchNorm in the DPT head; only false is supported")
    use_clstoken: bool = key(False, "Class token in the DPT head; only false is supported")
    allow_random_backbone: bool = key(False, "Allow training with random weights in the frozen ViT (ours)")
    train_vit: bool = key(False, "Train the ViT too; true with preset small (ours)")


class MonoBackbone(Section):
    pretrained_path: Text = key("", "Mono only")
    use_bn: bool = key(False, "Mono only")
    use_clstoken: bool = key(False, "Mono only")


class FoundationStereoModel(Section):
    model_type: Annotated[
        Literal["FoundationStereo", "MetricDepthAnything", "RelativeDepthAnything", "FastFoundationStereo"],
        any_case("FoundationStereo", "MetricDepthAnything", "RelativeDepthAnything", "FastFoundationStereo"),
    ] = key(
        "FoundationStereo",
        "FoundationStereo or FastFoundationStereo, in any case; unset: the checkpoint's architecture",
    )
    preset: Literal["tiny", "small"] | None = key(
        None, "small: the starter's network; tiny: same widths, smaller disparity range, for tests and demo (ours)"
    )
    variant: Literal["auto", "nvlabs", "tao"] = key("auto", "Layout of the network; auto: the checkpoint's (ours)")
    disparity_attention: Literal["auto", "disparity", "heads", "tao"] = key(
        "auto", "Attention along the disparity axis; auto: that of the variant (ours)"
    )
    encoder: Literal["vits", "vitb", "vitl", "vitg", "vitt"] = key("vitl", "Size of the ViT; vitt: only with a preset")
    stereo_backbone: StereoBackbone = section(StereoBackbone, "Pretrained parts")
    mono_backbone: MonoBackbone = section(MonoBackbone, "Mono only")
    hidden_dims: list[Positive] = key([128, 128, 128], "Width of each GRU level; only 128 is supported")
    n_gru_layers: Int = key(3, "GRU levels", ge=1, le=3)
    n_downsample: Int = key(2, "The network works at 1 / 2^n of the resolution; only 2 is supported", ge=1, le=2)
    corr_levels: Int = key(2, "Levels of the lookup pyramid", ge=1, le=2)
    corr_radius: Int = key(4, "Half width of the lookup, in disparities", ge=2, le=8, automl=True)
    cv_group: Int = key(8, "Groups of the correlation volume; only 8 is supported", ge=4, le=16)
    volume_dim: Int = key(32, "Channels of the cost volume; always 28 (TAO's default 32 also means 28)", ge=16, le=64)
    max_disparity: Int = key(416, "Range of the cost volume in px, a multiple of 32", ge=32, multiple_of=32)
    train_iters: Int = key(22, "GRU iterations in training", ge=1)
    valid_iters: Int = key(22, "GRU iterations in validation, evaluate and inference", ge=1)
    mixed_precision: bool = key(False, "Autocast inside the network")
    low_memory: Int = key(0, "Memory saving level", ge=0, le=4)


class Model(FoundationStereoModel):
    gwc_feature_normalize: bool | None = key(None, f"{_FAST}: correlate by cosine instead of dot product")
    motion_encoder_widths: Four | None = key(None, f"{_FAST}: two layers for costs, two for disparity")
    motion_encoder_final: Positive | None = key(None, f"{_FAST}: motion features")
    gru_hidden: Positive | None = key(None, f"{_FAST}: state of the GRU")
    gru_gating_conv_widths: Two | None = key(None, f"{_FAST}: the layers before the GRU's gates")
    disp_head_input_dim: Positive | None = key(None, f"{_FAST}: set by gru_hidden")
    disp_head_intermediate: Positive | None = key(None, f"{_FAST}: disparity head")
    disp_head_pwconv1_widths: Two | None = key(None, f"{_FAST}: inside the disparity head's blocks")
    mask_widths: Two | None = key(None, f"{_FAST}: the upsampling mask's layers")
    stem_2_widths: Two | None = key(None, f"{_FAST}: image features at 1/2")
    spx_2_gru_widths: Four | None = key(None, f"{_FAST}: upsampling: mask, enlarged, stem, output")
    spx_gru_out: Positive | None = key(None, f"{_FAST}: neighbours in the upsampling, 9")
    classifier_mid: Positive | None = key(None, f"{_FAST}: not used")
    cnet_conv04_widths: Two | None = key(None, f"{_FAST}: state and context")
    cam_mid_channels: Positive | None = key(None, f"{_FAST}: inside the channel attention")
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
