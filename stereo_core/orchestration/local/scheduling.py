"""Runs tasks in order of their dependencies, in parallel as far as the machine allows."""

from __future__ import annotations

from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Any

from stereo_core.orchestration.dag import GraphError, Task
from stereo_core.orchestration.local.attempts import USER_ERROR, run_task
from stereo_core.orchestration.local.reuse import is_outdated
from stereo_core.orchestration.local.state import State
from stereo_core.orchestration.local.values import value_of
from stereo_core.orchestration.record import DONE, ENDED, Record, now

READY = {"state": "running"}


def outlook(task: Task, record: Record) -> dict[str, Any]:
    """The next state of a waiting task, as fields of its record: empty if it has to wait, READY if it can start."""
    ended = {other for other in task.after | task.behind if record.tasks[other].state in ENDED}
    broken = sorted(other for other in task.after & ended if not record.tasks[other].lets_on())
    if broken:
        return {"state": "skipped", "message": f"needs {', '.join(broken)}"}
    if len(ended) < len(task.after | task.behind):
        return {}
    try:
        false = next((t.text for t in task.when if not t.holds(lambda source: value_of(source, record))), None)
    except GraphError as error:
        return {"state": "failed", "exit_code": USER_ERROR, "message": str(error)}
    if false is not None:
        return {"state": "skipped", "left_out": True, "message": f"its condition is false: {false}"}
    return READY


def run_all(state: State, parallel: int) -> int:
    """Run the planned tasks; returns 0, 1 (a task failed) or 2 (all failures are due to wrong user input).

    Raises:
        KeyboardInterrupt: after all tasks were stopped and the record was written.
    """
    pool = ThreadPoolExecutor(parallel, thread_name_prefix="task")
    running: dict[Future[Any], str] = {}
    try:
        state.change()
        _schedule(state, pool, parallel, running)
    except KeyboardInterrupt:
        _cancel(state, running)
        _schedule(state, pool, parallel, running)
        _finish(state, "stopped")
        raise
    finally:
        state.stop.set()
        pool.shutdown()
    failed = [run for name in state.plan.scope if (run := state.record.tasks[name]).state == "failed"]
    _finish(state, "failed" if failed else "succeeded")
    if not failed:
        return 0
    return USER_ERROR if all(run.exit_code == USER_ERROR for run in failed) else 1


def _schedule(state: State, pool: ThreadPoolExecutor, parallel: int, running: dict[Future[Any], str]) -> None:
    """Run tasks until all have ended; `running` holds the active ones."""
    tasks, free = state.record.tasks, list(state.machine.gpus)
    while not all(tasks[name].state in ENDED for name in state.plan.scope):
        for task in _ready(state):
            wanted = state.machine.gpus_for(task)
            if len(running) == parallel or wanted > len(free):
                continue
            gpus, free = free[:wanted], free[wanted:]
            state.change(task.name, **READY, started=now(), gpus=gpus)
            running[pool.submit(run_task, task, state)] = task.name
        finished, _ = wait(running, return_when=FIRST_COMPLETED)
        for future in finished:
            free += tasks[running.pop(future)].gpus
            future.result()


def _ready(state: State) -> list[Task]:
    """The waiting tasks that can run now. Tasks that will never run are marked as skipped."""
    ready = []
    for name, task in state.pipeline.tasks.items():
        if name not in state.plan.scope or state.record.tasks[name].state != "waiting":
            continue
        values = outlook(task, state.record)
        if values == READY:
            ready.append(task)
        elif values:
            if values.get("left_out"):
                state.empty(name)  # remove results of a run in which the condition was true
            state.change(name, **values)
    return ready


def _cancel(state: State, running: dict[Future[Any], str]) -> None:
    """Stop the running tasks and mark the waiting ones as stopped, except exit handlers, which still run."""
    state.stop.set()
    wait(running)
    running.clear()
    for name, task in state.pipeline.tasks.items():
        if state.record.tasks[name].state not in ENDED and not task.exit:
            state.change(name, state="stopped")
    state.record.cancelled = True
    state.stop.clear()


def _finish(state: State, word: str) -> None:
    """Write the end of the run to the record, and mark kept tasks that are now out of date."""
    record = state.record
    with state.lock:
        record.state = word
        for run in record.tasks.values():
            if run.state in ("waiting", "running"):
                run.state = "stopped"
        for name in record.tasks.keys() - state.plan.scope:
            if record.tasks[name].state in DONE:
                note = f"out of date: its inputs or parameters have changed; run it again with --from {name}"
                record.tasks[name].message = (
                    note if is_outdated(state.pipeline.tasks[name], record, state.digests) else ""
                )
        state.change()
