"""The search itself: trials side by side, each watched, stopped where it is poor, and told to the study."""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path

from stereo_core.automl.study import SearchStudy
from stereo_core.automl.trials import Slot, TrialProcess, best_of, trial_folder, trial_tree
from stereo_core.cores import usable_cores
from stereo_core.errors import ModelError, SpecError, UserError
from stereo_core.locks import held
from stereo_core.spec import ExperimentSpec
from stereo_core.spec.automl import AutoML
from stereo_core.values import counted

POLL_SECONDS = 0.5
GRACE_SECONDS = 25  # for a trial to finish its step and write a checkpoint, once it was asked to stop
LOCK_SECONDS = 60  # for the trials of a search that was killed
_USER_ERROR = 2  # exit code of a training whose input is wrong


def slots(settings: AutoML, gpus: Sequence[int], environment: dict[str, str]) -> list[Slot]:
    """What the trials at a time have each: one GPU of `gpus`, or without any a share of the CPU's threads."""
    if gpus:
        names = environment.get("CUDA_VISIBLE_DEVICES", "").split(",")
        named = [names[gpu].strip() if gpu < len(names) and names[gpu].strip() else str(gpu) for gpu in gpus]
        return [Slot(name, None) for name in named[: settings.automl_max_concurrent]]
    count = min(settings.automl_max_concurrent, settings.automl_max_recommendations)
    cores = int(environment.get("OMP_NUM_THREADS") or usable_cores())
    return [Slot(None, max(1, cores // count))] * count


def alone(folder: Path) -> contextlib.AbstractContextManager[int]:
    """Hold `<folder>/search.lock`, which the trials hold too (through the file descriptor that is given).

    After a kill, trials of the search before may need a moment to write their checkpoints and end.

    Raises:
        SpecError: another search is still there after a minute.
        UserError: the folder's file system has no locks.
    """
    running = f"another search, or a trial of one, is running in {folder}"
    refusal = SpecError(f"results_dir: {running}; wait for it, or choose another folder")
    waiting = f"{running}; waiting for its end"
    return held(folder / "search.lock", wait=LOCK_SECONDS, waiting=waiting, busy=refusal, vital=True, shared=True)


class Search:
    """Runs the trials of a study until there are as many as were asked for.

    A trial that crashes, runs out of memory or diverges has failed, and the search goes on; one whose input is wrong
    (exit 2) ends the search, as all others would end so. When this process is stopped, the trials write their
    checkpoints and end; they are taken up again when the search is.

    Args:
        spec: the checked spec.
        study: its study.
        folder: its results.
        slots: one a trial at a time.
        lock: file descriptor of `alone`.
        on_change: called with a line to say whenever a trial begins, ends or is stopped.
    """

    def __init__(
        self,
        spec: ExperimentSpec,
        study: SearchStudy,
        folder: Path,
        slots: Sequence[Slot],
        lock: int,
        on_change: Callable[[str], None],
    ) -> None:
        self.spec, self.study, self.folder, self.lock, self.on_change = spec, study, folder, lock, on_change
        self.free = list(slots)
        self.interrupted = deque(study.interrupted())
        self.running: list[TrialProcess] = []

    def run(self) -> None:
        """Until every trial has ended.

        Raises:
            UserError: a trial's input is wrong.
        """
        try:
            while self._fill() or self.running:
                for trial in list(self.running):
                    self._watch(trial)
                time.sleep(POLL_SECONDS)
        finally:
            self._stop_all()

    def _fill(self) -> bool:
        """Begin trials where there is room; returns whether one was begun."""
        begun = False
        while self.free and (number := self._next()) is not None:
            self._start(number)
            begun = True
        return begun

    def _next(self) -> int | None:
        if not self.interrupted:
            return self.study.ask()
        number = self.interrupted.popleft()
        self.on_change(f"Trial {number} was interrupted: it goes on from its own checkpoint")
        return number

    def _start(self, number: int) -> None:
        values = self.study.values(number)
        folder = trial_folder(self.folder, number)
        trial = TrialProcess(number, folder, self.spec.automl.metric, self.free[-1], self.lock)
        trial.start(trial_tree(self.spec, self.folder, number, values))
        self.free.pop()
        self.running.append(trial)
        said = ", ".join(f"{path.rpartition('.')[2]} {value:.4g}" for path, value in values.items())
        self.on_change(f"Trial {number} begins{' (the spec as it is)' if number == 0 else ''}: {said}")

    def _watch(self, trial: TrialProcess) -> None:
        ended = trial.ended  # asked first, so that nothing it wrote before its end is missed
        for epoch, value in trial.validations():
            if not trial.stopping and self.study.report(trial.number, epoch, value) and not ended:
                self.study.prune(trial.number)
                after = counted(epoch, "epoch")
                self.on_change(f"Trial {trial.number} is stopped after {after}: {self._named(value)} is poor")
                trial.stop()
        trial.insist(GRACE_SECONDS)
        if ended:
            self.running.remove(trial)
            self.free.append(trial.slot)
            self._settle(trial)

    def _settle(self, trial: TrialProcess) -> None:
        """Tell the study how a trial that has ended went."""
        if trial.stopping:
            return
        if trial.process.returncode == _USER_ERROR:
            raise UserError(f"trial {trial.number} ({trial.folder}): {trial.reason()}")
        if trial.process.returncode:
            self._fail(trial, trial.reason())
            return
        try:
            _, metrics = best_of(trial.folder, trial.metric)
        except ModelError as error:
            self._fail(trial, str(error))
            return
        value = metrics[trial.metric]
        self.study.complete(trial.number, value)
        self.on_change(f"Trial {trial.number} is done: {self._named(value)}")

    def _fail(self, trial: TrialProcess, reason: str) -> None:
        self.study.fail(trial.number, reason)
        self.on_change(f"Trial {trial.number} failed: {reason}")

    def _named(self, value: float) -> str:
        return f"{self.spec.automl.metric} {value:.4f}"

    def _stop_all(self) -> None:
        for trial in self.running:
            trial.stop()
        end = time.monotonic() + GRACE_SECONDS
        for trial in self.running:  # together they have the time of one
            trial.wait(max(0.0, end - time.monotonic()))
