"""run.json: what became of a run and of each of its tasks, as the engine writes it and `show` reads it."""

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
AGAIN = "--- another attempt ---"  # the line in a log between two
DONE = ("succeeded", "reused")
ENDED = (*DONE, "failed", "skipped", "stopped")


@dataclass
class Made:
    """An output artifact: `path` is relative to the run folder, absolute where it was imported."""

    type: dict[str, Any]
    path: str
    sha256: str
    bytes: int
    metadata: dict[str, Any] = field(default_factory=dict)


@dataclass
class TaskRun:
    """What became of a task; states: waiting running succeeded reused failed skipped stopped.

    `key`, `made`, `parameters` and `artifacts` tell what lies in its folder, whatever the state: an earlier run may
    have put it there, for this one or a later one to take over.
    """

    state: str = "waiting"
    title: str = ""
    after: list[str] = field(default_factory=list)
    condition: str = ""
    left_out: bool = False  # skipped because its condition does not hold
    message: str = ""
    key: str = ""  # digest of what the folder's contents depend on
    made: bool = False  # whether the outputs are there and whole
    attempts: int = 0
    exit_code: int | None = None
    started: str | None = None
    seconds: float = 0.0
    gpus: list[str] = field(default_factory=list)
    parameters: dict[str, Any] = field(default_factory=dict)
    artifacts: dict[str, Made] = field(default_factory=dict)

    def lets_on(self) -> bool:
        """Whether tasks that come after this one may run."""
        return self.state in DONE or self.left_out

    def results(self) -> dict[str, Made]:
        """The artifacts that count in this run."""
        return self.artifacts if self.state in DONE else {}


@dataclass
class Record:
    """A run in its folder; `folder` is where it lies now. That and `cancelled` are not written."""

    folder: Path
    pipeline: str
    tasks: dict[str, TaskRun]
    arguments: dict[str, Any] = field(default_factory=dict)
    runner: str = "process"  # or podman, docker
    state: str = "running"
    started: str = ""
    changed: str = ""
    cancelled: bool = False  # while exit handlers still run

    def place(self, name: str) -> Path:
        """A task's folder."""
        return self.folder / "tasks" / name

    def write(self) -> None:
        """Replace run.json as a whole, so that it can be read, and the run cut off, at any moment."""
        self.changed = now()
        content = asdict(self)
        del content["folder"], content["cancelled"]
        with atomic_path(self.folder / FILE) as temporary:
            temporary.write_text(json.dumps(content, indent=1) + "\n")

    def warnings(self, name: str) -> list[str]:
        """What a step that ran has warned of, as its own record in its folder tells."""
        return warnings_in(self.place(name) / "results") if self.tasks[name].attempts else []

    def label(self, name: str) -> str:
        """A step for a reader: its name, and its display name where the pipeline gives one."""
        title = self.tasks[name].title
        return name if name.startswith(title) else f"{name} ({title})"


def read_record(folder: Path) -> Record:
    """The run in `folder`; one that was cut off without a word (kill -9) is told as stopped, its tasks too.

    Raises:
        GraphError: there is no run record, or it can not be read.
    """
    path = folder / FILE
    try:
        content = from_json(path.read_text())
        tasks = {name: _task_run(item) for name, item in content["tasks"].items()}
        record = Record(folder.resolve(), **content | {"tasks": tasks})
    except (FileNotFoundError, NotADirectoryError):
        raise GraphError(f"{folder}: there is no run ({FILE}); name a folder given to `run --output-dir`") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        mend = "remove it to start anew, or choose another folder"
        raise GraphError(f"{path}: damaged run record ({error}); {mend}") from None
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
