"""Decides whether an earlier run's results can be reused."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from stereo_core.errors import UserError
from stereo_core.files import sha256_of
from stereo_core.orchestration.dag import Container, Importer, Task
from stereo_core.orchestration.digests import Digests
from stereo_core.orchestration.local.importing import source_of
from stereo_core.orchestration.local.values import artifacts_of, parameters_of
from stereo_core.orchestration.record import DONE, Made, Record, TaskRun


def key_of(container: Container, parameters: dict[str, Any], inputs: dict[str, list[Made]]) -> str:
    """A digest of everything that a task's outputs depend on, without paths."""
    what = {
        "image": container.image,
        "command": [*container.command, *container.args],
        "env": container.env,
        "parameters": parameters,
        "artifacts": {port: [[m.sha256, m.type, m.metadata] for m in made] for port, made in inputs.items()},
    }
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()


def is_unchanged(run: TaskRun, folder: Path, digests: Digests) -> bool:
    """Whether the artifacts are still as the task wrote them."""
    return all(_digest(folder, made.path, digests) == made.sha256 for made in run.artifacts.values())


def _digest(folder: Path, path: str, digests: Digests) -> str:
    """The present digest of a file or folder. Digests of imported files may be remembered; others are computed."""
    file = folder / path
    if not file.exists():
        return ""
    return digests.sha256_of(file) if Path(path).is_absolute() else sha256_of(file)


def is_outdated(task: Task, record: Record) -> bool:
    """Whether a kept task would now run with other parameters or inputs."""
    run = record.tasks[task.name]
    if run.state not in DONE or task.exit:
        return False
    try:
        parameters = parameters_of(task, record)
        if isinstance(task.component.executor, Importer):
            return [made.path for made in run.artifacts.values()] != [str(source_of(task, parameters)[1])]
        return key_of(task.component.executor, parameters, artifacts_of(task, record)) != run.key
    except UserError:  # an input no longer exists
        return True
