"""The search loop: runs trials in parallel, stops poor ones early, and reports the results to the study."""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path

from stereo_core.automl.study import SearchStudy
from stereo_core.automl.trials import Slot, TrialProcess, best_of, trial_folder, trial_tree
from stereo_core.cores import threads
from stereo_core.errors import ModelError, SpecError, UserError
from stereo_core.locks import held
from stereo_core.spec import ExperimentSpec
from stereo_core.spec.automl import AutoML
from stereo_core.values import counted

POLL_SECONDS = 0.5
GRACE_SECONDS = 25  # that a stopped trial gets to finish its step and write a checkpoint
LOCK_SECONDS = 60  # to wait for the trials of a killed search to end
_USER_ERROR = 2  # exit code of a training run with wrong input


def slots(settings: AutoML, gpus: Sequence[int], environment: dict[str, str]) -> list[Slot]:
    """The resources of each concurrent trial: one GPU of `gpus`, or a share of the CPU threads if there are none."""
    if gpus:
        names = environment.get("CUDA_VISIBLE_DEVICES", "").split(",")
        named = [names[gpu].strip() if gpu < len(names) and names[gpu].strip() else str(gpu) for gpu in gpus]
        return [Slot(name, None) for name in named[: settings.automl_max_concurrent]]
    count = min(settings.automl_max_concurrent, settings.automl_max_recommendations)
    return [Slot(None, max(1, threads(environment) // count))] * count


def alone(folder: Path) -> contextlib.AbstractContextManager[int]:
    """Hold `<folder>/search.lock` and yield its file descriptor, which the trials inherit.

    After a kill, the trials of the earlier search may need a moment to write their checkpoints and end.

    Raises:
        SpecError: another search still runs there after a minute.
        UserError: the folder's file system has no locks.
    """
    running = f"another search, or one of its trials, is running in {folder}"
    refusal = SpecError(f"results_dir: {running}; wait until it ends, or choose another folder")
    waiting = f"{running}; waiting for it to end"
    return held(folder / "search.lock", wait=LOCK_SECONDS, waiting=waiting, busy=refusal, vital=True, shared=True)


class Search:
    """Runs the trials of a study until automl_max_recommendations trials have run.

    A trial that crashes, runs out of memory or diverges counts as failed, and the search goes on. A trial with wrong
    input (exit code 2) ends the search, because every trial would fail the same way. When this process is stopped,
    the trials write their checkpoints and end; the next run of the search resumes them.

    Args:
        spec: the checked spec.
        study: the search's study.
        folder: the search's results folder.
        slots: one for each concurrent trial.
        lock: file descriptor from `alone`.
        on_change: called with a line of text when a trial starts, ends or is stopped.
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
        """Run until every trial has ended.

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
        """Start trials in the free slots; returns whether one was started."""
        begun = False
        while self.free and (number := self._next()) is not None:
            self._start(number)
            begun = True
        return begun

    def _next(self) -> int | None:
        if not self.interrupted:
            return self.study.ask()
        number = self.interrupted.popleft()
        self.on_change(f"Trial {number} was interrupted and resumes from its own checkpoint")
        return number

    def _start(self, number: int) -> None:
        values = self.study.values(number)
        folder = trial_folder(self.folder, number)
        trial = TrialProcess(number, folder, self.spec.automl.metric, self.free[-1], self.lock)
        trial.start(trial_tree(self.spec, self.folder, number, values))
        self.free.pop()
        self.running.append(trial)
        text = ", ".join(f"{path.rpartition('.')[2]} {value:.4g}" for path, value in values.items())
        self.on_change(f"Trial {number} starts{' (baseline: unchanged spec)' if number == 0 else ''}: {text}")

    def _watch(self, trial: TrialProcess) -> None:
        ended = trial.ended  # checked first, so that nothing written before the end is missed
        for epoch, value in trial.validations():
            if not trial.stopping and self.study.report(trial.number, epoch, value) and not ended:
                self.study.prune(trial.number)
                after = counted(epoch, "epoch")
                self.on_change(f"Trial {trial.number} is stopped early after {after}: {self._named(value)} is poor")
                trial.stop()
        trial.insist(GRACE_SECONDS)
        if ended:
            self.running.remove(trial)
            self.free.append(trial.slot)
            self._settle(trial)

    def _settle(self, trial: TrialProcess) -> None:
        """Report the result of an ended trial to the study."""
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
        for trial in self.running:  # they share one grace period
            trial.wait(max(0.0, end - time.monotonic()))
