"""A run from start to end, with exclusive use of its folder."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from stereo_core import storage
from stereo_core.cores import usable_cores
from stereo_core.locks import held
from stereo_core.orchestration import preflight
from stereo_core.orchestration.dag import GraphError, Pipeline
from stereo_core.orchestration.digests import Digests
from stereo_core.orchestration.graph import unrolled
from stereo_core.orchestration.local.machine import Machine
from stereo_core.orchestration.local.plan import check_kept, keep_the_others, planned, run_before, waiting
from stereo_core.orchestration.local.processes import end_leftovers
from stereo_core.orchestration.local.scheduling import run_all
from stereo_core.orchestration.local.state import State
from stereo_core.orchestration.podman import Containers
from stereo_core.orchestration.record import FILE, LOCK, Record, TaskRun, now

LOOK = 0.4  # seconds to wait for the lock, which a process that only checks the run holds for a moment


class LocalRun:
    """One run of a pipeline in one folder.

    Args:
        pipeline: From `load_pipeline`.
        arguments: Values of pipeline parameters; the others have their defaults.
        folder: The run folder; an earlier run in it is continued.
        parallel: Number of tasks at the same time; default: the CPU cores that this process may use.
        fresh: Run every task, even if its result could be reused.
        from_step: Run this task and all tasks that depend on it again; the others as usual.
        only: Run only this task, with the results of an earlier run in the folder.
        containers: Runs the tasks in containers of their images; default: as processes of this environment.
        on_change: Called with the record after each change of a task's state, never concurrently.

    Raises:
        GraphError: wrong arguments, an unknown step, or a command or accelerators that this machine does not have.
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
        preflight.check(pipeline, arguments)
        pipeline, machine = unrolled(pipeline, arguments), Machine(containers)
        for task in pipeline.tasks.values():
            machine.check(task)
        folder = Path(folder).resolve()
        before = run_before(folder, pipeline)
        tasks = {n: waiting(task, pipeline, before.tasks.get(n, TaskRun())) for n, task in pipeline.tasks.items()}
        record = Record(folder, pipeline.name, tasks, arguments, machine.runner, started=now())
        plan = planned(pipeline, fresh, from_step, only)
        digests = Digests(folder / "digests.json")
        if only is not None:
            keep_the_others(record, before, pipeline.tasks[only])
        self.record = record
        self._parallel = parallel or usable_cores()
        self._state = State(pipeline, record, before, plan, machine, digests, on_change)

    @property
    def folder(self) -> Path:
        return self.record.folder

    @property
    def tasks(self) -> dict[str, TaskRun]:
        return self.record.tasks

    def execute(self) -> int:
        """Run to the end; returns 0, 1 (a task failed) or 2 (all failures are due to wrong user input).

        Tasks that depend on a failed task are skipped; the others still run.

        Raises:
            GraphError: another run is active in the same folder, or the record cannot be written.
            UserError: the folder's file system has no locks.
            KeyboardInterrupt: after all tasks were stopped and the record was written.
        """
        state, file = self._state, self.folder / FILE
        storage.forget()  # the versions of objects that an earlier run of this process saw
        with alone_in(self.folder, {state.before.runner, self.record.runner}):
            check_kept(state.pipeline, self.record, state.plan.scope, state.digests)
            try:
                return run_all(state, self._parallel)
            except OSError as error:  # of the run itself; an error of a task ends only that task
                remedy = "make room there, then run the same command again to continue"
                raise GraphError(f"{file} cannot be written: {error.strerror or error}; {remedy}") from None


@contextlib.contextmanager
def alone_in(folder: Path, runners: set[str]) -> Iterator[None]:
    """Lock the run folder, and stop what an earlier run left running.

    Args:
        runners: What may have started the earlier tasks: process, podman, docker.

    Raises:
        GraphError: another run is active there, or the folder is not writable.
        UserError: its file system has no locks.
    """
    busy = GraphError(f"{folder}: another run is active in this folder; wait until it ends, or choose another folder")
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(held(folder / LOCK, wait=LOOK, busy=busy, vital=True))
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
            raise GraphError(f"{folder} cannot be used as the run folder: {reason}; choose another folder") from None
        end_leftovers(folder)
        for engine in runners - {"process"}:
            if shutil.which(engine):  # missing if the folder comes from another machine
                Containers(engine).end_leftovers(folder)
        for path in folder.glob(".*.json"):  # incomplete files of a killed run
            path.unlink()
        yield
