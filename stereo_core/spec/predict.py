"""`evaluate` and `inference`: run a checkpoint or an engine on pairs."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from stereo_core.spec.choice import OR_STARTER
from stereo_core.spec.fields import Float, Int, NonNegative, Section, Text, key, null_is

BESIDE = "auto"  # inference.calibration: the calibration file beside each image


class Predict(Section):
    """The keys that both have."""

    results_dir: Text = key("", "Output folder; empty: <results_dir>/<verb>, or <results_dir>/trt_<verb> for an engine")
    checkpoint: Text = key("", f"Checkpoint of any layout, {OR_STARTER}; set this or trt_engine", mandatory=True)
    trt_engine: Text = key("", "Engine file; set this or checkpoint")
    num_gpus: Int = key(1, "GPUs per node", ge=1)
    gpu_ids: Annotated[list[NonNegative], Field(min_length=1)] = key([0], "GPU indices")
    num_nodes: Int = key(1, "Nodes", ge=1)
    batch_size: Int = key(-1, "Batch size", ge=-1)
    precision: Literal["auto", "fp32", "tf32", "fp16", "bf16"] = key(
        "auto",
        "Precision of a checkpoint's network; auto: fp16 on a GPU with tensor cores, otherwise fp32 (not in TAO)",
    )
    compile: Literal["auto", "on", "off"] = key(
        "auto",
        "Compile the network for each image size, only in fp16 and bf16; auto: only for sizes that occur often (not in "
        "TAO)",
    )


class Evaluate(Predict):
    input_width: Int | None = key(736, "Input width in px", ge=1)
    input_height: Int | None = key(320, "Input height in px", ge=1)
    native_padded: bool = key(False, "Pad images instead of resizing them; FastFoundationStereo only")
    resize: Literal["none", "pad", "stretch"] | None = key(
        None,
        "How images are brought to the engine's size, or for a checkpoint to crop_size; null: pad for an engine, none "
        "for a checkpoint (not in TAO)",
    )


class Inference(Predict):
    input_width: Int | None = key(None, "Input width in px", ge=1)
    input_height: Int | None = key(None, "Input height in px", ge=1)
    conf_threshold: Float = key(0.5, "Confidence threshold")
    save_raw_pfm: Annotated[bool, null_is(False)] = key(
        False, "Write disparities in px to disparity_pfm/<left image>.pfm"
    )
    save_png16: bool = key(True, "Write disparities in px * 256 to disparity_png16/<left image>.png (not in TAO)")
    save_color: bool = key(True, "Write coloured disparities to predicted_depth/<left image>.png (not in TAO)")
    save_depth: bool = key(False, "Write depth in millimetres to depth/<left image>.png (not in TAO)")
    save_point_cloud: bool = key(False, "Write point clouds in metres to cloud/<left image>.ply (not in TAO)")
    cloud_max_depth: Float | None = key(
        None,
        "Drop points of a cloud that are farther than this, in metres; null: those with a disparity below 1 px (not in "
        "TAO)",
        gt=0,
    )
    calibration: Text = key(
        "",
        "Calibration file for depth and clouds: calib.txt (Middlebury, ETH3D), K.txt, or KITTI's; "
        f"{BESIDE}: the one beside each image; empty: dataset.baseline and focal_x (not in TAO)",
    )
    hierarchical: bool = key(False, "Predict at half resolution first, then at full resolution (not in TAO)")
    tile: bool = key(False, "Predict in tiles of the engine's size, or of crop_size for checkpoints (not in TAO)")
    tile_overlap: Annotated[list[NonNegative], Field(min_length=2, max_length=2)] = key(
        [64, 64], "Smallest overlap of tiles in px [rows, columns]; use columns >= the largest disparity (not in TAO)"
    )
