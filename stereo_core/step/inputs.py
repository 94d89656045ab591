"""What an input artifact holds: its model file, its digest, an engine's size."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from stereo_core.actions.fetch_dataset import referred
from stereo_core.errors import DataError, ModelError
from stereo_core.files import sha256_of
from stereo_core.step.ports import Artifact
from stereo_core.values import size_text

LATEST = "dn_model_latest.pth"  # a training's results folder given as a model: its newest checkpoint


def place(artifact: Artifact) -> str:
    """What a spec names an input by: a model's file; the folder of a data set, or the URI that its note refers to."""
    if artifact.kind == "images":
        return referred(artifact.path)
    return str(content(artifact))


def content(artifact: Artifact) -> Path:
    """The model file inside a Model artifact's folder, or the artifact's own path."""
    if not artifact.is_model or artifact.path.is_file():
        return artifact.path
    if artifact.metadata.get("file"):
        file = artifact.path / Path(str(artifact.metadata["file"])).name
        if not os.path.isfile(file):
            raise ModelError(f"input {artifact.port}: {artifact.uri} holds no {file.name}")
        return file
    latest = artifact.path / LATEST
    if latest.is_file():
        return latest.resolve()
    from stereo_core.engines.files import read_sidecar

    here = sorted(path for path in artifact.path.iterdir() if path.is_file())
    files = [p for p in here if p.suffix in (".pth", ".pt", ".safetensors", ".onnx") or read_sidecar(p)]
    if len(files) != 1:
        names = ", ".join(p.name for p in files) or "none"
        raise ModelError(f"input {artifact.port}: {artifact.uri} must hold one model file; found: {names}")
    return files[0]


def check_digest(artifact: Artifact) -> None:
    """Refuse an input that changed since it was made: of a model's folder all files count, where it says so.

    Raises:
        DataError, ModelError: a digest differs.
    """
    whole = artifact.metadata.get("folder_sha256") if artifact.path.is_dir() else None
    digest = whole or artifact.metadata.get("sha256")
    if digest and digest != sha256_of(artifact.path if whole else content(artifact)):
        error = ModelError if artifact.is_model else DataError
        raise error(f"input {artifact.port}: {artifact.uri} changed since it was made (sha256 differs); make it again")


def check_frame(engine: Artifact, source: Any) -> None:
    """Refuse an engine of one size, as its metadata has it, that is not the size of the first image.

    Raises:
        ModelError: the sizes differ. DataError: the list or the image can not be read.
    """
    from stereo_core.data.annotations import read_annotations
    from stereo_core.data.images import read_image

    said = engine.metadata
    frame = tuple(said.get(f"input_{side}") for side in ("height", "width"))
    if None in frame or any(said.get(f"min_{side}") != said.get(f"max_{side}") for side in ("height", "width")):
        return
    first = read_annotations(source.data_file, source.data_root)[0]
    size = read_image(first.left).shape[:2]
    if size != frame:
        raise ModelError(
            f"input engine: {engine.uri} is for images of {size_text(frame)} px, and {first.left} has "
            f"{size_text(size)}; set evaluate.resize to pad or stretch, or build an engine of this size"
        )
