"""`evaluate` and `inference`: run a checkpoint or an engine on pairs."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from stereo_core.spec.choice import OR_STARTER
from stereo_core.spec.fields import Float, Int, NonNegative, Section, Text, key, null_is

BESIDE = "auto"  # inference.calibration: the calibration file beside each image


class Predict(Section):
    """The keys that both have."""

    results_dir: Text = key("", "Output folder, used as is; empty: <results_dir>/<verb>, or trt_<verb> for an engine")
    checkpoint: Text = key("", f"Checkpoint of any layout, {OR_STARTER}; set this or trt_engine", mandatory=True)
    trt_engine: Text = key("", "Engine file; set this or checkpoint")
    num_gpus: Int = key(1, "GPUs per node", ge=1)
    gpu_ids: Annotated[list[NonNegative], Field(min_length=1)] = key([0], "GPU indices")
    num_nodes: Int = key(1, "Nodes", ge=1)
    batch_size: Int = key(-1, "Batch size", ge=-1)
    precision: Literal["auto", "fp32", "tf32", "fp16", "bf16"] = key(
        "auto", "Precision of a checkpoint's network; auto: fp16 on a GPU with tensor cores, otherwise fp32 (ours)"
    )
    compile: Literal["auto", "on", "off"] = key(
        "auto",
        "Compile kernels for each image size, in half precision; auto: only for frequent sizes (ours)",
    )


class Evaluate(Predict):
    input_width: Int | None = key(736, "Input width in px", ge=1)
    input_height: Int | None = key(320, "Input height in px", ge=1)
    native_padded: bool = key(False, "FastFoundationStereo only")
    resize: Literal["none", "pad", "stretch"] | None = key(
        None, "How images are brought to the network's size; null: none for checkpoints, pad for engines (ours)"
    )


class Inference(Predict):
    input_width: Int | None = key(None, "Input width in px", ge=1)
    input_height: Int | None = key(None, "Input height in px", ge=1)
    conf_threshold: Float = key(0.5, "Confidence threshold")
    save_raw_pfm: Annotated[bool, null_is(False)] = key(False, "Write disparity_pfm/<rel>.pfm, in px")
    save_png16: bool = key(True, "Write disparity_png16/<rel>.png, in px * 256 (ours)")
    save_color: bool = key(True, "Write predicted_depth/<name>.png, in colour (ours)")
    save_depth: bool = key(False, "Write depth/<rel>.png, in millimetres (ours)")
    save_point_cloud: bool = key(False, "Write cloud/<rel>.ply, in metres (ours)")
    cloud_max_depth: Float | None = key(
        None, "Drop points farther away than this, in metres; null: drop disparities below 1 px (ours)", gt=0
    )
    calibration: Text = key(
        "",
        f"calib.txt (Middlebury, ETH3D) or K.txt, for depth and clouds; {BESIDE}: the file beside each image (ours)",
    )
    hierarchical: bool = key(False, "Predict at half resolution first, then at full resolution (ours)")
    tile: bool = key(False, "Predict in tiles of the engine's size, or of crop_size for checkpoints (ours)")
    tile_overlap: Annotated[list[NonNegative], Field(min_length=2, max_length=2)] = key(
        [64, 64], "Smallest overlap of tiles in px [rows, columns]; use columns >= the largest disparity (ours)"
    )
