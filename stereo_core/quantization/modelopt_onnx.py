"""Quantise an ONNX file with NVIDIA ModelOpt: int8 or float8 as QuantizeLinear and DequantizeLinear nodes."""

from __future__ import annotations

import logging
import re
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from stereo_core.engines.files import LEFT, PREFIX, RIGHT, add_metadata, read_onnx
from stereo_core.errors import SpecError
from stereo_core.quantization import without_noise
from stereo_core.quantization.rules import Formats, Layer, Summary, choose, is_sensitive, one_format, summarise

LOG = logging.getLogger(__name__)

OPERATORS = {"int8": ("Conv", "ConvTranspose", "Gemm", "MatMul"), "fp8": ("Conv", "Gemm", "MatMul")}
# Extra arguments that the user may pass to the library: none that loads code or uses the network.
ARGUMENTS = ("calibrate_per_node", "disable_mha_qdq", "op_types_to_exclude", "opset", "simplify")
PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider", "trt": "TensorrtExecutionProvider"}
Pairs = Iterable[tuple[np.ndarray, np.ndarray]]


def quantize(model: Path, out: Path, section: Any, pairs: Pairs) -> Summary:
    """Write the quantised ONNX file to `out`, with the metadata of `model`.

    Args:
        pairs: normalised left and right images (1, 3, H, W) of the file's size, float32.

    Raises:
        SpecError: invalid rules or arguments.
    """
    _check_arguments(section.backend_kwargs)
    proto = onnx.load(model)
    layers = layers_of(proto.graph)
    chosen, kind = _chosen(layers, section)
    info = read_onnx(model)
    provider = _provider(section)
    left_B3HW, right_B3HW = _batches(pairs, info["max_batch"] or 1)
    shape = "x".join(map(str, (info["max_batch"] or 1, *left_B3HW.shape[1:])))
    with tempfile.TemporaryDirectory(prefix="quantize") as folder, without_noise():
        from modelopt.onnx.quantization import quantize as modelopt_quantize

        copy = Path(folder) / "model.onnx"  # the library writes files beside its input
        onnx.save(proto, copy)
        modelopt_quantize(
            str(copy),
            quantize_mode=kind,
            calibration_data={LEFT: left_B3HW, RIGHT: right_B3HW},
            calibration_method="entropy" if section.algorithm == "entropy" else "max",
            calibration_shapes=f"{LEFT}:{shape},{RIGHT}:{shape}",
            calibration_eps=[provider],
            op_types_to_quantize=list(OPERATORS[kind]),
            nodes_to_quantize=[f"^{re.escape(name)}$" for name in chosen],
            high_precision_dtype="fp32",
            # the iterations share weights: with copies the file is 2.5 times as large
            enable_shared_constants_duplication=False,
            output_path=str(out),
            log_level="CRITICAL",
            **section.backend_kwargs,
        )
    result = onnx.load(out)
    _finish(result, proto, out, info | {"precision": kind})
    return summarise(layers, _done(result.graph, chosen))


def _chosen(layers: list[Layer], section: Any) -> tuple[dict[str, Formats], str]:
    """The nodes to quantise, and their common format: int8 or fp8."""
    chosen = choose(layers, section.layers, section.skip_names, static=True)
    chosen = {name: Formats(formats.weights, formats.weights) for name, formats in chosen.items()}
    kind = one_format(chosen, section.backend)
    chosen = {layer.name: chosen[layer.name] for layer in layers
              if layer.name in chosen and layer.type in OPERATORS[kind]}  # fmt: skip
    if not chosen:
        raise SpecError(
            f"quantize.layers: no selected node can be {kind}; operators that can are {', '.join(OPERATORS[kind])}"
        )
    return chosen, kind


def layers_of(graph: onnx.GraphProto) -> list[Layer]:
    """Nodes with a weight, in the order of the graph. A weight shared by several nodes counts once."""
    sizes = {tensor.name: int(np.prod(tensor.dims)) for tensor in graph.initializer}
    same = {node.output[0]: node.input[0] for node in graph.node if node.op_type == "Identity"}
    found = []
    for node in graph.node:
        if node.op_type not in OPERATORS["int8"]:
            continue
        weight = next((same.get(name, name) for name in node.input[1:2]), "")
        if weight in sizes or same.get(weight) in sizes:
            words = [word for word in re.split(r"[/.]", node.name) if word not in ("", "model")]
            part = words[0] if words else node.op_type
            found.append(Layer(node.name, node.op_type, sizes[weight], part, not is_sensitive(words)))
            sizes[weight] = 0
    return found


def _batches(pairs: Pairs, batch: int) -> tuple[np.ndarray, np.ndarray]:
    """All left and all right images, filled up to a multiple of the batch with copies of the last pair."""
    lefts, rights = (list(images) for images in zip(*pairs, strict=True))
    for images in (lefts, rights):
        images += [images[-1]] * (-len(images) % batch)
    return np.concatenate(lefts), np.concatenate(rights)


def _provider(section: Any) -> str:
    """ModelOpt's name of the execution provider for quantize.device.

    Raises:
        SpecError: ONNX Runtime does not have this provider.
    """
    import onnxruntime

    device, available = section.device, onnxruntime.get_available_providers()
    if "device" not in section.model_fields_set and PROVIDERS[device] not in available:
        LOG.warning("quantize.device is not set and ONNX Runtime has no CUDA provider here; calibrating on the CPU")
        return "cpu"
    name, _, index = device.partition(":")
    provider = PROVIDERS[name]
    if provider not in available:
        raise SpecError(f"quantize.device: {device}: this ONNX Runtime has no {provider}, only "
                        f"{', '.join(available)}; set it to cpu")  # fmt: skip
    return f"cuda:{index or 0}" if name == "cuda" else name


def _check_arguments(given: dict[str, Any]) -> None:
    for name in given:
        if name not in ARGUMENTS:
            raise SpecError(
                f"quantize.backend_kwargs.{name}: this argument cannot be set; choose one of {', '.join(ARGUMENTS)}"
            )


def _finish(result: onnx.ModelProto, source: onnx.ModelProto, out: Path, info: dict[str, Any]) -> None:
    """Restore the metadata that the library drops, without the checkpoint, whose figures are no longer this file's."""
    del result.metadata_props[:]
    add_metadata(result, info)
    known = {entry.key for entry in result.metadata_props} | {f"{PREFIX}checkpoint_sha256"}
    result.metadata_props.extend(entry for entry in source.metadata_props if entry.key not in known)
    onnx.save(result, out)
    onnx.checker.check_model(out)


def _done(graph: onnx.GraphProto, chosen: dict[str, Formats]) -> dict[str, Formats]:
    """The chosen nodes that the library really quantised: both inputs come from DequantizeLinear."""
    made = {node.output[0] for node in graph.node if node.op_type == "DequantizeLinear"}
    done = {node.name for node in graph.node if node.name in chosen and made.issuperset(node.input[:2])}
    if len(done) < len(chosen):
        LOG.info(
            "ModelOpt left %d of the chosen nodes in float because int8 or fp8 brings no gain there",
            len(chosen) - len(done),
        )
    return {name: formats for name, formats in chosen.items() if name in done}
