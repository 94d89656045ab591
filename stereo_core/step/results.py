"""Places a verb's result, a model file or a folder, at its artifact's path."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

from stereo_core.step.ports import ENGINE_FORMATS, Artifact

FOLDER_FORMATS = {"images": "folder", "annotations": "txt", "disparity": "png"}
RUN_NOTES = ("status.json", "experiment.yaml")  # files about the run, not part of an artifact


def put_result(artifact: Artifact, source: Path) -> dict[str, Any]:
    """Place a model file (with its companion files) or a folder at the artifact's path; returns format and file
    name."""
    temporary = artifact.path.with_name(f".{artifact.path.name}.{os.getpid()}")
    shutil.rmtree(temporary, ignore_errors=True)  # left by an interrupted attempt
    if artifact.is_model:
        temporary.mkdir(parents=True)
        for file in source.parent.iterdir():
            if file.name == source.name or file.name.startswith(source.name + "."):
                _place(file.resolve(), temporary / file.name)
    else:
        shutil.copytree(source, temporary, copy_function=_place, ignore=shutil.ignore_patterns(*RUN_NOTES))
    if artifact.path.is_dir():
        shutil.rmtree(artifact.path)
    artifact.path.unlink(missing_ok=True)
    os.replace(temporary, artifact.path)
    if not artifact.is_model:
        return {"format": FOLDER_FORMATS[artifact.kind]}
    return {"format": _model_format(artifact.path / source.name), "file": source.name}


def _model_format(file: Path) -> str:
    """pth, safetensors or onnx; for an engine its side-car decides: trt, rtx, ov or ort."""
    side_car = file.with_name(file.name + ".json")
    if not side_car.is_file():
        return file.suffix.removeprefix(".")
    return ENGINE_FORMATS.get(json.loads(side_car.read_text()).get("backend"), file.suffix.removeprefix("."))


def _place(source: str | Path, target: str | Path) -> None:
    """Make a hard link, or a copy if the file system has no hard links."""
    with contextlib.suppress(OSError):
        os.link(source, target)
        return
    shutil.copy2(source, target)
