"""Decides whether an earlier run's results can be reused."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from stereo_core import __version__, storage
from stereo_core.arguments import at_home
from stereo_core.errors import ExplainedError, UserError
from stereo_core.files import sha256_of
from stereo_core.orchestration.dag import Container, Importer, Task
from stereo_core.orchestration.digests import Digests
from stereo_core.orchestration.local.importing import source_of
from stereo_core.orchestration.local.values import artifacts_of, parameters_of
from stereo_core.orchestration.record import DONE, Made, Record, TaskRun
from stereo_core.run.remote import files_read
from stereo_core.spec.choice import NoChoice, chosen
from stereo_core.storage import is_uri


def key_of(
    container: Container,
    parameters: dict[str, Any],
    inputs: dict[str, list[Made]],
    named: dict[str, str] | None = None,
    version: str = "",
) -> str:
    """A digest of everything that a task's outputs depend on, without paths of artifacts.

    Args:
        named: See `named_files`.
        version: Of the library that runs the task; empty in a container, where its image counts.
    """
    what = {
        "image": container.image,
        "command": [*container.command, *container.args],
        "env": container.env,
        "parameters": parameters,
        "artifacts": {port: [[m.sha256, m.type, m.metadata] for m in made] for port, made in inputs.items()},
    }
    what |= {"files": named} if named else {}
    what |= {"version": version} if version else {}
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()


def present_key(
    container: Container, parameters: dict[str, Any], inputs: dict[str, list[Made]], record: Record, digests: Digests
) -> str:
    """The key of a task that would run now, with this run's runner.

    Raises:
        DataError, StorageError: an object that the task reads does not exist or cannot be reached.
    """
    named = named_files(parameters, digests)
    if record.runner != "process":  # a container has its own library, and may have other rights to the objects
        return key_of(container, parameters, inputs, named)
    named |= objects_read(container, parameters)
    return key_of(container, parameters, inputs, named, __version__)


def named_files(parameters: dict[str, Any], digests: Digests) -> dict[str, str]:
    """The digests of the files (or folders of images) of this machine that specs among the parameters name: key ->
    digest. The images that an annotation file lists are not read."""
    named = {key: _local(text) for key, text in _named(parameters)}
    return {key: digests.sha256_of(path) for key, path in named.items() if path is not None}


def objects_read(container: Container, parameters: dict[str, Any]) -> dict[str, str]:
    """The versions of the objects that specs among the parameters name, or that fetch_dataset copies: key -> a digest
    of names and ETags."""
    named = dict(_named(parameters))
    if container.args[:1] == ("fetch_dataset",):
        named["uri"] = str(parameters.get("uri", ""))
    return {key: _versions(text) for key, text in named.items() if is_uri(text)}


def _versions(uri: str) -> str:
    found = storage.children(uri, recursive=True) or {"": storage.look(uri)}
    listing = "".join(f"{name}\0{entry.etag}\n" for name, entry in sorted(found.items()))
    return hashlib.sha256(listing.encode()).hexdigest()


def _named(parameters: dict[str, Any]) -> Iterator[tuple[str, str]]:
    for name, spec in parameters.items():
        if isinstance(spec, dict):
            yield from ((f"{name}.{key}", text) for key, text in files_read(spec))


def _local(text: str) -> Path | None:
    """The file or folder of this machine that a text names; None if there is none."""
    try:
        path = os.path.abspath(chosen(at_home(text)))
    except NoChoice:
        return None
    return Path(path) if not is_uri(text) and os.path.exists(path) else None


def is_unchanged(run: TaskRun, folder: Path, digests: Digests) -> bool:
    """Whether the artifacts are still as the task wrote them."""
    return all(_digest(folder, made.path, digests) == made.sha256 for made in run.artifacts.values())


def _digest(folder: Path, path: str, digests: Digests) -> str:
    """The present digest of a file or folder. Digests of imported files may be remembered; others are computed."""
    file = folder / path
    if not file.exists():
        return ""
    return digests.sha256_of(file) if Path(path).is_absolute() else sha256_of(file)


def is_outdated(task: Task, record: Record, digests: Digests) -> bool:
    """Whether a kept task would now run with other parameters or inputs."""
    run = record.tasks[task.name]
    if run.state not in DONE or task.exit:
        return False
    try:
        parameters = parameters_of(task, record)
        if isinstance(task.component.executor, Importer):
            return [made.path for made in run.artifacts.values()] != [str(source_of(task, parameters)[1])]
        inputs = artifacts_of(task, record)
        return present_key(task.component.executor, parameters, inputs, record, digests) != run.key
    except (UserError, ExplainedError):  # an input no longer exists, or cannot be reached
        return True
