"""Artifacts and the ports that they come and go by.

Artifacts have standard types; their metadata says what they are (kind, format, sha256) and is checked here before any
work. A Model artifact is a folder that holds the model file under its own name (metadata `file`) and what lies beside
it (an engine's side-car, an ONNX file's external data); a plain file is accepted too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from stereo_core.errors import DataError, ModelError, UserError
from stereo_core.storage import local_path
from stereo_core.values import with_integers
from stereo_core.verbs import VERBS, required

FORMATS = {"checkpoint": ("pth", "safetensors"), "onnx": ("onnx",), "engine": ("trt", "rtx", "ort", "ov", "pt2")}
"""Kind of a model -> the formats that a consumer here reads."""
FORMATS["quantized"] = ("pth", "onnx")  # of kind checkpoint or onnx, as its metadata say
MODEL_KINDS = ("checkpoint", "onnx", "engine")  # what the kind `model` stands for
FORMATS["model"] = tuple(form for kind in MODEL_KINDS for form in FORMATS[kind])


@dataclass(frozen=True)
class Artifact:
    """One artifact of the ExecutorInput; `path` is where it lies on this machine."""

    port: str
    kind: str
    path: Path
    uri: str = ""
    name: str = ""
    type: dict = field(default_factory=dict)
    metadata: dict = field(default_factory=dict)

    @property
    def is_model(self) -> bool:
        return self.kind in FORMATS


def input_artifacts(verb: str, section: dict) -> dict[str, Artifact]:
    """What the ExecutorInput's `inputs` give a verb: port -> artifact; see `_artifacts`."""
    return _artifacts(section, VERBS[verb].inputs | {"spec_file": "spec"})


def output_artifacts(verb: str, section: dict) -> dict[str, Artifact]:
    """Where the ExecutorInput's `outputs` want a verb's results: port -> artifact.

    Raises:
        UserError: the verb has no such output.
    """
    unknown = sorted(set(section.get("artifacts") or {}) - set(VERBS[verb].outputs))
    if unknown:
        raise UserError(f"{verb}: there is no output {', '.join(unknown)}; it has {', '.join(VERBS[verb].outputs)}")
    return _artifacts(section, VERBS[verb].outputs)


def _artifacts(section: dict, kinds: Mapping[str, str]) -> dict[str, Artifact]:
    """The artifact of each port; of a port that takes a list the others as `port.1`, `port.2`. Ports without one
    (optional inputs) are left out. The kind of a port that the verb does not have is the port's name."""
    kinds = {port.removesuffix("?"): kind for port, kind in kinds.items()}
    found = {}
    for name, entry in (section.get("artifacts") or {}).items():
        for index, item in enumerate(entry.get("artifacts") or ()):
            port, uri = f"{name}.{index}" if index else name, item.get("uri", "")
            found[port] = Artifact(
                port=port,
                kind=kinds.get(name, name),
                path=Path(item["customPath"]) if item.get("customPath") else local_path(uri),
                uri=uri,
                name=item.get("name", port),
                type=item.get("type", {}),
                metadata=with_integers(item.get("metadata") or {}),
            )
    return found


def check_artifact(artifact: Artifact) -> None:
    """Refuse an input that is absent, or of another kind or format.

    Metadata that a foreign producer did not write is not asked for.

    Raises:
        DataError, ModelError: the artifact can not be used here.
    """
    error = ModelError if artifact.is_model else DataError
    if not artifact.path.exists():
        raise error(f"input {artifact.port}: {artifact.uri} is not at {artifact.path}")
    kind, form = artifact.metadata.get("kind"), artifact.metadata.get("format")
    kinds = MODEL_KINDS if artifact.kind == "model" else (artifact.kind,)
    if kind and kind not in kinds:
        wanted = " or ".join(map(repr, kinds))
        raise error(f"input {artifact.port}: {artifact.uri} is of kind {kind!r}; {wanted} is wanted here")
    if form and form not in FORMATS.get(artifact.kind, (form,)):
        wanted = " or ".join(FORMATS[artifact.kind])
        raise error(f"input {artifact.port}: {artifact.uri} has format {form!r}; {wanted} is wanted here")


def check_ports(verb: str, inputs: Mapping[str, Artifact]) -> None:
    """Refuse a task that lacks an input.

    Raises:
        UserError: names all that are missing.
    """
    row = VERBS[verb]
    missing = {port for port, needed in required(row.inputs).items() if needed and port not in inputs}
    if row.one_of and not set(row.one_of) & set(inputs):
        missing.add(" or ".join(row.one_of))
    if missing:
        raise UserError(f"{verb}: EXECUTOR_INPUT_JSON names no artifact for input {', '.join(sorted(missing))}")
