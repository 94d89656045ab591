"""`model`: the network."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from stereo_core.spec.fields import Int, Positive, Section, Text, any_case, key, section

Widths = list[Positive] | None
_FAST = "FastFoundationStereo only"


class StereoBackbone(Section):
    depth_anything_v2_pretrained_path: Text = key("", "Depth Anything V2 weights of the ViT")
    edgenext_pretrained_path: Text = key("", "EdgeNeXt weights")
    use_bn: bool = key(False, "BatchNorm in the DPT head; only false exists here")
    use_clstoken: bool = key(False, "Class token in the DPT head; only false exists here")
    allow_random_backbone: bool = key(False, "Train although the frozen ViT has random weights (ours)")
    train_vit: bool = key(False, "Train the ViT too; preset small does (ours)")


class MonoBackbone(Section):
    pretrained_path: Text = key("", "Mono only")
    use_bn: bool = key(False, "Mono only")
    use_clstoken: bool = key(False, "Mono only")


class Model(Section):
    model_type: Annotated[
        Literal["FoundationStereo", "MetricDepthAnything", "RelativeDepthAnything", "FastFoundationStereo"],
        any_case("FoundationStereo", "MetricDepthAnything", "RelativeDepthAnything", "FastFoundationStereo"),
    ] = key("FoundationStereo", "Architecture, any case; only FoundationStereo exists here")
    preset: Literal["tiny", "small"] | None = key(
        None, "small: the starter's network; tiny: as narrow, of a smaller range, for tests and the demo (ours)"
    )
    variant: Literal["auto", "nvlabs", "tao"] = key("auto", "Layout of the network; auto: the checkpoint's (ours)")
    disparity_attention: Literal["auto", "disparity", "heads", "tao"] = key(
        "auto", "Attention along disparity; auto: the variant's (ours)"
    )
    encoder: Literal["vits", "vitb", "vitl", "vitg", "vitt"] = key("vitl", "Size of the ViT; vitt: the presets'")
    stereo_backbone: StereoBackbone = section(StereoBackbone, "Pretrained parts")
    mono_backbone: MonoBackbone = section(MonoBackbone, "Mono only")
    hidden_dims: list[Positive] = key([128, 128, 128], "Width of each GRU level; only 128 exists here")
    n_gru_layers: Int = key(3, "GRU levels", ge=1, le=3)
    n_downsample: Int = key(2, "Working resolution 1 / 2^n; only 2 exists here", ge=1, le=2)
    corr_levels: Int = key(2, "Levels of the lookup pyramid", ge=1, le=2)
    corr_radius: Int = key(4, "Half width of the lookup, in disparities", ge=2, le=8, automl=True)
    cv_group: Int = key(8, "Groups of the correlation volume; only 8 exists here", ge=4, le=16)
    volume_dim: Int = key(32, "Channels of the cost volume; 28, of which TAO's 32 is another name", ge=16, le=64)
    max_disparity: Int = key(416, "Range of the cost volume in px, a multiple of 32", ge=32, multiple_of=32)
    train_iters: Int = key(22, "GRU iterations in training", ge=1)
    valid_iters: Int = key(22, "GRU iterations in validation, evaluate and inference", ge=1)
    mixed_precision: bool = key(False, "Autocast inside the network")
    low_memory: Int = key(0, "Memory saving level", ge=0, le=4)
    gwc_feature_normalize: bool | None = key(None, _FAST)
    motion_encoder_widths: Widths = key(None, _FAST)
    motion_encoder_final: Positive | None = key(None, _FAST)
    gru_hidden: Positive | None = key(None, _FAST)
    gru_gating_conv_widths: Widths = key(None, _FAST)
    disp_head_input_dim: Positive | None = key(None, _FAST)
    disp_head_intermediate: Positive | None = key(None, _FAST)
    disp_head_pwconv1_widths: Widths = key(None, _FAST)
    mask_widths: Widths = key(None, _FAST)
    stem_2_widths: Widths = key(None, _FAST)
    spx_2_gru_widths: Widths = key(None, _FAST)
    spx_gru_out: Positive | None = key(None, _FAST)
    classifier_mid: Positive | None = key(None, _FAST)
    cnet_conv04_widths: Widths = key(None, _FAST)
    cam_mid_channels: Positive | None = key(None, _FAST)
    cost_agg_conv_patch_padding: list[Int] | None = key(None, _FAST)


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
"""Defaults of `model` under a preset; whatever the user sets wins."""
