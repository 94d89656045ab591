"""What a model file is, and what it says about itself: engines by their side-car, ONNX files by their metadata."""

from __future__ import annotations

import json
import re
import zipfile
from pathlib import Path

import numpy as np

from stereo_core.errors import ModelError
from stereo_core.files import LFS_POINTER, atomic_path, is_lfs_pointer, sha256_of
from stereo_core.values import from_json

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
# What an ONNX file can say before a backend has seen it; written to its metadata_props with this prefix.
ONNX_KEYS = tuple(
    key for key in SIDECAR_KEYS if key not in ("backend", "backend_version", "onnx_sha256", "sha256", "target")
)
PREFIX = "stereo."

_INTEGERS = ("input_height", "input_width", "max_disparity", "valid_iters")
_SIZES = tuple(key for key in SIDECAR_KEYS if key.endswith(("height", "width", "batch"))) + _INTEGERS[2:]
_TEXTS = ("backend", "precision", "normalisation")
_FLOAT8 = {17, 18, 19, 20}  # onnx.TensorProto's FLOAT8 types


def file_kind(path: str | Path) -> str:
    """Say what a file is by its side-car and its first bytes.

    Returns:
        "engine" (its side-car says so), "onnx", "checkpoint" (a PyTorch or safetensors file), "tensorrt" or "pt2" (a
        TensorRT plan or a compiled PyTorch package without our side-car) or "unknown".

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
    if head.startswith(b"PK\x03\x04") and _is_pt2(path):
        return "pt2"
    if is_lfs_pointer(head):
        raise ModelError(f"{path}: {LFS_POINTER}")
    safetensors = head[8:9] == b"{" and int.from_bytes(head[:8], "little") < path.stat().st_size
    if safetensors or head.startswith((b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04")):
        return "checkpoint"
    if head.startswith(b"ftrt"):
        return "tensorrt"
    return "onnx" if _parse_onnx(path) is not None else "unknown"


def _is_pt2(path: Path) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith("/archive_format") for name in archive.namelist())
    except (zipfile.BadZipFile, EOFError, NotImplementedError, ValueError, OSError):  # damaged: no package
        return False


def sidecar_path(engine: str | Path) -> Path:
    return Path(f"{engine}.json")


def read_sidecar(engine: str | Path) -> dict | None:
    """The side-car of an engine file; None where there is none that says `"kind": "engine"`."""
    try:
        info = from_json(sidecar_path(engine).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None
    return info if isinstance(info, dict) and info.get("kind") == "engine" else None


def write_sidecar(engine: str | Path, info: dict) -> Path:
    with atomic_path(sidecar_path(engine)) as temporary:
        temporary.write_text(json.dumps({key: info[key] for key in SIDECAR_KEYS}, indent=2) + "\n", encoding="utf-8")
    return sidecar_path(engine)


def read_engine(path: str | Path) -> dict:
    """The side-car of an engine that is whole.

    Raises:
        ModelError: the file is missing, is not an engine (says what it is and how to make one of it), is not the file
            that the side-car was written for, or the side-car lacks keys or holds what can not be right.
    """
    kind = file_kind(path)
    if kind != "engine":
        raise ModelError(f"{path}: {_NOT_AN_ENGINE[kind].format(sidecar=sidecar_path(path))}")
    info = _with_sizes(read_sidecar(path))
    missing = [key for key in SIDECAR_KEYS if key not in info]
    if missing:
        raise ModelError(f"{sidecar_path(path)}: lacks {', '.join(missing)}; build the engine again")
    wrong = [key for key in _SIZES if not (info[key] is None or (type(info[key]) is int and info[key] > 0))]
    wrong += [key for key in _TEXTS if not (info[key] is None or isinstance(info[key], str))]
    if wrong:
        raise ModelError(f"{sidecar_path(path)}: {', '.join(wrong)} can not be right; build the engine again")
    if sha256_of(path) != info["sha256"]:
        raise ModelError(
            f"{path}: truncated or changed since it was built (its SHA-256 differs from the one in "
            f"{sidecar_path(path).name}); copy both files again, or build the engine again"
        )
    return info


def _with_sizes(info: dict) -> dict:
    """Side-cars written before engines had ranges of sizes: one height and one width."""
    ends = [(f"{end}_{side}", f"input_{side}") for side in ("height", "width") for end in ("min", "max")]
    return {key: info[size] for key, size in ends if size in info} | info


_BUILD = (
    "build an engine with `depth_net gen_trt_engine gen_trt_engine.onnx_file=ONNX gen_trt_engine.trt_engine=ENGINE`"
)
_NOT_AN_ENGINE = {
    "onnx": f"an ONNX file (or an engine without its side-car {{sidecar}}), not an engine; {_BUILD}",
    "checkpoint": "a checkpoint, not an engine; name it as `checkpoint` instead of `trt_engine`, or export it with "
    f"`depth_net export`, then {_BUILD}",
    "tensorrt": f"a TensorRT engine without its side-car {{sidecar}}: shapes and normalisation are unknown; {_BUILD}",
    "pt2": "a compiled PyTorch package without its side-car {sidecar}: it holds native code, which runs only where the "
    f"side-car's SHA-256 says that it is the one built; copy both files, or {_BUILD}",
    "unknown": f"not an engine: no side-car {{sidecar}}, and no ONNX file or checkpoint, or a truncated one; {_BUILD}",
}


def read_onnx(path: str | Path) -> dict:
    """What a stereo ONNX file says of itself: ONNX_KEYS, None where it does not say (files of other makers).

    `min_batch`, `opt_batch`, `max_batch` are the static batch; with a dynamic batch they are 1, 1 and None.
    `min_height`, `max_height`, `input_height` are the static height; an open one has None, None and the height that it
    was traced at. The same for the width. `precision` is int8 or fp8 where the graph quantises, else fp32.

    Raises:
        ModelError: the file is missing or no ONNX file; or the graph has other inputs and outputs than `left_image`,
            `right_image` (float32, B x 3 x H x W, H and W open or multiples of 32) and `disparity` (B x 1 x H x W, or
            B x H x W as some makers write it).
    """
    kind = file_kind(path)
    if kind != "onnx":
        raise ModelError(f"{path}: {_NOT_ONNX[kind]}")
    model = _parse_onnx(Path(path))
    batch, height, width = _graph_shape(model.graph, path)
    said = {p.key.removeprefix(PREFIX): p.value for p in model.metadata_props if p.key.startswith(PREFIX)}
    info = {key: said.get(key) for key in ONNX_KEYS}
    info |= {key: _whole(path, key, said[key]) for key in _INTEGERS if key in said}
    # The graph itself is what runs: its own shapes hold whatever the metadata say.
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
        raise ModelError(f"{path}: its metadata {PREFIX}{key} is '{text}', no number; export it again")
    return int(text)


_EXPORT = "`depth_net export` writes an ONNX file"
_NOT_ONNX = {
    "engine": "an engine, not an ONNX file; evaluate and inference take it as `trt_engine`, and " + _EXPORT,
    "checkpoint": f"a checkpoint, not an ONNX file; {_EXPORT} from it",
    "tensorrt": f"a TensorRT engine, not an ONNX file; {_EXPORT}",
    "pt2": f"a compiled PyTorch package, not an ONNX file; {_EXPORT}",
    "unknown": f"not an ONNX file, or a truncated one (encrypted .etlt files are not supported); {_EXPORT}",
}


def profile_text(info: dict) -> str:
    """The batches, heights and widths that a file takes: "batch 1, height 32 to 128 px, best 64, width 96 px"."""
    return ", ".join(f"{side} {text}" for side, text in profile_texts(info).items())


def profile_texts(info: dict) -> dict[str, str]:
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


def without_channel(disparity: np.ndarray) -> np.ndarray:
    """Disparity (B, 1, H, W), or (B, H, W) as some makers' graphs give it -> (B, H, W)."""
    return disparity.reshape(-1, *disparity.shape[-2:])


def add_metadata(proto, info: dict, **more: str) -> None:
    """Write ONNX_KEYS of `info` (where not None) and `more` to the metadata_props of an `onnx.ModelProto`."""
    said = {key: info[key] for key in ONNX_KEYS if info.get(key) is not None} | more
    for key, value in said.items():
        proto.metadata_props.add(key=PREFIX + key, value=str(value))


def _parse_onnx(path: Path):
    import onnx
    from google.protobuf.message import DecodeError

    try:
        model = onnx.load(path, load_external_data=False)
    except (DecodeError, ValueError):
        return None
    named = (*model.graph.input, *model.graph.output)
    texts = [value.name for value in named] + [text for p in model.metadata_props for text in (p.key, p.value)]
    whole = all(isinstance(text, str) for text in texts)  # protobuf gives what is no UTF-8 as bytes
    return model if whole and model.graph.node else None


def precision_of(graph) -> str:
    """fp8 or int8 where an `onnx.GraphProto` quantises, by the types of its zero points and weights; else fp32."""
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


def _graph_shape(graph, path) -> tuple[int | None, int | None, int | None]:
    """Batch, height and width of a graph that keeps our contract, None where open."""
    weights = {tensor.name for tensor in graph.initializer}
    inputs = {value.name: _dims(value) for value in graph.input if value.name not in weights}
    outputs = [value.name for value in graph.output]
    if set(inputs) != {LEFT, RIGHT} or outputs != [DISPARITY]:
        raise ModelError(
            f"{path}: inputs {', '.join(inputs) or 'none'} and outputs {', '.join(outputs)}, where a stereo network "
            f"has {LEFT}, {RIGHT} and {DISPARITY}; {_EXPORT} of that form"
        )
    for name, dims in inputs.items():
        if len(dims) != 4 or dims[1] not in (3, None) or dims != inputs[LEFT]:
            raise ModelError(f"{path}: input {name} is {_text(dims)}, not B x 3 x H x W, both images alike")
    if any(value.type.tensor_type.elem_type != 1 for value in graph.input if value.name in inputs):
        raise ModelError(f"{path}: inputs are not float32")
    batch, _, height, width = inputs[LEFT]
    if (height or 32) % 32 or (width or 32) % 32:
        raise ModelError(f"{path}: width and height are {_text((width, height))}, not multiples of 32")
    return batch, height, width


def _dims(value) -> tuple[int | None, ...]:
    return tuple(d.dim_value if d.dim_value > 0 else None for d in value.type.tensor_type.shape.dim)


def _text(dims) -> str:
    return " x ".join("?" if d is None else str(d) for d in dims) or "a scalar"
