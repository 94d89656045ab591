"""`quantize`: post-training quantisation."""

from __future__ import annotations

from typing import Annotated, Literal

from stereo_core.spec.choice import OR_STARTER
from stereo_core.spec.fields import Float, Int, Mapping, Section, Text, Texts, key, null_is, section, spelled


class TensorRule(Section):
    dtype: Annotated[Literal["", "int8", "fp8_e4m3fn", "fp8_e5m2", "native"], spelled(fp8="fp8_e4m3fn")] = key(
        "", "Number format; fp8 means fp8_e4m3fn; native: do not quantise"
    )
    observer_or_fake_quant: Text = key("", "Name of a registered observer")
    quant_axis: Int | None = key(None, "Axis of per-channel scales; null: one scale per tensor")
    observer_or_fake_quant_kwargs: Mapping = key({}, "Arguments of the observer")


class LayerRule(Section):
    module_name: Text = key(
        "", "Module name, class name or pattern (ONNX: of nodes or operators); empty: the default layers"
    )
    weights: TensorRule = section(TensorRule, "Rule for weights")
    activations: TensorRule = section(TensorRule, "Rule for activations")


class Quantize(Section):
    results_dir: Text = key("", "Output folder; empty: <results_dir>/quantize")
    backend: Annotated[Literal["modelopt.pytorch", "torchao", "modelopt.onnx"], null_is("torchao")] = key(
        "torchao", "Quantisation library"
    )
    backend_kwargs: Mapping = key({}, "Extra arguments for the library; only modelopt.onnx takes any")
    mode: Annotated[Literal["static_ptq", "weight_only_ptq"], null_is("weight_only_ptq")] = key(
        "weight_only_ptq",
        "static_ptq: with calibration data; weight_only_ptq: without; unset: the mode that the backend supports",
    )
    algorithm: Annotated[
        Literal["minmax", "max", "entropy", "awq_clip", "awq_lite", "awq_full", "rtn_dq"], null_is("minmax")
    ] = key("minmax", "Calibration algorithm")
    device: Text = key(
        "cuda",
        "Device for the calibration; unset: the GPU, or the CPU if there is none",
        pattern="^(cuda|cpu|trt|cuda:[0-9]+)$",
    )
    model_path: Text = key("", f"Checkpoint to quantise, {OR_STARTER}; for modelopt.onnx an ONNX file")
    layers: Annotated[list[LayerRule], null_is([])] = key(
        [], "Rules for modules; later rules win; empty: the default layers in int8"
    )
    skip_names: Texts = key([], "Modules that are not quantised")
    max_epe_increase: Float | None = key(
        None, "Fail if the EPE on dataset.val_dataset rises by more than this, in px; null: no limit (not in TAO)", ge=0
    )
