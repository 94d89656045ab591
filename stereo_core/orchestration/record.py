"""run.json: the record of a run and its tasks. The local engine writes it; `show` and `runs` read it."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from stereo_core.files import atomic_path
from stereo_core.locks import is_held
from stereo_core.orchestration.dag import GraphError
from stereo_core.run.status import warnings_in
from stereo_core.values import from_json

FILE, LOCK = "run.json", ".lock"
AGAIN = "--- another attempt ---"  # line between two attempts in a log
DONE = ("succeeded", "reused")
ENDED = (*DONE, "failed", "skipped", "stopped")


@dataclass
class Made:
    """An output artifact. `path` is relative to the run folder, or absolute for an imported artifact."""

    type: dict[str, Any]
    path: str
    sha256: str
    bytes: int
    metadata: dict[str, Any] = field(default_factory=dict)


@dataclass
class TaskRun:
    """The record of a task; states: waiting running succeeded reused failed skipped stopped.

    `key`, `made`, `parameters` and `artifacts` describe the task's folder, whatever the state. An earlier run may have
    written them; this run or a later one can reuse them.
    """

    state: str = "waiting"
    title: str = ""
    after: list[str] = field(default_factory=list)
    condition: str = ""
    left_out: bool = False  # skipped because its condition is false
    message: str = ""
    key: str = ""  # digest of everything that the folder's contents depend on
    made: bool = False  # whether the outputs are complete
    attempts: int = 0
    exit_code: int | None = None
    started: str | None = None
    seconds: float = 0.0
    gpus: list[str] = field(default_factory=list)
    parameters: dict[str, Any] = field(default_factory=dict)
    artifacts: dict[str, Made] = field(default_factory=dict)

    def lets_on(self) -> bool:
        """Whether tasks after this one may run."""
        return self.state in DONE or self.left_out

    def results(self) -> dict[str, Made]:
        """The artifacts of this run; empty if the task has no result in it."""
        return self.artifacts if self.state in DONE else {}


@dataclass
class Record:
    """A run. `folder` is its present folder. `folder` and `cancelled` are not written to the file."""

    folder: Path
    pipeline: str
    tasks: dict[str, TaskRun]
    arguments: dict[str, Any] = field(default_factory=dict)
    runner: str = "process"  # or podman, docker
    state: str = "running"
    started: str = ""
    changed: str = ""
    cancelled: bool = False  # true while exit handlers of a cancelled run still run

    def place(self, name: str) -> Path:
        """A task's folder."""
        return self.folder / "tasks" / name

    def write(self) -> None:
        """Replace run.json atomically, so that it can be read, and the run killed, at any time."""
        self.changed = now()
        content = asdict(self)
        del content["folder"], content["cancelled"]
        with atomic_path(self.folder / FILE) as temporary:
            temporary.write_text(json.dumps(content, indent=1) + "\n")

    def warnings(self, name: str) -> list[str]:
        """The warnings of a step that ran, from the status.json in its folder."""
        return warnings_in(self.place(name) / "results") if self.tasks[name].attempts else []

    def label(self, name: str) -> str:
        """A step's name for messages, with its display name if it has one."""
        title = self.tasks[name].title
        return name if name.startswith(title) else f"{name} ({title})"


def read_record(folder: Path) -> Record:
    """The run in `folder`. A killed run (kill -9) and its tasks are shown as stopped.

    Raises:
        GraphError: there is no run record, or it cannot be read.
    """
    path = folder / FILE
    try:
        content = from_json(path.read_text())
        tasks = {name: _task_run(item) for name, item in content["tasks"].items()}
        record = Record(folder.resolve(), **content | {"tasks": tasks})
    except (FileNotFoundError, NotADirectoryError):
        raise GraphError(f"{folder}: contains no run ({FILE}); name a folder given to `run --output-dir`") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        remedy = "remove it to start again, or choose another folder"
        raise GraphError(f"{path}: damaged run record ({error}); {remedy}") from None
    if record.state == "running" and not is_held(folder / LOCK):
        record.state = "stopped"
        for run in record.tasks.values():
            run.state = run.state if run.state in ENDED else "stopped"
    return record


def _task_run(item: dict[str, Any]) -> TaskRun:
    artifacts = {port: Made(**made) for port, made in item.get("artifacts", {}).items()}
    return TaskRun(**item | {"artifacts": artifacts})


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
