"""The compiled pipeline, run on this machine.

Every task is the command that a cluster would run in the image, started here as a process of this Python environment,
or in a container of that image (podman.py).
Independent tasks run side by side. A run folder holds

    run.json                 the record: parameters, and for each task its state, times, exit code, outputs and digests
    digests.json             digests of imported files, by path, size and time
    tasks/<task>/log.txt     what the task printed, all attempts
    tasks/<task>/termination-log    why the last one ended
    tasks/<task>/results/    what the action wrote besides its artifacts (status.json, experiment.yaml, ...)
    tasks/<task>/<port>      its output artifacts

A run started again in the same folder takes over every task that succeeded and whose image, command, parameters and
input contents (sha256) are the same, provided its outputs are unchanged. A task that failed or was cut off finds what
last attempt left in its folder; one whose inputs changed starts in an empty folder.

A task is tried again, as its retry policy says, when its exit code tells of an interruption or of a GPU that failed;
other failures would come back. Tasks that ask for accelerators take GPUs of CUDA_VISIBLE_DEVICES, or of the machine,
for themselves; tasks that ask for none see all of them. An empty CUDA_VISIBLE_DEVICES runs every task without.

A task that is run alone (`only`) takes what the others made, where the same parameters and inputs would make it again.
Those of the others that would now be made of something else are told to be older.

A task whose condition (dsl.If) does not hold is skipped, and so is all that depends on it or on a task that failed.
Exit handlers run when what they watch has ended, after a failure and a cancellation too, and are never taken over.
"""

from __future__ import annotations

import contextlib
import difflib
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
from pathlib import Path

from stereo_core.errors import WORTH_ANOTHER_TRY, UserError
from stereo_core.files import sha256_of, size_of
from stereo_core.locks import held
from stereo_core.orchestration.dag import (
    Argument,
    Collected,
    Constant,
    Container,
    Filled,
    FinalStatus,
    GraphError,
    Importer,
    OneOf,
    Pipeline,
    Source,
    Task,
    filled,
    outputs_in,
    typed,
)
from stereo_core.orchestration.digests import Digests
from stereo_core.orchestration.graph import unrolled
from stereo_core.orchestration.long_arguments import passable
from stereo_core.orchestration.podman import Containers, reason
from stereo_core.orchestration.record import AGAIN, DONE, ENDED, FILE, LOCK, Made, Record, TaskRun, now, read_record
from stereo_core.storage import is_uri, local_path
from stereo_core.values import with_integers

GRACE = 20.0  # seconds that a stopped task has to leave a checkpoint before it is killed
LAST = 60.0  # seconds that an exit handler of a cancelled run has
USER_ERROR = 2
LOOK = 0.4  # seconds that who only looks whether a run is going on may hold its lock
TIMED_OUT = 124  # as timeout(1) says it; no interruption: the next attempt would take as long
# Exit codes worth another try: a GPU that failed, Ctrl-C, SIGKILL and SIGTERM as a shell and as Python tell them.
INTERRUPTED = (*WORTH_ANOTHER_TRY, -signal.SIGINT, -signal.SIGKILL, -signal.SIGTERM)
MARK = "STEREO_PIPELINES_RUN"  # in the environment of every process of a run: its folder
GPUS = "CUDA_VISIBLE_DEVICES"


class LocalRun:
    """One run of a pipeline in one folder.

    Args:
        pipeline: From `load_pipeline`.
        arguments: Values of pipeline parameters; the others take their defaults.
        folder: The run folder; a run that is there already is taken up.
        parallel: Tasks at a time; default: the CPU cores this process may use.
        fresh: Run every task, whatever is there.
        from_step: Run this task and all that depend on it again; the others as usual.
        only: Run this task again and no other; its inputs are what an earlier run in the folder made.
        containers: Runs the tasks in containers of their images; default: as processes of this environment.
        on_change: Called with this object after each change of a task's state, one call at a time.

    Raises:
        GraphError: arguments that do not fit, an unknown step, a command that this environment or accelerators that
            this machine does not have.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        arguments: dict[str, object],
        folder: str | Path,
        *,
        parallel: int | None = None,
        fresh: bool = False,
        from_step: str | None = None,
        only: str | None = None,
        containers: Containers | None = None,
        on_change: Callable[[Record], None] = lambda record: None,
    ):
        arguments = pipeline.arguments(arguments)
        self.pipeline = pipeline = unrolled(pipeline, arguments)
        self.parallel = parallel or len(os.sched_getaffinity(0))
        self.gpus = visible_gpus()
        self.containers = containers
        self._path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
        for task in pipeline.tasks.values():
            self._check_machine(task)
        folder = Path(folder).resolve()
        before = self._run_before(folder)
        self._before, self._runner_before = before.tasks, before.runner
        tasks = {name: self._waiting(task) for name, task in pipeline.tasks.items()}
        runner = containers.engine if containers else "process"
        self.record = Record(folder, pipeline.name, tasks, arguments, runner, started=now())
        self._scope = set(tasks) if only is None else {only}
        self._again = self._steps_to_repeat(fresh, from_step, only)
        self._fresh = fresh
        self._digests = Digests(folder / "digests.json")
        self._lock = threading.RLock()
        self._stop = threading.Event()
        self._cancelled = False
        self._on_change = on_change
        if only is not None:
            self._keep_the_others(only)

    @property
    def folder(self) -> Path:
        return self.record.folder

    @property
    def tasks(self) -> dict[str, TaskRun]:
        return self.record.tasks

    def _run_before(self, folder: Path) -> Record:
        """The run that is in the folder; where there is none, one without tasks."""
        if not (folder / FILE).is_file():
            return Record(folder, self.pipeline.name, {})
        before = read_record(folder)
        if before.pipeline != self.pipeline.name:
            raise GraphError(f"{folder} holds a run of pipeline {before.pipeline}; choose another folder")
        return before

    def _waiting(self, task: Task) -> TaskRun:
        """A task that is still to come, with what lies in its folder: this run may end before it gets there."""
        before = self._before.get(task.name, TaskRun())
        return TaskRun(
            title=task.title,
            after=sorted(self.pipeline.comes_after(task)),
            condition=" and ".join(test.text for test in task.when),
            key=before.key,
            made=before.made,
            parameters=before.parameters,
            artifacts=before.artifacts,
        )

    def _steps_to_repeat(self, fresh: bool, from_step: str | None, only: str | None) -> set[str]:
        for option, step in (("--from", from_step), ("--only", only)):
            if step is not None and step not in self.pipeline.tasks:
                near = difflib.get_close_matches(step, self.pipeline.tasks, n=1)
                hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(self.pipeline.tasks)}"
                raise GraphError(f"{option}: pipeline {self.pipeline.name} has no step {step}; {hint}")
        if fresh:
            return set(self.pipeline.tasks)
        again = {only} if only else {from_step} if from_step else set()
        if from_step:
            for name, task in self.pipeline.tasks.items():  # in an order in which each comes after all that it needs
                again |= {name} if (task.after | task.behind) & again else set()
        return again

    def _keep_the_others(self, only: str) -> None:
        for name in self.tasks.keys() - self._scope:
            run = self.tasks[name] = self._before.get(name, self.tasks[name])
            if run.state in ("waiting", "stopped"):
                run.state = "reused" if run.made else "stopped"  # a run that was cut off had not come to it again
        lacking = sorted(name for name in self.pipeline.tasks[only].after if not self.tasks[name].lets_on())
        if lacking:
            raise GraphError(
                f"--only {only}: it needs {', '.join(lacking)}, of which {self.folder} holds no result;"
                " run the pipeline without --only first"
            )

    def _check_kept(self) -> None:
        """With --only: the inputs that an earlier run made are still what they were."""
        needed = set().union(*(self.pipeline.tasks[name].after for name in self._scope)) - self._scope
        changed = sorted(name for name in needed if not self._unchanged(self.tasks[name]))
        if changed:
            raise GraphError(
                f"--only: the results of {', '.join(changed)} changed since they were made; run without --only"
            )
        outdated = sorted(name for name in self._all_before(self._scope) - self._scope if self._is_outdated(name))
        if outdated:
            raise GraphError(
                f"--only: {', '.join(outdated)} was made with other parameters or inputs than are given now;"
                " give the same, or run without --only"
            )

    def _all_before(self, names: set[str]) -> set[str]:
        """Tasks that these need, directly or not."""
        needed = set().union(*(self.pipeline.tasks[name].after for name in names))
        return needed | self._all_before(needed) if needed else needed

    def _is_outdated(self, name: str) -> bool:
        """Whether a task that was kept would be made of something else now."""
        task, run = self.pipeline.tasks[name], self.tasks[name]
        if run.state not in DONE or task.exit:
            return False
        try:
            parameters = self._parameters(task)
            if isinstance(task.component.executor, Importer):
                return [made.path for made in run.artifacts.values()] != [str(self._imported(task, parameters)[1])]
            return _key(task.component.executor, parameters, self._inputs(task)) != run.key
        except UserError:  # an input is no longer there
            return True

    # ---- scheduling

    def execute(self) -> int:
        """Run to the end; returns 0, 1 (a task failed) or 2 (tasks failed only for the user's input).

        A failed task skips what depends on it; the rest goes on.

        Raises:
            GraphError: another run is going on in the same folder, or its record can not be written.
            KeyboardInterrupt: after all tasks were stopped and the record was written.
        """
        with self._alone():
            self._check_kept()
            try:
                return self._execute()
            except OSError as error:  # a task's own end it alone
                mend = "make room there; the same command goes on where it was cut off"
                raise GraphError(
                    f"{self.folder / FILE} can not be written: {error.strerror or error}; {mend}"
                ) from None

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """Hold the folder's lock; the system lets go of it when this process ends, however it ends."""
        busy = GraphError(f"{self.folder}: another run is going on there; wait, or choose another")
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(held(self.folder / LOCK, wait=LOOK, busy=busy, vital=True))
            except OSError as error:
                reason = error.strerror.lower()
                raise GraphError(f"{self.folder} can not be the run folder: {reason}; choose another") from None
            self._end_leftovers()
            for engine in {self._runner_before, self.record.runner} - {"process"}:
                if shutil.which(engine):  # not where the folder was brought from another machine
                    Containers(engine).end_leftovers(self.folder)
            for path in self.folder.glob(".*.json"):  # what it was writing then
                path.unlink()
            yield

    def _end_leftovers(self) -> None:
        """Stop what an engine that was killed left running: it would write where this run's tasks do."""
        mark = f"{MARK}={self.folder}".encode()
        for signum in (signal.SIGTERM, signal.SIGKILL):
            deadline = time.monotonic() + GRACE
            for pid in _processes_with(mark):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signum)
            while _processes_with(mark) and time.monotonic() < deadline:
                time.sleep(0.05)

    def _execute(self) -> int:
        pool = ThreadPoolExecutor(self.parallel, thread_name_prefix="task")
        running: dict[Future, str] = {}
        try:
            self._change()
            self._schedule(pool, running)
        except KeyboardInterrupt:
            self._cancel(pool, running)
            raise
        finally:
            self._stop.set()
            pool.shutdown()
        failed = [self.tasks[name] for name in self._scope if self.tasks[name].state == "failed"]
        self._finish("failed" if failed else "succeeded")
        if not failed:
            return 0
        return USER_ERROR if all(run.exit_code == USER_ERROR for run in failed) else 1

    def _schedule(self, pool: ThreadPoolExecutor, running: dict[Future, str]) -> None:
        """Run tasks until all have ended; `running` holds those that are at it."""
        free = list(self.gpus)
        while not all(self.tasks[name].state in ENDED for name in self._scope):
            for name in self._ready():
                task = self.pipeline.tasks[name]
                wanted = self._slots(task)
                if len(running) == self.parallel or wanted > len(free):
                    continue
                gpus, free = free[:wanted], free[wanted:]
                self._change(name, state="running", started=now(), gpus=gpus)
                running[pool.submit(self._run_task, task)] = name
            finished, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in finished:
                free += self.tasks[running.pop(future)].gpus
                future.result()

    def _cancel(self, pool: ThreadPoolExecutor, running: dict[Future, str]) -> None:
        """Stop what runs, leave what waits, then let the exit handlers run that have not."""
        self._stop.set()
        wait(running)
        running.clear()
        for name, task in self.pipeline.tasks.items():
            if self.tasks[name].state not in ENDED and not task.exit:
                self._change(name, state="stopped")
        self._cancelled = True
        self._stop.clear()
        self._schedule(pool, running)
        self._finish("stopped")

    def _slots(self, task: Task) -> int:
        """GPUs that a task takes for itself."""
        executor = task.component.executor
        return executor.accelerators if self.gpus and isinstance(executor, Container) else 0

    def _ready(self) -> list[str]:
        """Waiting tasks that may run now; those that will not are marked as skipped on the way."""
        ready = []
        for name, task in self.pipeline.tasks.items():
            if name not in self._scope or self.tasks[name].state != "waiting":
                continue
            ended = {other for other in task.after | task.behind if self.tasks[other].state in ENDED}
            broken = sorted(other for other in task.after & ended if not self.tasks[other].lets_on())
            if broken:
                self._change(name, state="skipped", message=f"needs {', '.join(broken)}")
            elif len(ended) == len(task.after | task.behind) and self._is_wanted(task):
                ready.append(name)
        return ready

    def _is_wanted(self, task: Task) -> bool:
        """Whether the task's condition holds; where it does not, or can not be told, that is the task's end."""
        try:
            false = next((test.text for test in task.when if not test.holds(self._value)), None)
        except GraphError as error:
            self._change(task.name, state="failed", exit_code=USER_ERROR, message=str(error))
            return False
        if false is not None:
            self._empty(task)  # of a run in which it held
            self._change(task.name, state="skipped", left_out=True, message=f"its condition does not hold: {false}")
        return false is None

    def _finish(self, state: str) -> None:
        with self._lock:
            self.record.state = state
            for run in self.tasks.values():
                if run.state in ("waiting", "running"):
                    run.state = "stopped"
            for name in self.tasks.keys() - self._scope:
                if self.tasks[name].state in DONE:
                    note = f"older than its inputs or parameters; --from {name} makes it again"
                    self.tasks[name].message = note if self._is_outdated(name) else ""
            self._change()

    def _change(self, name: str | None = None, **values) -> None:
        """Set fields of a task's record, write run.json, tell the listener."""
        with self._lock:
            for key, value in values.items():
                setattr(self.tasks[name], key, value)
            self.record.write()
            self._on_change(self.record)

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
            return {"state": "succeeded", "made": True, "artifacts": self._import(task, parameters)}
        inputs = self._inputs(task)
        key = _key(task.component.executor, parameters, inputs)
        run = self.tasks[task.name]
        same = run.key == key and not self._fresh
        if run.made and same and task.name not in self._again and not task.exit and self._unchanged(run):
            return {"state": "reused", "exit_code": 0, "attempts": self._before[task.name].attempts}
        if self._stop.is_set():
            return {"state": "stopped"}
        if run.made or not same:
            self._empty(task)
        place = self.folder / "tasks" / task.name
        place.mkdir(parents=True, exist_ok=True)
        message = self._executor_input(task, place, parameters, inputs)
        for attempt in range(1, task.retry.count + 2):
            self._change(task.name, key=key, attempts=attempt)
            code, why = self._process(task, place, message)
            if code == 0:
                outputs = self._collect(task, place, message)
                return {"state": "succeeded", "made": True, "exit_code": 0, "message": "", **outputs}
            if self._stop.is_set():
                return {"state": "stopped", "exit_code": code}
            if code not in INTERRUPTED or attempt > task.retry.count:
                break
            self._change(task.name, message=f"attempt {attempt}: {why}")
            if self._stop.wait(task.retry.delay(attempt)):
                return {"state": "stopped", "exit_code": code}
        return {"state": "failed", "exit_code": code, "message": why}

    def _empty(self, task: Task) -> None:
        """Remove the task's folder; the record first, which must never tell of what is gone."""
        self._change(task.name, key="", made=False, parameters={}, artifacts={})
        shutil.rmtree(self.folder / "tasks" / task.name, ignore_errors=True)

    def _inputs(self, task: Task) -> dict[str, list[Made]]:
        return {port: self._made(source) for port, source in task.artifacts.items() if self._is_there(source)}

    def _parameters(self, task: Task) -> dict[str, object]:
        """The task's parameters: wired or default; the default too where a task that it runs after did not end well."""
        declared = task.component.parameters
        values = {p.name: p.default for p in declared.values() if p.default is not None}
        for name, source in task.parameters.items():
            if self._is_there(source) or declared[name].required:
                values[name] = self._value(source)
        return {name: typed(declared[name], value) for name, value in values.items()}

    def _is_there(self, source: Source) -> bool:
        """Whether the outputs that a source takes were made."""
        there = [self.tasks[output.task].state in DONE for output in outputs_in(source)]
        return isinstance(source, Collected) or (any(there) if isinstance(source, OneOf) else all(there))

    def _value(self, source: Source) -> object:
        match source:
            case Constant(value=value):
                return value
            case Argument(name=name):
                return self.record.arguments[name]
            case Filled(value=value, inputs=inputs):
                return filled(value, {name: self._value(inner) for name, inner in inputs.items()})
            case OneOf(options=options):
                return self._value(next((option for option in options if self._is_there(option)), options[0]))
            case Collected(rounds=rounds):
                return [self._value(inner) for inner in rounds if self._is_there(inner)]
            case FinalStatus():
                return self._final_status(source)
        if source.key not in self.tasks[source.task].parameters:
            raise GraphError(f"task {source.task} ({self.tasks[source.task].state}) gave no parameter {source.key}")
        return self.tasks[source.task].parameters[source.key]

    def _made(self, source: Source) -> list[Made]:
        match source:
            case OneOf(options=options):
                return self._made(next(option for option in options if self._is_there(option)))
            case Collected(rounds=rounds):
                return [made for inner in rounds if self._is_there(inner) for made in self._made(inner)]
        return [self.tasks[source.task].artifacts[source.key]]

    def _final_status(self, source: FinalStatus) -> dict:
        """In KFP's words; a cancelled run is told as such, whatever failed before."""
        bad = {name: self.tasks[name] for name in source.tasks if self.tasks[name].state in ("failed", "stopped")}
        state = "CANCELLED" if self._cancelled else "FAILED" if bad else "SUCCEEDED"
        code = max((run.exit_code or 0 for run in bad.values()), default=0)
        reasons = [f"{name} {run.state}" + (f": {run.message}" if run.message else "") for name, run in bad.items()]
        return {
            "state": state,
            "pipelineJobResourceName": f"{self.pipeline.name} in {self.folder}",
            "pipelineTaskName": source.group,
            "error": {"code": code, "message": "; ".join(reasons)},
        }

    def _import(self, task: Task, parameters: dict) -> dict[str, Made]:
        importer = task.component.executor
        uri, path = self._imported(task, parameters)
        if not path.exists():
            where = f"parameter {task.imported.name}: " if isinstance(task.imported, Argument) else ""
            if is_uri(uri):
                hint = "this engine imports what lies on this machine; `depth_net fetch_dataset` brings it"
                raise UserError(f"{where}{uri} is in object storage, and not mounted at {path}; {hint}")
            raise UserError(f"{where}{path}: no such file or folder")
        port = next(iter(task.component.output_artifacts.values()))
        return {port.name: Made(port.type, str(path), self._digests.sha256_of(path), size_of(path), importer.metadata)}

    def _imported(self, task: Task, parameters: dict) -> tuple[str, Path]:
        """An importer's URI, and where that is on this machine."""
        source = task.component.executor.uri
        uri = parameters[source.name] if isinstance(source, Argument) else source.value
        return uri, local_path(uri).absolute()

    def _unchanged(self, run: TaskRun) -> bool:
        return all(self._digest(made) == made.sha256 for made in run.artifacts.values())

    def _digest(self, made: Made) -> str:
        """Of what lies there now; imported files may be known from before, a task's own are always read."""
        path = self.folder / made.path
        if not path.exists():
            return ""
        return self._digests.sha256_of(path) if Path(made.path).is_absolute() else sha256_of(path)

    def _executor_input(self, task: Task, place: Path, parameters: dict, inputs: dict[str, list[Made]]) -> dict:
        def message(name: str, kind: dict, path: Path, metadata: dict) -> dict:
            return {"name": name, "type": kind, "uri": str(path), "metadata": metadata}

        component = task.component
        return {
            "inputs": {
                "parameterValues": parameters,
                "artifacts": {
                    p: {"artifacts": [message(p, m.type, self.folder / m.path, m.metadata) for m in made]}
                    for p, made in inputs.items()
                },
            },
            "outputs": {
                "parameters": {p: {"outputFile": str(place / p)} for p in component.output_parameters},
                "artifacts": {
                    p.name: {"artifacts": [message(p.name, p.type, place / p.name, {})]}
                    for p in component.output_artifacts.values()
                },
                "outputFile": str(place / "executor_output.json"),
            },
        }

    def _process(self, task: Task, place: Path, message: dict) -> tuple[int, str]:
        """One attempt: (exit code, what happened)."""
        container = task.component.executor
        command = [_fill(part, message, task.name) for part in (*container.command, *container.args)]
        command = passable(command, place, message)
        (place / "executor_output.json").unlink(missing_ok=True)
        gpus = self.tasks[task.name].gpus
        if self.containers:
            with self.containers.container(task, command, place, message, gpus or self.gpus) as line:
                code, why = self._watch(task, line, place, {**os.environ, MARK: str(self.folder)})
            return code, why + reason(place)
        environment = {**os.environ, "PATH": self._path, **container.env, MARK: str(self.folder)}
        if gpus:
            environment[GPUS] = ",".join(gpus)
        environment["STEREO_TERMINATION_LOG"] = str(place / "termination-log")
        (place / "termination-log").write_bytes(b"")
        code, why = self._watch(task, command, place, environment)
        return code, why + reason(place)

    def _watch(self, task: Task, command: list[str], place: Path, environment: dict[str, str]) -> tuple[int, str]:
        """Run a command to its end, or to its time limit or that of the run; (exit code, what happened)."""
        limit = min(task.timeout or LAST, LAST) if self._cancelled else task.timeout
        deadline = time.monotonic() + limit if limit else None
        with (place / "log.txt").open("ab") as log:
            if log.tell():
                log.write(f"{AGAIN}\n".encode())
                log.flush()
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
                    if self._stop.is_set():
                        return process.returncode or 1, "stopped"
                    return TIMED_OUT, f"stopped after {limit:g} s (its time limit)"
                time.sleep(0.05)
        if process.returncode < 0:
            return process.returncode, f"ended by {signal.Signals(-process.returncode).name}"
        return process.returncode, f"exit code {process.returncode}"

    def _collect(self, task: Task, place: Path, message: dict) -> dict:
        """Read executor_output.json and digest what the task made."""
        output = place / "executor_output.json"
        said = json.loads(output.read_text()) if output.is_file() else {}
        parameters = with_integers(said.get("parameterValues", {}))
        for parameter in task.component.output_parameters.values():
            file = Path(message["outputs"]["parameters"][parameter.name]["outputFile"])
            if file.is_file():
                text = file.read_text()
                parameters[parameter.name] = text if parameter.type == "STRING" else with_integers(json.loads(text))
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

    def _check_machine(self, task: Task) -> None:
        container = task.component.executor
        if not isinstance(container, Container):
            return
        if container.accelerators > len(self.gpus) and os.environ.get(GPUS) != "":
            raise GraphError(
                f"task {task.name}: it asks for {container.accelerators} GPUs and {len(self.gpus)} are visible here;"
                f" an empty {GPUS} runs the steps without, or compile the pipeline with another profile"
            )
        if self.containers:
            return self.containers.check(task, container)
        command = (*container.command, *container.args)[0]
        if shutil.which(command, path=self._path) is None:
            raise GraphError(
                f"task {task.name}: this environment has no command {command}, which image {container.image} provides;"
                " install it here or run the pipeline on a cluster"
            )


def _key(container: Container, parameters: dict, inputs: dict[str, list[Made]]) -> str:
    """What a task's outputs depend on, as one digest; paths are no part of it."""
    what = {
        "image": container.image,
        "command": [*container.command, *container.args],
        "env": container.env,
        "parameters": parameters,
        "artifacts": {port: [[m.sha256, m.type, m.metadata] for m in made] for port, made in inputs.items()},
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


def _processes_with(mark: bytes) -> list[int]:
    """Processes of this user that have `mark` (NAME=value) in their environment."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):  # it has ended, or is another user's
            if mark in path.read_bytes().split(b"\0"):
                found.append(int(path.parent.name))
    return found


def visible_gpus() -> list[str]:
    """The GPUs that CUDA_VISIBLE_DEVICES names; where it is not set, all that the driver's nvidia-smi lists."""
    said = os.environ.get(GPUS)
    if said is not None:
        return [name.strip() for name in said.split(",") if name.strip()]
    if shutil.which("nvidia-smi") is None:
        return []
    query = ["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"]
    found = subprocess.run(query, capture_output=True, text=True)
    return [] if found.returncode else [index for index in found.stdout.split() if index.isdigit()]
