"""Reads and checks input artifacts: the model file, the digest, an engine's image size."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from stereo_core.actions.fetch_dataset import referred
from stereo_core.errors import DataError, ModelError
from stereo_core.files import sha256_of
from stereo_core.step.ports import Artifact
from stereo_core.values import size_text

LATEST = "dn_model_latest.pth"  # newest checkpoint, if the artifact is a training run's results folder


def place(artifact: Artifact) -> str:
    """An input as a spec names it: the model file; the data set's folder, or its URI if it is taken by reference."""
    if artifact.kind == "images":
        return referred(artifact.path)
    return str(content(artifact))


def content(artifact: Artifact) -> Path:
    """The model file inside a Model artifact's folder; for other artifacts their own path."""
    if not artifact.is_model or artifact.path.is_file():
        return artifact.path
    if artifact.metadata.get("file"):
        file = artifact.path / Path(str(artifact.metadata["file"])).name
        if not os.path.isfile(file):
            raise ModelError(
                f"input {artifact.port}: {artifact.uri} has no file {file.name}, which its metadata names; "
                "run the step that wrote it again"
            )
        return file
    latest = artifact.path / LATEST
    if latest.is_file():
        return latest.resolve()
    from stereo_core.engines.files import read_sidecar

    here = sorted(path for path in artifact.path.iterdir() if path.is_file())
    files = [p for p in here if p.suffix in (".pth", ".pt", ".safetensors", ".onnx") or read_sidecar(p)]
    if len(files) != 1:
        names = ", ".join(p.name for p in files) or "none"
        raise ModelError(f"input {artifact.port}: {artifact.uri} must hold exactly one model file; found: {names}")
    return files[0]


def check_digest(artifact: Artifact) -> None:
    """Refuse an input that has changed since it was made. For a model folder all files count, if folder_sha256 is set.

    Raises:
        DataError, ModelError: a digest differs.
    """
    whole = artifact.metadata.get("folder_sha256") if artifact.path.is_dir() else None
    digest = whole or artifact.metadata.get("sha256")
    if digest and digest != sha256_of(artifact.path if whole else content(artifact)):
        error = ModelError if artifact.is_model else DataError
        raise error(
            f"input {artifact.port}: {artifact.uri} has changed since its step wrote it (the sha256 differs); "
            "run that step again"
        )


def check_frame(engine: Artifact, source: Any) -> None:
    """Refuse an engine with a fixed image size that differs from the first image's size.

    Raises:
        ModelError: the sizes differ.
        DataError: the annotation file or the image cannot be read.
    """
    from stereo_core.data.annotations import read_annotations
    from stereo_core.data.images import read_image

    known = engine.metadata
    height, width = known.get("input_height"), known.get("input_width")
    if height is None or width is None:
        return
    if any(known.get(f"min_{side}") != known.get(f"max_{side}") for side in ("height", "width")):
        return
    frame = (height, width)
    first = read_annotations(source.data_file, source.data_root)[0]
    size = read_image(first.left).shape[:2]
    if size != frame:
        raise ModelError(
            f"input engine: {engine.uri} takes images of {size_text(frame)} px, but {first.left} has {size_text(size)} "
            "px; set evaluate.resize to pad or stretch, or build an engine for this size"
        )
