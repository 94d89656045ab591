"""`export` and `gen_trt_engine`: checkpoint -> ONNX -> engine."""

from __future__ import annotations

from typing import Annotated, Literal

from stereo_core.spec.choice import OR_STARTER
from stereo_core.spec.fields import Int, Positive, Section, Text, Texts, any_case, key, null_is, section

Batch = Annotated[Int, null_is(-1)]
Iterations = Annotated[Int, null_is(22)]


class Export(Section):
    results_dir: Text = key(
        "", "Output folder, used as it is; empty: <results_dir>/export, else the folder of onnx_file"
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
        22, "GRU iterations, fixed in the graph; without this key in the spec: the checkpoint's", ge=1
    )
    dynamic_hw: bool = key(False, "Dynamic height and width: any multiples of 32 (ours)")
    check: bool = key(True, "Compare the ONNX file with PyTorch; fail if they differ (ours)")


class TensorRT(Section):
    data_type: Annotated[
        Literal["fp32", "fp16", "bf16", "int8", "fp8"], any_case("fp32", "fp16", "bf16", "int8", "fp8")
    ] = key("fp32", "Precision, in any case")
    workspace_size: Int = key(4, "Workspace in GiB; 1024 (TAO's default, meant as MB): no limit", ge=0)
    min_batch_size: Int = key(1, "Smallest batch size, for an ONNX file with dynamic batch", ge=1)
    opt_batch_size: Int = key(1, "Batch size to optimise for", ge=1)
    max_batch_size: Int = key(1, "Largest batch size", ge=1)
    layers_precision: Texts = key(
        [],
        "Precision of single layers of an fp16 or bf16 engine, <node name or pattern>:<fp32, fp16 or bf16>; * is all",
    )


class GenTrtEngine(Section):
    results_dir: Text = key(
        "", "Output folder, used as it is; empty: <results_dir>/gen_trt_engine, else the folder of trt_engine"
    )
    gpu_id: Int = key(0, "GPU to build on", ge=0)
    onnx_file: Text = key("", "ONNX file to read", mandatory=True)
    trt_engine: Text = key("", "Engine file to write; empty: <results_dir>/gen_trt_engine/<name of the ONNX file>")
    timing_cache: Text = key("", "TensorRT timing cache to read and update; ignored if of another GPU or version")
    batch_size: Batch = key(-1, "Batch size", ge=-1)
    verbose: bool = key(False, "Log more details")
    backend: Literal["auto", "tensorrt", "tensorrt_rtx", "openvino", "onnxruntime"] = key(
        "auto", "Backend that builds and runs the engine; auto: the first available one, onnxruntime last (ours)"
    )
    verify: bool = key(True, "Compare the engine with its ONNX file; fail if they differ (ours)")
    compute_capabilities: Texts = key(
        [], "Compute capabilities that TensorRT-RTX builds for, such as 8.6; empty: that of this GPU (ours)"
    )
    tensorrt: TensorRT = section(TensorRT, "Build settings")
    min_height: Positive | None = key(
        None,
        "Smallest height in px, for an ONNX file with dynamic height; null: opt_height, or 32 if all three are null",
    )
    opt_height: Positive | None = key(None, "Height in px to optimise for; null: that of the ONNX file's export")
    max_height: Positive | None = key(
        None,
        "Largest height in px; null: opt_height, or the export's if all three are null (ONNX engines: twice that)",
    )
    min_width: Positive | None = key(
        None, "Smallest width in px, for an ONNX file with dynamic width; null: like min_height, with opt_width"
    )
    opt_width: Positive | None = key(None, "Width in px to optimise for; null: that of the ONNX file's export")
    max_width: Positive | None = key(None, "Largest width in px; null: like max_height, with opt_width")
