"""Artifacts and the ports (named inputs and outputs) of a step.

Artifacts have KFP's standard types. Their metadata (kind, format, sha256) says what they are; it is checked before
any work. A Model artifact is a folder with the model file (named by the metadata key `file`) and its companions (an
engine's side-car, an ONNX file's external data). A single file is accepted too.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from stereo_core.errors import DataError, ModelError, UserError
from stereo_core.storage import local_path
from stereo_core.values import with_integers
from stereo_core.verbs import VERBS, required

ENGINE_FORMATS = {"onnxruntime": "ort", "tensorrt": "trt", "tensorrt_rtx": "rtx", "openvino": "ov"}
"""Backend of an engine -> its artifact's format."""
FORMATS = {"checkpoint": ("pth", "safetensors"), "onnx": ("onnx",), "engine": tuple(ENGINE_FORMATS.values())}
"""Kind of a model -> the formats that steps can read."""
FORMATS["quantized"] = ("pth", "onnx")  # its metadata have kind checkpoint or onnx
MODEL_KINDS = ("checkpoint", "onnx", "engine")  # the kinds that a port of kind `model` accepts
FORMATS["model"] = tuple(form for kind in MODEL_KINDS for form in FORMATS[kind])

T = TypeVar("T", dict[str, Any], list[Any], str)


@dataclass(frozen=True)
class Artifact:
    """One artifact of the ExecutorInput; `path` is its local path."""

    port: str
    kind: str
    path: Path
    uri: str = ""
    name: str = ""
    type: dict[str, Any] = field(default_factory=dict)
    metadata: dict[str, Any] = field(default_factory=dict)

    @property
    def is_model(self) -> bool:
        return self.kind in FORMATS


def input_artifacts(verb: str, section: dict[str, Any]) -> dict[str, Artifact]:
    """The ExecutorInput's `inputs` for a verb: port -> artifact; see `_artifacts`."""
    return _artifacts(verb, "input", section, {**VERBS[verb].inputs, "spec_file": "spec"})


def output_artifacts(verb: str, section: dict[str, Any]) -> dict[str, Artifact]:
    """The ExecutorInput's `outputs` for a verb: port -> artifact to write; see `_artifacts`."""
    return _artifacts(verb, "output", section, VERBS[verb].outputs)


def _artifacts(verb: str, side: str, section: dict[str, Any], kinds: Mapping[str, str]) -> dict[str, Artifact]:
    """The artifact of each port. Further artifacts of a list port become `port.1`, `port.2`. Ports without an artifact
    (optional inputs) are left out.

    Raises:
        UserError: the verb has no such port.
    """
    kinds = {port.removesuffix("?"): kind for port, kind in kinds.items()}
    said = entries(section, "artifacts")
    if unknown := sorted({name for name, _ in said} - set(kinds)):
        raise UserError(f"{verb}: unknown {side} {', '.join(unknown)}; known: {', '.join(kinds)}")
    found = {}
    for name, entry in said:
        for index, item in enumerate(part(entry, "artifacts", list)):
            port = f"{name}.{index}" if index else name
            found[port] = _artifact(port, kinds[name], typed(item, dict, f"artifact of {port}"))
    return found


def _artifact(port: str, kind: str, item: dict[str, Any]) -> Artifact:
    uri, here = part(item, "uri", str), part(item, "customPath", str)
    return Artifact(
        port=port,
        kind=kind,
        path=Path(here) if here else local_path(uri),
        uri=uri,
        name=part(item, "name", str) or port,
        type=part(item, "type", dict),
        metadata=with_integers(part(item, "metadata", dict)),
    )


def part(holder: dict[str, Any], key: str, kind: type[T]) -> T:
    """A part of the message; an absent or null part is empty.

    Raises:
        UserError: it is of another type.
    """
    value = holder.get(key)
    return kind() if value is None else typed(value, kind, key)


def entries(holder: dict[str, Any], key: str) -> list[tuple[str, dict[str, Any]]]:
    """The mappings that a part holds, by their names."""
    return [(name, typed(one, dict, f"{key}.{name}")) for name, one in part(holder, key, dict).items()]


def typed(value: object, kind: type[T], where: str) -> T:
    if not isinstance(value, kind):
        raise UserError(
            f"EXECUTOR_INPUT_JSON: not a valid ExecutorInput message: {where}: expected {_KINDS[kind]}, got "
            f"{value!r:.60}"
        )
    return value


_KINDS = {dict: "a mapping", list: "a list", str: "text"}


def check_artifact(artifact: Artifact) -> None:
    """Refuse an input that does not exist, or that has the wrong kind or format.

    Missing metadata is accepted: the artifact may come from another program.

    Raises:
        DataError, ModelError: the artifact cannot be used here.
    """
    error = ModelError if artifact.is_model else DataError
    if not os.path.exists(artifact.path):  # also False for a name that no file can have
        raise error(
            f"input {artifact.port}: {artifact.path} does not exist (artifact {artifact.uri}); check the URI, or "
            "run the step that writes it"
        )
    kind, form = artifact.metadata.get("kind"), artifact.metadata.get("format")
    kinds = MODEL_KINDS if artifact.kind == "model" else (artifact.kind,)
    if kind and kind not in kinds:
        wanted = " or ".join(map(repr, kinds))
        raise error(f"input {artifact.port}: {artifact.uri} is of kind {kind!r}; expected {wanted}")
    if form and form not in FORMATS.get(artifact.kind, (form,)):
        wanted = " or ".join(FORMATS[artifact.kind])
        raise error(f"input {artifact.port}: {artifact.uri} has format {form!r}; expected {wanted}")


def check_ports(verb: str, inputs: Mapping[str, Artifact]) -> None:
    """Refuse a task without a required input.

    Raises:
        UserError: lists all missing inputs.
    """
    row = VERBS[verb]
    missing = {port for port, needed in required(row.inputs).items() if needed and port not in inputs}
    if row.one_of and not set(row.one_of) & set(inputs):
        missing.add(" or ".join(row.one_of))
    if missing:
        raise UserError(
            f"{verb}: EXECUTOR_INPUT_JSON has no artifact for input {', '.join(sorted(missing))}; connect one"
        )
