"""The kind of a model file, and its metadata: of engines in a side-car, of ONNX files in the file."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import numpy as np

from stereo_core.errors import ModelError
from stereo_core.files import LFS_POINTER, atomic_path, is_lfs_pointer, sha256_of
from stereo_core.values import from_json

if TYPE_CHECKING:
    import onnx
    import torch

LEFT, RIGHT, DISPARITY = "left_image", "right_image", "disparity"

SIDECAR_KEYS = (
    "kind",
    "backend",
    "backend_version",
    "precision",
    "input_height",
    "input_width",
    "min_height",
    "max_height",
    "min_width",
    "max_width",
    "min_batch",
    "opt_batch",
    "max_batch",
    "normalisation",
    "max_disparity",
    "valid_iters",
    "encoder",
    "variant",
    "onnx_sha256",
    "sha256",
    "target",
)
# Metadata of an ONNX file, independent of a backend; stored in its metadata_props with this prefix.
ONNX_KEYS = tuple(
    key for key in SIDECAR_KEYS if key not in ("backend", "backend_version", "onnx_sha256", "sha256", "target")
)
PREFIX = "stereo."

_INTEGERS = ("input_height", "input_width", "max_disparity", "valid_iters")
_SIZES = tuple(key for key in SIDECAR_KEYS if key.endswith(("height", "width", "batch"))) + _INTEGERS[2:]
_TEXTS = ("backend", "precision", "normalisation")
_FLOAT8 = {17, 18, 19, 20}  # onnx.TensorProto's FLOAT8 types


def file_kind(path: str | Path) -> str:
    """Detect the kind of a file by its side-car and its first bytes.

    Returns:
        "engine" (according to its side-car), "onnx", "checkpoint" (a PyTorch or safetensors file), "tensorrt"
        (a TensorRT plan without our side-car) or "unknown".

    Raises:
        ModelError: there is no such file, or it is a Git LFS pointer.
    """
    path = Path(path)
    if not path.is_file():
        raise ModelError(f"{path}: no such file")
    if read_sidecar(path) is not None:
        return "engine"
    with path.open("rb") as file:
        head = file.read(16)
    if is_lfs_pointer(head):
        raise ModelError(f"{path}: {LFS_POINTER}")
    safetensors = head[8:9] == b"{" and int.from_bytes(head[:8], "little") < path.stat().st_size
    if safetensors or head.startswith((b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04")):
        return "checkpoint"
    if head.startswith(b"ftrt"):
        return "tensorrt"
    return "onnx" if _parse_onnx(path) is not None else "unknown"


def sidecar_path(engine: str | Path) -> Path:
    return Path(f"{engine}.json")


def read_sidecar(engine: str | Path) -> dict[str, Any] | None:
    """The side-car of an engine file; None if there is none with `"kind": "engine"`."""
    try:
        info = from_json(sidecar_path(engine).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None
    return info if isinstance(info, dict) and info.get("kind") == "engine" else None


def write_sidecar(engine: str | Path, info: dict[str, Any]) -> Path:
    with atomic_path(sidecar_path(engine)) as temporary:
        temporary.write_text(json.dumps({key: info[key] for key in SIDECAR_KEYS}, indent=2) + "\n", encoding="utf-8")
    return sidecar_path(engine)


def read_engine(path: str | Path) -> dict[str, Any]:
    """The side-car of an engine; the engine file is checked against it.

    Raises:
        ModelError: the file is missing, is not an engine (the message names its kind and how to build an engine), does
            not match its side-car, or the side-car has missing or impossible values.
    """
    kind = file_kind(path)
    if kind != "engine":
        raise ModelError(f"{path}: {_NOT_AN_ENGINE[kind].format(sidecar=sidecar_path(path))}")
    info = _with_sizes(read_sidecar(path) or {})
    missing = [key for key in SIDECAR_KEYS if key not in info]
    if missing:
        raise ModelError(f"{sidecar_path(path)}: the side-car lacks {', '.join(missing)}; build the engine again")
    wrong = [key for key in _SIZES if not (info[key] is None or (type(info[key]) is int and info[key] > 0))]
    wrong += [key for key in _TEXTS if not (info[key] is None or isinstance(info[key], str))]
    if wrong:
        raise ModelError(
            f"{sidecar_path(path)}: the side-car has impossible values of {', '.join(wrong)}; build the engine again"
        )
    if sha256_of(path) != info["sha256"]:
        raise ModelError(
            f"{path}: the engine is truncated or was changed after its build (its SHA-256 differs from "
            f"{sidecar_path(path).name}); copy both files again, or build the engine again"
        )
    return info


def _with_sizes(info: dict[str, Any]) -> dict[str, Any]:
    """Complete old side-cars, which have one height and one width instead of ranges."""
    ends = [(f"{end}_{side}", f"input_{side}") for side in ("height", "width") for end in ("min", "max")]
    return {key: info[size] for key, size in ends if size in info} | info


_BUILD = (
    "build an engine with `depth_net gen_trt_engine gen_trt_engine.onnx_file=ONNX gen_trt_engine.trt_engine=ENGINE`"
)
_NOT_AN_ENGINE = {
    "onnx": f"this is an ONNX file, not an engine (or an engine without its side-car {{sidecar}}); {_BUILD}",
    "checkpoint": "this is a checkpoint or another file of PyTorch, not an engine; name a checkpoint in `checkpoint` "
    f"instead of `trt_engine`, or export it with `depth_net export`, then {_BUILD}",
    "tensorrt": f"the TensorRT engine has no side-car {{sidecar}}, so shapes and normalisation are unknown; {_BUILD}",
    "unknown": f"this is no engine (no side-car {{sidecar}}), ONNX file or checkpoint, or it is truncated; {_BUILD}",
}


def read_onnx(path: str | Path) -> dict[str, Any]:
    """The metadata of a stereo ONNX file: ONNX_KEYS; None for keys that the file lacks (files of other tools).

    `min_batch`, `opt_batch`, `max_batch` are the static batch; with a dynamic batch they are 1, 1 and None.
    `min_height`, `max_height`, `input_height` are the static height; a dynamic one has None, None and the traced
    height. The same for the width. `precision` is int8 or fp8 if the graph is quantised, else fp32.

    Raises:
        ModelError: the file is missing or no ONNX file; or its inputs and outputs are not `left_image`, `right_image`
            (float32, B x 3 x H x W, H and W dynamic or multiples of 32) and `disparity` (B x 1 x H x W, or B x H x W
            from some tools).
    """
    kind = file_kind(path)
    if kind != "onnx":
        raise ModelError(f"{path}: {_NOT_ONNX[kind]}")
    model = cast("onnx.ModelProto", _parse_onnx(Path(path)))  # which file_kind could
    batch, height, width = _graph_shape(model.graph, path)
    stored = {p.key.removeprefix(PREFIX): p.value for p in model.metadata_props if p.key.startswith(PREFIX)}
    info: dict[str, Any] = {key: stored.get(key) for key in ONNX_KEYS}
    info |= {key: _whole(path, key, stored[key]) for key in _INTEGERS if key in stored}
    # The graph is what runs: its shapes override the metadata.
    return info | {
        "kind": "onnx",
        "precision": precision_of(model.graph),
        "input_height": height or info["input_height"],
        "input_width": width or info["input_width"],
        "min_height": height,
        "max_height": height,
        "min_width": width,
        "max_width": width,
        "min_batch": batch or 1,
        "opt_batch": batch or 1,
        "max_batch": batch,
        "normalisation": info["normalisation"] or "imagenet",
    }


def _whole(path: str | Path, key: str, text: str) -> int:
    if not re.fullmatch("[0-9]{1,9}", text):
        raise ModelError(f"{path}: the metadata {PREFIX}{key} is '{text}', not a number; export the file again")
    return int(text)


_EXPORT = "create an ONNX file by `depth_net export`"
_NOT_ONNX = {
    "engine": "this is an engine, not an ONNX file; evaluate and inference accept it as `trt_engine`; or " + _EXPORT,
    "checkpoint": f"this is a checkpoint or another file of PyTorch, not an ONNX file; {_EXPORT} from a checkpoint",
    "tensorrt": f"this is a TensorRT engine, not an ONNX file; {_EXPORT}",
    "unknown": f"this is no ONNX file, or it is truncated (encrypted .etlt files are not supported); {_EXPORT}",
}


def profile_text(info: dict[str, Any]) -> str:
    """The batches, heights and widths that a file accepts: "batch 1, height 32 to 128 px, best 64, width 96 px"."""
    return ", ".join(f"{side} {text}" for side, text in profile_texts(info).items())


def profile_texts(info: dict[str, Any]) -> dict[str, str]:
    """batch, height and width, each as "32 to 128 px, best 64"."""
    return {
        "batch": _range(info["min_batch"], info["opt_batch"], info["max_batch"]),
        "height": _range(info["min_height"], info["input_height"], info["max_height"], " px"),
        "width": _range(info["min_width"], info["input_width"], info["max_width"], " px"),
    }


def _range(smallest: int | None, best: int | None, largest: int | None, unit: str = "") -> str:
    if largest is None:
        return "any" if best is None or not unit else f"any, traced at {best}{unit}"
    if smallest == largest:
        return f"{best}{unit}"
    return f"{smallest} to {largest}{unit}, best {best}"


Images = TypeVar("Images", np.ndarray, "torch.Tensor")


def without_channel(disparity: Images) -> Images:
    """Disparity (B, 1, H, W), or (B, H, W) from some tools' graphs -> (B, H, W)."""
    return disparity.reshape(-1, *disparity.shape[-2:])


def add_metadata(proto: onnx.ModelProto, info: dict[str, Any], **more: str) -> None:
    """Write ONNX_KEYS of `info` (where not None) and `more` to the metadata_props of an `onnx.ModelProto`."""
    stored = {key: info[key] for key in ONNX_KEYS if info.get(key) is not None} | more
    for key, value in stored.items():
        proto.metadata_props.add(key=PREFIX + key, value=str(value))


def _parse_onnx(path: Path) -> onnx.ModelProto | None:
    import onnx
    from google.protobuf.message import DecodeError

    try:
        model = onnx.load(path, load_external_data=False)
    except (DecodeError, ValueError):
        return None
    named = (*model.graph.input, *model.graph.output)
    texts = [value.name for value in named] + [text for p in model.metadata_props for text in (p.key, p.value)]
    whole = all(isinstance(text, str) for text in texts)  # protobuf returns invalid UTF-8 as bytes
    return model if whole and model.graph.node else None


def precision_of(graph: onnx.GraphProto) -> str:
    """fp8 or int8 if an `onnx.GraphProto` is quantised, by the types of its zero points and weights; else fp32."""
    quantisers = [node for node in graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
    if not quantisers:
        return "fp32"
    types = {tensor.name: tensor.data_type for tensor in graph.initializer}
    types |= {
        name: attribute.t.data_type
        for node in graph.node
        if node.op_type == "Constant"
        for name, attribute in zip(node.output, node.attribute, strict=False)
    }
    return "fp8" if any(types.get(name) in _FLOAT8 for node in quantisers for name in node.input) else "int8"


def _graph_shape(graph: onnx.GraphProto, path: str | Path) -> tuple[int | None, int | None, int | None]:
    """Batch, height and width of a graph with the expected interface, None where dynamic."""
    weights = {tensor.name for tensor in graph.initializer}
    inputs = {value.name: _dims(value) for value in graph.input if value.name not in weights}
    outputs = [value.name for value in graph.output]
    if set(inputs) != {LEFT, RIGHT} or outputs != [DISPARITY]:
        raise ModelError(
            f"{path}: the graph has inputs {', '.join(inputs) or 'none'} and outputs {', '.join(outputs)}; expected "
            f"{LEFT}, {RIGHT} and {DISPARITY}; {_EXPORT}"
        )
    for name, dims in inputs.items():
        if len(dims) != 4 or dims[1] not in (3, None) or dims != inputs[LEFT]:
            raise ModelError(
                f"{path}: input {name} is {_text(dims)}; expected B x 3 x H x W, equal for both images; {_EXPORT}"
            )
    if any(value.type.tensor_type.elem_type != 1 for value in graph.input if value.name in inputs):
        raise ModelError(f"{path}: the inputs are not float32; {_EXPORT}")
    batch, _, height, width = inputs[LEFT]
    if (height or 32) % 32 or (width or 32) % 32:
        raise ModelError(
            f"{path}: width and height are {_text((width, height))}; they must be multiples of 32; export it with such "
            "a size"
        )
    made, layouts = _dims(graph.output[0]), ((batch, 1, height, width), (batch, height, width))
    if made and not any(_fits(made, layout) for layout in layouts):
        expected = _text((batch or "B", 1, height or "H", width or "W"))
        raise ModelError(f"{path}: output {DISPARITY} is {_text(made)}; expected {expected}; {_EXPORT}")
    return batch, height, width


def _fits(dims: tuple[int | None, ...], wanted: tuple[int | None, ...]) -> bool:
    """Whether two shapes can be the same; None, a dynamic side, is any."""
    return len(dims) == len(wanted) and all(a == b or None in (a, b) for a, b in zip(dims, wanted, strict=True))


def _dims(value: onnx.ValueInfoProto) -> tuple[int | None, ...]:
    return tuple(d.dim_value if d.dim_value > 0 else None for d in value.type.tensor_type.shape.dim)


def _text(dims: Iterable[object]) -> str:
    return " x ".join("?" if d is None else str(d) for d in dims) or "a scalar"
