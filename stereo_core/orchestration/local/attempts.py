"""Runs one task: reuses an earlier result, or attempts it as often as its retry policy allows."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

from stereo_core.errors import WORTH_ANOTHER_TRY, UserError
from stereo_core.orchestration.dag import Importer, Task
from stereo_core.orchestration.local.importing import imported
from stereo_core.orchestration.local.machine import GPUS
from stereo_core.orchestration.local.message import OUTPUT, command_of, executor_input, outputs_of
from stereo_core.orchestration.local.processes import MARK, run_to_end
from stereo_core.orchestration.local.reuse import is_unchanged, present_key
from stereo_core.orchestration.local.state import State
from stereo_core.orchestration.local.values import artifacts_of, parameters_of
from stereo_core.orchestration.long_arguments import passable
from stereo_core.orchestration.podman import reason

LAST = 60.0  # time limit in seconds for an exit handler of a cancelled run
USER_ERROR = 2
# Exit codes worth a retry: a GPU error, Ctrl-C, SIGKILL and SIGTERM, as a shell and as Python report them.
INTERRUPTED = (*WORTH_ANOTHER_TRY, -signal.SIGINT, -signal.SIGKILL, -signal.SIGTERM)


def run_task(task: Task, state: State) -> None:
    """Run a task to its end, and write the result to the record."""
    begin = time.monotonic()
    try:
        values = _ending(task, state)
    except UserError as error:
        values = {"state": "failed", "message": str(error), "exit_code": USER_ERROR}
    except Exception as error:  # e.g. a broken executor_output.json or a full disk: only this task fails
        values = {"state": "failed", "message": f"{type(error).__name__}: {error}", "exit_code": 1}
    state.change(task.name, seconds=round(time.monotonic() - begin, 3), **values)


def _ending(task: Task, state: State) -> dict[str, Any]:
    """Run a task (or reuse it); returns the fields of its record."""
    record, executor = state.record, task.component.executor
    parameters = parameters_of(task, record)
    if isinstance(executor, Importer):
        artifacts = imported(task, parameters, state.digests, record.folder)
        return {"state": "succeeded", "made": True, "artifacts": artifacts}
    inputs = artifacts_of(task, record)
    key = present_key(executor, parameters, inputs, record, state.digests)
    if _is_made(task, key, state):
        return {"state": "reused", "exit_code": 0, "attempts": state.before.tasks[task.name].attempts}
    if state.stop.is_set():
        return {"state": "stopped"}
    run, place = record.tasks[task.name], record.place(task.name)
    if run.made or run.key != key or state.plan.fresh:
        state.empty(task.name)
    place.mkdir(parents=True, exist_ok=True)
    message = executor_input(task.component, record.folder, place, parameters, inputs)
    return _tried(task, key, message, state)


def _is_made(task: Task, key: str, state: State) -> bool:
    """Whether an earlier run's outputs can be reused."""
    run = state.record.tasks[task.name]
    if not run.made or run.key != key or task.exit or task.name in state.plan.again:
        return False
    return is_unchanged(run, state.record.folder, state.digests)


def _tried(task: Task, key: str, message: dict[str, Any], state: State) -> dict[str, Any]:
    place = state.record.place(task.name)
    for attempt in range(1, task.retry.count + 2):
        state.change(task.name, key=key, attempts=attempt)
        code, why = _attempt(task, place, message, state)
        if code == 0:
            outputs = outputs_of(task.component, state.record.folder, place)
            return {"state": "succeeded", "made": True, "exit_code": 0, "message": "", **outputs}
        if state.stop.is_set():
            return {"state": "stopped", "exit_code": code}
        if code not in INTERRUPTED or attempt > task.retry.count:
            break
        state.change(task.name, message=f"attempt {attempt}: {why}")
        if state.stop.wait(task.retry.delay(attempt)):
            return {"state": "stopped", "exit_code": code}
    return {"state": "failed", "exit_code": code, "message": why}


def _attempt(task: Task, place: Path, message: dict[str, Any], state: State) -> tuple[int, str]:
    """One attempt: (exit code, what happened)."""
    command = passable(command_of(task, message), place, message)
    (place / OUTPUT).unlink(missing_ok=True)
    run, machine, limit = state.record.tasks[task.name], state.machine, _limit(task, state.record.cancelled)
    mark = {MARK: str(state.record.folder)}
    if machine.containers:
        with machine.containers.container(task, command, place, message, run.gpus or machine.gpus) as line:
            code, why = run_to_end(line, place / "log.txt", os.environ | mark, limit, state.stop)
    else:
        (place / "termination-log").write_bytes(b"")
        environment = os.environ | _of_process(task, place, machine.path, run.gpus) | mark
        code, why = run_to_end(command, place / "log.txt", environment, limit, state.stop)
    return code, why + reason(place)


def _of_process(task: Task, place: Path, path: str, gpus: list[str]) -> dict[str, str]:
    """Environment variables for a task that runs as a process; containers get these settings in another way."""
    return {
        "PATH": path,
        **task.container.env,
        **({GPUS: ",".join(gpus)} if gpus else {}),
        "STEREO_TERMINATION_LOG": str(place / "termination-log"),
    }


def _limit(task: Task, cancelled: bool) -> float | None:
    """Time limit of an attempt in seconds."""
    return min(task.timeout or LAST, LAST) if cancelled else task.timeout
