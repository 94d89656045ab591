"""The compiled pipeline, run on this machine.

Every task is the command that a cluster would run in the image, started here as a process of this Python environment.
Independent tasks run side by side. A run folder holds

    run.json                 the record: parameters, and for each task its state, times, exit code, outputs and digests
    tasks/<task>/log.txt     what the task printed, all attempts
    tasks/<task>/results/    what the action wrote besides its artifacts (status.json, experiment.yaml, ...)
    tasks/<task>/<port>      its output artifacts

A run started again in the same folder takes over every task that succeeded and whose image, command, parameters and
input contents (sha256) are the same, provided its outputs are unchanged. A task that failed or was cut off finds what
its last attempt left in its folder; one whose inputs changed starts in an empty folder.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from stereo_core.errors import UserError
from stereo_core.files import atomic_path, sha256_of
from stereo_core.launcher import local_path, plain, size_of
from stereo_core.orchestration.graph import (
    Argument,
    Constant,
    Container,
    GraphError,
    Importer,
    Output,
    Pipeline,
    Source,
    Task,
    typed,
)

GRACE = 20.0  # seconds that a stopped task has to leave a checkpoint before it is killed
ENDED = ("succeeded", "reused", "failed", "skipped", "stopped")
USER_ERROR = 2  # an exit code that running again can not mend


@dataclass
class Made:
    """An output artifact: `path` is relative to the run folder, absolute where it was imported."""

    type: dict
    path: str
    sha256: str
    bytes: int
    metadata: dict = field(default_factory=dict)


@dataclass
class TaskRun:
    """What became of a task; states: waiting running succeeded reused failed skipped stopped."""

    state: str = "waiting"
    message: str = ""
    key: str = ""
    attempts: int = 0
    exit_code: int | None = None
    started: str | None = None
    seconds: float = 0.0
    parameters: dict = field(default_factory=dict)
    artifacts: dict[str, Made] = field(default_factory=dict)


class LocalRun:
    """One run of a pipeline in one folder.

    Args:
        pipeline: From `load_pipeline`.
        arguments: Values of pipeline parameters; the others take their defaults.
        folder: The run folder; a run that is there already is taken up.
        workers: Tasks at a time; default: the CPU cores this process may use.
        fresh: Run every task, whatever is there.
        on_change: Called with this object after each change of a task's state, one call at a time.

    Raises:
        GraphError: arguments that do not fit, or a command that this environment does not have.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        arguments: dict[str, object],
        folder: str | Path,
        *,
        workers: int | None = None,
        fresh: bool = False,
        on_change: Callable[[LocalRun], None] = lambda run: None,
    ):
        self.pipeline = pipeline
        self.arguments = pipeline.arguments(arguments)
        self.folder = Path(folder).resolve()
        self.workers = workers or len(os.sched_getaffinity(0))
        self.tasks = {name: TaskRun() for name in pipeline.tasks}
        self.state = "running"
        self.started = _now()
        self._path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
        self._before = {} if fresh else self._read_record()
        self._lock = threading.RLock()
        self._stop = threading.Event()
        self._on_change = on_change
        for task in pipeline.tasks.values():
            self._check_command(task)

    # ---- scheduling

    def execute(self) -> int:
        """Run to the end; returns 0, 1 (a task failed) or 2 (tasks failed only for the user's input).

        A failed task skips what depends on it; the rest goes on.

        Raises:
            GraphError: another run is going on in the same folder.
            KeyboardInterrupt: after all tasks were stopped and the record was written.
        """
        with self._alone():
            return self._execute()

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """Hold the folder's lock; the system lets go of it when this process ends, however it ends."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / ".lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise GraphError(f"{self.folder}: another run is going on there; wait, or choose another") from None
            yield

    def _execute(self) -> int:
        pool = ThreadPoolExecutor(self.workers, thread_name_prefix="task")
        running: dict[Future, str] = {}
        try:
            self._change()
            while not all(run.state in ENDED for run in self.tasks.values()):
                for name in self._ready():
                    self._change(name, state="running", started=_now())
                    running[pool.submit(self._run_task, self.pipeline.tasks[name])] = name
                finished, _ = wait(running, return_when=FIRST_COMPLETED)
                for future in finished:
                    running.pop(future)
                    future.result()
        except KeyboardInterrupt:
            self._stop.set()
            wait(running)
            self._finish("stopped")
            raise
        finally:
            self._stop.set()
            pool.shutdown()
        failed = [run for run in self.tasks.values() if run.state == "failed"]
        self._finish("failed" if failed else "succeeded")
        if not failed:
            return 0
        return USER_ERROR if all(run.exit_code == USER_ERROR for run in failed) else 1

    def _ready(self) -> list[str]:
        """Waiting tasks whose predecessors are done; those behind a failed one are marked as skipped on the way."""
        ready = []
        for name, task in self.pipeline.tasks.items():
            if self.tasks[name].state != "waiting":
                continue
            states = {other: self.tasks[other].state for other in task.after}
            broken = [other for other, state in states.items() if state in ("failed", "skipped", "stopped")]
            if broken:
                self._change(name, state="skipped", message=f"needs {', '.join(sorted(broken))}")
            elif all(state in ("succeeded", "reused") for state in states.values()):
                ready.append(name)
        return ready

    def _finish(self, state: str) -> None:
        with self._lock:
            self.state = state
            for run in self.tasks.values():
                if run.state in ("waiting", "running"):
                    run.state = "stopped"
            self._change()

    def _change(self, name: str | None = None, **values) -> None:
        """Set fields of a task's record, write run.json, tell the listener."""
        with self._lock:
            for key, value in values.items():
                setattr(self.tasks[name], key, value)
            record = {
                "pipeline": self.pipeline.name,
                "state": self.state,
                "started": self.started,
                "changed": _now(),
                "arguments": self.arguments,
                "tasks": {name: asdict(run) for name, run in self.tasks.items()},
            }
            with atomic_path(self.folder / "run.json") as temporary:
                temporary.write_text(json.dumps(record, indent=1) + "\n")
            self._on_change(self)

    def _read_record(self) -> dict[str, TaskRun]:
        """The tasks of the run that is in the folder, if any."""
        path = self.folder / "run.json"
        if not path.is_file():
            return {}
        try:
            record = json.loads(path.read_text())
            if record["pipeline"] != self.pipeline.name:
                raise GraphError(f"{self.folder} holds a run of pipeline {record['pipeline']}; choose another folder")
            tasks = {name: TaskRun(**item) for name, item in record["tasks"].items()}
            for run in tasks.values():
                run.artifacts = {port: Made(**item) for port, item in run.artifacts.items()}
        except (ValueError, KeyError, TypeError) as error:
            raise GraphError(f"{path}: no run record ({error}); remove it or choose another folder") from None
        return tasks

    # ---- one task

    def _run_task(self, task: Task) -> None:
        begin = time.monotonic()
        try:
            values = self._attempts(task)
        except UserError as error:
            values = {"state": "failed", "message": str(error), "exit_code": USER_ERROR}
        except Exception as error:  # a broken executor_output.json, a full disk: this task failed, the others go on
            values = {"state": "failed", "message": f"{type(error).__name__}: {error}", "exit_code": 1}
        self._change(task.name, seconds=round(time.monotonic() - begin, 3), **values)

    def _attempts(self, task: Task) -> dict:
        """Take over what an earlier run made, or run the task as often as its retry policy allows."""
        parameters = self._parameters(task)
        if isinstance(task.component.executor, Importer):
            return {"state": "succeeded", "artifacts": self._import(task, parameters)}
        inputs = {port: self._made(source) for port, source in task.artifacts.items()}
        key = _key(task.component.executor, parameters, inputs)
        before = self._before.get(task.name)
        if before and before.key == key and before.state in ("succeeded", "reused") and self._unchanged(before):
            kept = {"parameters": before.parameters, "artifacts": before.artifacts}
            return {"state": "reused", "key": key, "exit_code": 0, "attempts": before.attempts, **kept}
        place = self.folder / "tasks" / task.name
        if not before or before.key != key:
            shutil.rmtree(place, ignore_errors=True)
        place.mkdir(parents=True, exist_ok=True)
        message = self._executor_input(task, place, parameters, inputs)
        for attempt in range(1, task.retry.count + 2):
            self._change(task.name, key=key, attempts=attempt)
            code, why = self._process(task, place, message)
            if code == 0:
                return {"state": "succeeded", "exit_code": 0, **self._collect(task, place, message)}
            if self._stop.is_set():
                return {"state": "stopped", "exit_code": code}
            if code == USER_ERROR or attempt > task.retry.count:
                break
            if self._stop.wait(task.retry.delay(attempt)):
                return {"state": "stopped", "exit_code": code}
        return {"state": "failed", "exit_code": code, "message": why}

    def _parameters(self, task: Task) -> dict[str, object]:
        """The task's parameters: wired or default; placeholders inside constants are filled in."""
        values = {p.name: p.default for p in task.component.parameters.values() if p.default is not None}
        values |= {name: self._value(source) for name, source in task.parameters.items()}
        filled = {}
        for name, value in values.items():
            if isinstance(value, str) and isinstance(task.parameters.get(name), Constant):
                value = _fill(value, {"inputs": {"parameterValues": values}}, task.name)
            filled[name] = value
        declared = task.component.parameters
        return {name: typed(declared[name], value) if name in declared else value for name, value in filled.items()}

    def _value(self, source: Source) -> object:
        if isinstance(source, Constant):
            return source.value
        if isinstance(source, Argument):
            return self.arguments[source.name]
        return self.tasks[source.task].parameters[source.key]

    def _made(self, source: Output) -> Made:
        return self.tasks[source.task].artifacts[source.key]

    def _import(self, task: Task, parameters: dict) -> dict[str, Made]:
        importer = task.component.executor
        uri = parameters[importer.uri.name] if isinstance(importer.uri, Argument) else importer.uri.value
        path = local_path(uri).absolute()
        if not path.exists():
            raise UserError(f"{uri} is not at {path}")
        port = next(iter(task.component.output_artifacts.values()))
        return {port.name: Made(port.type, str(path), sha256_of(path), size_of(path), importer.metadata)}

    def _unchanged(self, run: TaskRun) -> bool:
        paths = [(self.folder / made.path, made.sha256) for made in run.artifacts.values()]
        return all((sha256_of(path) if path.exists() else "") == digest for path, digest in paths)

    def _executor_input(self, task: Task, place: Path, parameters: dict, inputs: dict[str, Made]) -> dict:
        def message(name: str, kind: dict, path: Path, metadata: dict) -> dict:
            return {"artifacts": [{"name": name, "type": kind, "uri": str(path), "metadata": metadata}]}

        component = task.component
        return {
            "inputs": {
                "parameterValues": parameters,
                "artifacts": {p: message(p, m.type, self.folder / m.path, m.metadata) for p, m in inputs.items()},
            },
            "outputs": {
                "parameters": {p: {"outputFile": str(place / p)} for p in component.output_parameters},
                "artifacts": {
                    p.name: message(p.name, p.type, place / p.name, {}) for p in component.output_artifacts.values()
                },
                "outputFile": str(place / "executor_output.json"),
            },
        }

    def _process(self, task: Task, place: Path, message: dict) -> tuple[int, str]:
        """One attempt: (exit code, what happened)."""
        container = task.component.executor
        command = [_fill(part, message, task.name) for part in (*container.command, *container.args)]
        environment = {**os.environ, "PATH": self._path, **container.env}
        deadline = time.monotonic() + task.timeout if task.timeout else None
        (place / "executor_output.json").unlink(missing_ok=True)
        with (place / "log.txt").open("ab") as log:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,
            )
            while process.poll() is None:
                if self._stop.is_set() or (deadline and time.monotonic() > deadline):
                    _end(process)
                    why = "stopped" if self._stop.is_set() else f"stopped after {task.timeout:g} s (its time limit)"
                    return process.returncode or 1, why
                time.sleep(0.05)
        return process.returncode, f"exit code {process.returncode}"

    def _collect(self, task: Task, place: Path, message: dict) -> dict:
        """Read executor_output.json and digest what the task made."""
        output = place / "executor_output.json"
        said = json.loads(output.read_text()) if output.is_file() else {}
        parameters = plain(said.get("parameterValues", {}))
        for parameter in task.component.output_parameters.values():
            file = Path(message["outputs"]["parameters"][parameter.name]["outputFile"])
            if file.is_file():
                text = file.read_text()
                parameters[parameter.name] = text if parameter.type == "STRING" else plain(json.loads(text))
        artifacts = {}
        for port in task.component.output_artifacts.values():
            items = said.get("artifacts", {}).get(port.name, {}).get("artifacts") or [{}]
            path = place / port.name
            there = path.exists()
            artifacts[port.name] = Made(
                port.type,
                str(path.relative_to(self.folder)),
                sha256_of(path) if there else "",
                size_of(path) if there else 0,
                items[0].get("metadata", {}),
            )
        return {"parameters": parameters, "artifacts": artifacts}

    def _check_command(self, task: Task) -> None:
        container = task.component.executor
        if not isinstance(container, Container):
            return
        command = (*container.command, *container.args)[0]
        if shutil.which(command, path=self._path) is None:
            raise GraphError(
                f"task {task.name}: this environment has no command {command}, which image {container.image} provides;"
                " install it here or run the pipeline on a cluster"
            )


def _key(container: Container, parameters: dict, inputs: dict[str, Made]) -> str:
    """What a task's outputs depend on, as one digest; paths are no part of it."""
    what = {
        "image": container.image,
        "command": [*container.command, *container.args],
        "env": container.env,
        "parameters": parameters,
        "artifacts": {port: [made.sha256, made.type, made.metadata] for port, made in inputs.items()},
    }
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()


_PLACEHOLDER = re.compile(r"\{\{\$(.*?)\}\}")
_PATHS = {
    r"\.inputs\.parameters\['(?P<name>[^']+)'\]": ("inputs", "parameterValues", "{name}"),
    r"\.inputs\.artifacts\['(?P<name>[^']+)'\]\.(?:path|uri)": ("inputs", "artifacts", "{name}", "artifacts", 0, "uri"),
    r"\.outputs\.artifacts\['(?P<name>[^']+)'\]\.(?:path|uri)": (
        "outputs",
        "artifacts",
        "{name}",
        "artifacts",
        0,
        "uri",
    ),
    r"\.outputs\.parameters\['(?P<name>[^']+)'\]\.output_file": ("outputs", "parameters", "{name}", "outputFile"),
    r"\.outputs\.output_file": ("outputs", "outputFile"),
}


def _fill(text: str, message: dict, task: str) -> str:
    """Replace KFP's placeholders by what the ExecutorInput says."""

    def value(match: re.Match) -> str:
        inner = match.group(1)
        if not inner:
            return json.dumps(message)
        for pattern, path in _PATHS.items():
            found = re.fullmatch(pattern, inner)
            if found:
                item = message
                for step in path:
                    item = item[found["name"] if step == "{name}" else step]
                return item if isinstance(item, str) else json.dumps(item)
        raise GraphError(f"task {task}: placeholder {match.group(0)} is not supported by this engine")

    return _PLACEHOLDER.sub(value, text)


def _end(process: subprocess.Popen) -> None:
    """SIGTERM to the task's whole process group, SIGKILL to what is left of it after GRACE seconds."""
    for signum, patience in ((signal.SIGTERM, GRACE), (signal.SIGKILL, None)):
        try:
            os.killpg(process.pid, signum)
        except ProcessLookupError:
            return
        try:
            process.wait(patience)
        except subprocess.TimeoutExpired:
            continue


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
