"""`export` and `gen_trt_engine`: checkpoint -> ONNX -> engine."""

from __future__ import annotations

from typing import Annotated, Literal

from stereo_core.spec.choice import OR_STARTER
from stereo_core.spec.fields import Int, Positive, Section, Text, Texts, any_case, key, null_is, section

Batch = Annotated[Int, null_is(-1)]
Iterations = Annotated[Int, null_is(22)]


class Export(Section):
    results_dir: Text = key(
        "", "Output folder; empty: <results_dir>/export, or without results_dir the folder of onnx_file"
    )
    gpu_id: Int = key(0, "GPU to trace on", ge=0)
    checkpoint: Text = key(
        "", f"Checkpoint of any layout, {OR_STARTER}; or an ONNX file, which is copied unchanged", mandatory=True
    )
    onnx_file: Text = key("", "ONNX file to write", mandatory=True)
    on_cpu: bool = key(False, "Trace on the CPU")
    input_channel: Literal[1, 3] = key(3, "Channels of an image; only 3 is supported")
    input_width: Int = key(960, "Width in px, a multiple of 32", ge=32)
    input_height: Int = key(544, "Height in px, a multiple of 32", ge=32)
    opset_version: Int = key(17, "ONNX opset, 16 to 20", ge=1)
    batch_size: Batch = key(-1, "Batch size; -1: dynamic", ge=-1)
    verbose: bool = key(False, "Log more details")
    format: Literal["onnx", "xdl"] = key("onnx", "File format; only onnx is supported")
    valid_iters: Iterations = key(
        22, "GRU iterations, fixed in the graph; if the spec does not set them: the checkpoint's", ge=1
    )
    dynamic_hw: bool = key(False, "Dynamic height and width: any multiples of 32 (not in TAO)")
    check: bool = key(True, "Compare the ONNX file with PyTorch; fail if they differ (not in TAO)")


class TensorRT(Section):
    data_type: Annotated[
        Literal["fp32", "fp16", "bf16", "int8", "fp8"], any_case("fp32", "fp16", "bf16", "int8", "fp8")
    ] = key("fp32", "Precision of the engine, in upper or lower case")
    workspace_size: Int = key(
        4, "Largest workspace of TensorRT's builder in GiB; 1024 (TAO's default, meant as MB): no limit", ge=0
    )
    min_batch_size: Int = key(1, "Smallest batch size, for an ONNX file with dynamic batch", ge=1)
    opt_batch_size: Int = key(1, "Batch size to optimise for", ge=1)
    max_batch_size: Int = key(1, "Largest batch size", ge=1)
    layers_precision: Texts = key(
        [],
        "Precision of single layers of an fp16 or bf16 engine: entries <node name or pattern>:<fp32, fp16 or bf16>; "
        "the pattern * means all layers that no other entry names",
    )


class GenTrtEngine(Section):
    results_dir: Text = key(
        "", "Output folder; empty: <results_dir>/gen_trt_engine, or without results_dir the folder of trt_engine"
    )
    gpu_id: Int = key(0, "GPU to build on", ge=0)
    onnx_file: Text = key("", "ONNX file to read", mandatory=True)
    trt_engine: Text = key("", "Engine file to write; empty: <results_dir>/gen_trt_engine/<name of the ONNX file>")
    timing_cache: Text = key("", "TensorRT timing cache to read and update; ignored if of another GPU or version")
    batch_size: Batch = key(-1, "Batch size", ge=-1)
    verbose: bool = key(False, "Log more details")
    backend: Literal["auto", "tensorrt", "tensorrt_rtx", "openvino", "onnxruntime"] = key(
        "auto", "Backend that builds and runs the engine; auto: the first available one, onnxruntime last (not in TAO)"
    )
    verify: bool = key(True, "Compare the engine with its ONNX file; fail if they differ (not in TAO)")
    compute_capabilities: Texts = key(
        [], "Compute capabilities that TensorRT-RTX builds for, such as 8.6; empty: that of this GPU (not in TAO)"
    )
    tensorrt: TensorRT = section(TensorRT, "Build settings")
    min_height: Positive | None = key(
        None,
        "Smallest height in px, for an ONNX file with dynamic height; null: opt_height, or 32 if opt_height and "
        "max_height are null too",
    )
    opt_height: Positive | None = key(None, "Height in px to optimise for; null: that of the ONNX file's export")
    max_height: Positive | None = key(
        None,
        "Largest height in px; null: opt_height (openvino and onnxruntime: twice that if min_height and opt_height are "
        "null too)",
    )
    min_width: Positive | None = key(
        None,
        "Smallest width in px, for an ONNX file with dynamic width; null: opt_width, or 32 if opt_width and "
        "max_width are null too",
    )
    opt_width: Positive | None = key(None, "Width in px to optimise for; null: that of the ONNX file's export")
    max_width: Positive | None = key(
        None,
        "Largest width in px; null: opt_width (openvino and onnxruntime: twice that if min_width and opt_width are "
        "null too)",
    )
