"""Importers: local data as an artifact, identified by its content."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from stereo_core.errors import UserError
from stereo_core.files import size_of
from stereo_core.orchestration.dag import Argument, Task
from stereo_core.orchestration.digests import Digests
from stereo_core.orchestration.record import Made
from stereo_core.storage import local_path


def imported(task: Task, parameters: dict[str, Any], digests: Digests, run: Path) -> dict[str, Made]:
    """The importer's artifact by port.

    Args:
        run: The run folder.

    Raises:
        UserError: the data is not on this machine, or the run would write into it.
    """
    uri, path = source_of(task, parameters)
    where = f"parameter {task.imported.name}: " if isinstance(task.imported, Argument) else f"task {task.name}: "
    if not uri:
        raise UserError(f"{where}the URI is empty; give the folder or file to import")
    if run.is_relative_to(path.resolve()):
        raise UserError(
            f"{where}{uri} contains the run folder {run}, so the data would change with the run; choose an "
            "--output-dir outside it"
        )
    if not path.exists():
        if "://" in uri and not uri.startswith("file://"):
            hint = "local runs import only local files; fetch them with `depth_net fetch_dataset` first"
            raise UserError(f"{where}{uri} is in object storage, which is not mounted here; {hint}")
        raise UserError(f"{where}{uri}: no such file or folder")
    port = next(iter(task.component.output_artifacts.values()))
    metadata = task.importer.metadata
    return {port.name: Made(port.type, str(path), digests.sha256_of(path), size_of(path), metadata)}


def source_of(task: Task, parameters: dict[str, Any]) -> tuple[str, Path]:
    """An importer's URI and its local path."""
    source = task.importer.uri
    uri = str(parameters[source.name] if isinstance(source, Argument) else source.value)
    return uri, local_path(uri).absolute()
