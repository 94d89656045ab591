"""`depth_net describe FILE`: describe an engine, an ONNX file or a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from stereo_core.engines.files import PREFIX, file_kind, profile_texts, read_engine, read_onnx
from stereo_core.errors import ModelError
from stereo_core.files import sha256_of
from stereo_core.spec.choice import NoChoice, chosen


def describe(path: str | Path) -> dict[str, Any]:
    """Describe a model file: `file`, `kind`, `bytes`, `sha256` and its metadata.

    Engines return their side-car, ONNX files ONNX_KEYS with opset, node count and the digest of the checkpoint that
    they were exported from, checkpoints their layout, encoder and variant. Only a checkpoint needs PyTorch.

    Raises:
        ModelError: the file is missing, damaged or none of these, or the choice (`folder@best`) matches no file.
    """
    try:
        path = chosen(path)
    except NoChoice as error:
        raise ModelError(str(error)) from None
    kind = file_kind(path)
    if kind not in _DESCRIBE:
        raise ModelError(f"{path}: the file is neither an engine with its side-car, nor an ONNX file, nor a checkpoint")
    known = {"file": str(path), "kind": kind, "bytes": path.stat().st_size, "sha256": sha256_of(path)}
    return known | _DESCRIBE[kind](path)


def _describe_onnx(path: Path) -> dict[str, Any]:
    import onnx

    model = onnx.load(path, load_external_data=False)
    opset = next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), None)
    exported_from = {p.key: p.value for p in model.metadata_props}.get(f"{PREFIX}checkpoint_sha256")
    more = {"opset": opset, "nodes": len(model.graph.node), "checkpoint_sha256": exported_from}
    return read_onnx(path) | more


def _describe_checkpoint(path: Path) -> dict[str, Any]:
    from stereo_core.models.checkpoints import describe as describe_checkpoint

    return describe_checkpoint(path)


_DESCRIBE = {"engine": read_engine, "onnx": _describe_onnx, "checkpoint": _describe_checkpoint}


def as_text(known: dict[str, Any]) -> str:
    """The result of `describe` as text, one line per entry; ranges as "32 to 128 px, best 64"."""
    facts = {key: value for key, value in known.items() if value is not None}
    if "max_batch" in known:
        facts = {key: value for key, value in facts.items() if key not in _RANGE_KEYS}
        facts |= profile_texts(known)
    width = max(map(len, facts))
    return "\n".join(f"{key:{width}}  {value}" for key, value in facts.items())


_SIDES = ("batch", "height", "width")
_RANGE_KEYS = {f"{end}_{side}" for side in _SIDES for end in ("min", "opt", "max", "input")}
