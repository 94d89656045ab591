"""`evaluate` and `inference`: a checkpoint or an engine, applied to pairs."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from stereo_core.spec.choice import OR_STARTER
from stereo_core.spec.fields import Float, Int, NonNegative, Section, Text, key, null_is

BESIDE = "auto"  # inference.calibration: the file beside each image


class Predict(Section):
    """What both have."""

    results_dir: Text = key("", "Output folder, used as it is; empty: <results_dir>/<verb>, with an engine trt_<verb>")
    checkpoint: Text = key("", f"Checkpoint of any layout, {OR_STARTER}; either this or trt_engine", mandatory=True)
    trt_engine: Text = key("", "Engine; either this or checkpoint")
    num_gpus: Int = key(1, "GPUs on a node", ge=1)
    gpu_ids: Annotated[list[NonNegative], Field(min_length=1)] = key([0], "GPU indices")
    num_nodes: Int = key(1, "Nodes", ge=1)
    batch_size: Int = key(-1, "Batch size", ge=-1)
    precision: Literal["auto", "fp32", "tf32", "fp16", "bf16"] = key(
        "auto", "Of checkpoints; auto: fp16 on a GPU with tensor cores, else fp32 (ours)"
    )
    compile: Literal["auto", "on", "off"] = key(
        "auto",
        "Have kernels compiled for each size of image, in half precision; auto: for sizes that come often (ours)",
    )


class Evaluate(Predict):
    input_width: Int | None = key(736, "Input width in px", ge=1)
    input_height: Int | None = key(320, "Input height in px", ge=1)
    native_padded: bool = key(False, "FastFoundationStereo only")
    resize: Literal["none", "pad", "stretch"] | None = key(
        None, "How images get to the network's size; null: none for checkpoints, pad for engines (ours)"
    )


class Inference(Predict):
    input_width: Int | None = key(None, "Input width in px", ge=1)
    input_height: Int | None = key(None, "Input height in px", ge=1)
    conf_threshold: Float = key(0.5, "Confidence threshold")
    save_raw_pfm: Annotated[bool, null_is(False)] = key(False, "Also write disparity_pfm/<rel>.pfm, px")
    save_png16: bool = key(True, "Write disparity_png16/<rel>.png, px * 256 (ours)")
    save_color: bool = key(True, "Write predicted_depth/<name>.png, coloured (ours)")
    save_depth: bool = key(False, "Write depth/<rel>.png, millimetres (ours)")
    save_point_cloud: bool = key(False, "Write cloud/<rel>.ply, metres (ours)")
    cloud_max_depth: Float | None = key(
        None, "Points farther than this many metres are left out; null: where the disparity is below 1 px (ours)", gt=0
    )
    calibration: Text = key(
        "",
        f"calib.txt (Middlebury, ETH3D) or K.txt, for depth and clouds; {BESIDE}: the one beside each image (ours)",
    )
    hierarchical: bool = key(False, "Half resolution first, then full (ours)")
    tile: bool = key(False, "Predict in tiles of the engine's size, for checkpoints of augmentation.crop_size (ours)")
    tile_overlap: Annotated[list[NonNegative], Field(min_length=2, max_length=2)] = key(
        [64, 64], "Least overlap of tiles in px, rows and columns; columns at least as large as the disparities (ours)"
    )
