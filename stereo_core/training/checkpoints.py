"""Checkpoint files of a training run: written atomically, read without unpickling code."""

from __future__ import annotations

import copy
import json
import logging
import math
import operator
import shutil
import signal
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.plugins.io import TorchCheckpointIO
from pytorch_lightning.trainer.states import TrainerFn

from stereo_core.errors import ModelError, NotWrittenError
from stereo_core.files import atomic_path, point, sha256_of
from stereo_core.models.files import check_digest, read_sidecar, read_torch, sidecar_of, write_torch
from stereo_core.report.figures import amount, named
from stereo_core.spec.choice import BEST, LATEST, checkpoints_of
from stereo_core.spec.train import Train
from stereo_core.training.callbacks import validation_metrics
from stereo_core.training.nonfinite import NonFiniteLossError
from stereo_core.training.snapshots import Snapshot
from stereo_core.values import json_ready

LOG = logging.getLogger(__name__)


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes Lightning's checkpoint files by a temporary name, with their SHA-256 in `<file>.json`; reads them with
    `weights_only`."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: object = None) -> None:
        path = Path(path)
        try:
            with atomic_path(path) as temporary:
                write_torch(checkpoint, temporary)
                note = {"kind": "checkpoint", "sha256": sha256_of(temporary)}
                sidecar_of(path).unlink(missing_ok=True)  # of the file that is about to be replaced
            write_sidecar(path, note | {key: checkpoint[key] for key in ("epoch", "global_step")})
        except (OSError, RuntimeError) as error:
            free = shutil.disk_usage(path.parent).free / 2**20
            raise NotWrittenError(
                f"{path}: cannot write the checkpoint ({free:.0f} MiB are free there): {error}; "
                "checkpoints written before are intact: make room there, and run the same command again, with "
                "train.resume_training_checkpoint_path=auto"
            ) from error

    def load_checkpoint(
        self, path: str | Path, map_location: object = "cpu", mmap: bool = False, **_: object
    ) -> dict[str, Any]:
        checkpoint = read_torch(Path(path), map_location, mmap)
        if not {"loops", "optimizer_states"} <= checkpoint.keys():
            raise ModelError(
                f"{path}: the file has weights but no training state, so a run cannot be resumed from it; "
                "name it in train.pretrained_model_path instead"
            )
        try:
            progress_of(checkpoint), seed_of(checkpoint)
        except (LookupError, TypeError, AttributeError) as error:
            raise ModelError(f"{path}: the state of its training run is damaged ({error!r}); copy it again") from None
        return checkpoint


def write_sidecar(path: Path, note: dict[str, Any]) -> None:
    """Write a checkpoint's side-car: kind, sha256, epoch, global_step, metrics."""
    with atomic_path(sidecar_of(path)) as temporary:
        temporary.write_text(json.dumps(note, indent=2) + "\n", encoding="utf-8")


def add_metrics(path: Path, metrics: dict[str, float]) -> None:
    """Add the validation metrics to a checkpoint's side-car."""
    write_sidecar(path, read_sidecar(path) | {"metrics": json_ready(metrics)})


@dataclass(frozen=True)
class Progress:
    """The progress of a run: complete epochs, batches of the next one, and optimizer steps in total."""

    epochs: int
    batches: int
    steps: int


def read_progress(path: str | Path) -> Progress:
    """The progress of a checkpoint, without loading its weights; ModelError if it has no training state."""
    return progress_of(AtomicCheckpointIO().load_checkpoint(path, mmap=True))


def read_seed(path: Path) -> int:
    """The seed of the run that wrote a checkpoint."""
    return seed_of(AtomicCheckpointIO().load_checkpoint(path, mmap=True)) or 0


def seed_of(checkpoint: dict[str, Any]) -> int | None:
    """The seed in a loaded checkpoint; None if it has none."""
    return checkpoint.get("rng", {}).get("seed")


def progress_of(checkpoint: dict[str, Any]) -> Progress:
    """The progress in a loaded checkpoint; an epoch with no batches left counts as complete."""
    batches = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
    counts = checkpoint["epoch"], batches["current"]["ready"], checkpoint["global_step"]
    epochs, ready, steps = map(operator.index, counts)
    return Progress(epochs + 1, 0, steps) if batches["is_last_batch"] else Progress(epochs, ready, steps)


def settle_counters(checkpoint: dict[str, Any]) -> None:
    """Set Lightning's counters in a loaded checkpoint to their values after a batch of an uninterrupted run.

    Lightning infers from their differences in which hook a checkpoint was written, to resume at the right place. In
    checkpoints of a resumed run the differences are others, and Lightning would miscount.
    """
    loops, epoch = checkpoint["loops"]["fit_loop"], checkpoint["epoch"]
    for counts in (loops["epoch_progress"]["total"], loops["epoch_progress"]["current"]):
        counts.update(ready=epoch + 1, started=epoch + 1, processed=epoch, completed=epoch)
    for counts in (loops["epoch_loop.batch_progress"]["total"], loops["epoch_loop.batch_progress"]["current"]):
        counts.update(started=counts["ready"], processed=counts["ready"], completed=counts["ready"] - 1)


def newest_whole(folder: Path) -> Path | None:
    """The newest intact checkpoint: `dn_model_latest.pth`, else an earlier one; None if there are no checkpoints.

    A damaged one is skipped with an error in the log. Steps after the link's are ignored: the run went back to an
    earlier step.

    Raises:
        ModelError: all checkpoints are damaged.
    """
    candidates = checkpoints_of(folder)[::-1]
    for path in candidates:
        try:
            check_digest(path)
            AtomicCheckpointIO().load_checkpoint(path, mmap=True)
            return path
        except Exception as error:  # torch raises many kinds for damaged files
            LOG.error("cannot resume from %s, trying the checkpoint before it: %s", path, error)
    if candidates:
        raise ModelError(
            f"{folder}: all checkpoints ({len(candidates)}) are damaged, see the log; remove them to train from scratch"
        )
    return None


class Stopped(BaseException):
    """SIGTERM or Ctrl-C was received; a checkpoint of the last step is written."""


class Checkpoints(pl.callbacks.Checkpoint):
    """Writes `model_epoch_EEE_step_SSSSS.pth` (0-based epoch) and keeps the newest ones and the best one.

    `dn_model_latest.pth` links to the newest, `dn_model_best.pth` to the one with the lowest value of a metric. A
    validation better than all before it also writes a checkpoint, regardless of the interval. Every checkpoint holds a
    state between two optimizer steps; at an epoch's end, the state after the last step and before the validation. In
    training, SIGTERM and the first Ctrl-C finish the step (which may take several batches), write a checkpoint and
    raise Stopped; in a validation they do so after the batch.

    After any other error, such as a corrupt image or a dead loader process, a checkpoint of the last complete step is
    written, except if the weights are lost, the write failed, or there are several processes, which would wait for the
    failed one.

    Args:
        folder: where the checkpoints are written.
        settings: the spec's `train`: checkpoint_interval, checkpoint_interval_unit (the end of training always counts),
            keep_checkpoints (0: all), monitor (the lower the better).
    """

    def __init__(self, folder: Path, settings: Train) -> None:
        self.folder = folder
        self.interval, self.unit = settings.checkpoint_interval, settings.checkpoint_interval_unit
        self.keep, self.monitor = settings.keep_checkpoints, settings.monitor
        self.names: list[str] = []  # checkpoints of this run, oldest first
        self.initial: dict[str, float] = {}  # metrics of the validation before the first step
        self.step: int | None = None  # the last optimizer step; None before training
        self.epoch = 0  # of that step
        self.loops: dict[str, Any] | None = (
            None  # Lightning's loop state after it; None before this process's first step
        )
        self.buffers = Snapshot(())  # the network's buffers after it
        self.within_update = False  # True while the weights are being updated
        self.saved_step = 0  # step of the newest checkpoint (even if its write failed), or of the run's start
        self.metrics: dict[str, float] = {}  # metrics of the last validation
        self.validated_step = -1
        self.stop_signal = 0  # number of the received signal, 0 if none

    @property
    def latest(self) -> Path | None:
        return self.folder / self.names[-1] if self.names else None

    @property
    def best(self) -> Path | None:
        """The checkpoint with the lowest value of the metric; None if none was validated."""
        values = {name: self._value(read_sidecar(self.folder / name).get("metrics", {})) for name in self.names}
        best = min(self.names, key=values.get, default=None)
        return self.folder / best if best and math.isfinite(values[best]) else None

    @property
    def validation(self) -> dict[str, float]:
        """The validation metrics of the best checkpoint; if there is none, of the last validation."""
        metrics = read_sidecar(self.best)["metrics"] if self.best else self.metrics
        return {name: value for name, value in metrics.items() if value is not None}  # None means not finite

    def words(self) -> str:
        """A text that names the resulting checkpoint, its epoch, and why it was chosen."""
        best = self.best
        if best:
            note, before = read_sidecar(best), self._value_before
            text = f"the best checkpoint by {self.monitor} is {best}, of epoch {note['epoch'] + 1} (names count from 0)"
            text += f", with {named(self.monitor, self._value(note['metrics']))}"
            return text + ("" if before is None else f" ({amount(self.monitor, before)} before training)")
        return f"the last checkpoint is {self.latest} (no validation)" if self.latest else "no checkpoint was written"

    def doubt(self) -> str | None:
        """A warning if training made the network no better; else None."""
        before = self._value_before
        if before is None or self.best is None:
            return None
        value = self._value(read_sidecar(self.best)["metrics"])
        if value < before:
            return None
        return (
            f"no epoch was better than the weights that training started from: {named(self.monitor, before)} before, "
            f"{amount(self.monitor, value)} at best; keep those weights, or try a lower train.optim.lr"
        )

    @property
    def _value_before(self) -> float | None:
        """The metric of the weights that training started from; None if they were not validated."""
        name = "val_loss" if self.monitor == "val/loss" else self.monitor.removeprefix("val/")  # see validation_kpi
        value = self.initial.get(f"initial_{name}")
        return value if value is not None and math.isfinite(value) else None

    def state_dict(self) -> dict[str, Any]:
        return {"names": self.names, "initial": self.initial}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.names, self.initial = list(state["names"]), dict(state["initial"])

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self.step = self.saved_step = trainer.global_step
        self.buffers = Snapshot(module.model.buffers())
        if threading.current_thread() is threading.main_thread():
            # Replaces Lightning's handler, which stops between two batches of a step; Lightning restores the original.
            signal.signal(signal.SIGTERM, self._request_stop)
            signal.signal(signal.SIGINT, self._request_stop)
        if trainer.fast_dev_run or not trainer.is_global_zero:
            return
        for leftover in self.folder.glob(".model_epoch_*"):  # left by a process that was killed while writing
            leftover.unlink(missing_ok=True)
        at_home = trainer.ckpt_path and Path(trainer.ckpt_path).resolve().parent == self.folder.resolve()
        self.names = [name for name in self.names if at_home and (self.folder / name).is_file()]
        (self.folder / BEST).unlink(missing_ok=True)  # may be of a later step than the resumed one
        self._tidy()

    def on_before_optimizer_step(self, *_: Any) -> None:
        self.within_update = True

    def on_train_batch_end(self, trainer: pl.Trainer, module: pl.LightningModule, *_: Any) -> None:
        if trainer.global_step == self.step:
            return
        self._look(trainer, module)
        if self.unit == "step" and trainer.global_step % self.interval == 0:
            self.save(trainer)
        self._stop_if_requested(trainer)

    def on_validation_batch_end(
        self, trainer: pl.Trainer, module: pl.LightningModule, outputs: Any, batch: Any, batch_index: int, *_: Any
    ) -> None:
        on_every_rank = trainer.val_dataloaders.sampler.batches_on_every_rank
        if trainer.state.fn == TrainerFn.FITTING and batch_index < on_every_rank:
            self._stop_if_requested(trainer)

    def on_validation_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        if trainer.state.fn != TrainerFn.FITTING:
            return
        self.metrics, self.validated_step = validation_metrics(trainer), trainer.global_step
        if trainer.strategy.broadcast(
            trainer.is_global_zero and self._is_best()
        ):  # only the first rank knows the files
            self.save(trainer)
        if self.saved_step == trainer.global_step and self.latest and trainer.is_global_zero:
            add_metrics(self.latest, self.metrics)
            self._tidy()

    def on_train_epoch_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        done = trainer.current_epoch + 1
        if (self.unit == "epoch" and done % self.interval == 0) or done == trainer.max_epochs:
            self.save(trainer)
        self._stop_if_requested(trainer)

    def on_save_checkpoint(self, trainer: pl.Trainer, module: pl.LightningModule, checkpoint: dict[str, Any]) -> None:
        if self.loops is not None:
            checkpoint["epoch"], checkpoint["loops"]["fit_loop"] = self.epoch, self.loops

    def on_exception(self, trainer: pl.Trainer, module: pl.LightningModule, exception: BaseException) -> None:
        lost = not isinstance(exception, Exception) or isinstance(exception, NonFiniteLossError)
        if lost or self.step is None or trainer.world_size > 1:
            return
        try:
            self._save_last_step(trainer, module)
        except Exception as error:  # do not hide the error that ended the run
            LOG.error("could not save the last step: %s", error)

    def _save_last_step(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Save the state after the last step, wherever in the next step or in a callback an error occurred."""
        if trainer.global_step != self.step:  # another callback failed before this one ran
            self._look(trainer, module)
        elif self.loops is None or self.within_update:
            return
        self.buffers.restore()
        if self.save(trainer):
            LOG.warning("saved the last step before the error: %s", self.latest)

    def _look(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Keep the part of the state after a step that the next batch overwrites."""
        self.step, self.epoch, self.within_update = trainer.global_step, trainer.current_epoch, False
        self.loops = copy.deepcopy(trainer.fit_loop.state_dict())
        if trainer.world_size == 1:  # see on_exception
            self.buffers.take()

    def save(self, trainer: pl.Trainer) -> bool:
        """Write the state after the last step. Return False without writing if it was already written, or on a dry
        run."""
        if trainer.global_step == self.saved_step or trainer.fast_dev_run:
            return False
        self.saved_step = trainer.global_step
        name = f"model_epoch_{self.epoch:03d}_step_{trainer.global_step:05d}.pth"
        self.names = [other for other in self.names if other != name] + [name]
        trainer.save_checkpoint(self.folder / name)
        if trainer.is_global_zero:
            if self.validated_step == trainer.global_step:
                add_metrics(self.folder / name, self.metrics)
            self._tidy()
        return True

    def _request_stop(self, number: int, _: object) -> None:
        self.stop_signal = number
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            LOG.warning("Ctrl-C: finishing the step and writing a checkpoint; press it again to stop at once")

    def _stop_if_requested(self, trainer: pl.Trainer) -> None:
        """Stop all ranks together: if one has received the signal, all of them save."""
        if trainer.strategy.reduce_boolean_decision(bool(self.stop_signal), all=False):
            self.save(trainer)
            raise Stopped(self.stop_signal)

    def _is_best(self) -> bool:
        """Whether the last validation is better than all before it."""
        best, value = self.best, self._value(self.metrics)
        return math.isfinite(value) and (best is None or value < self._value(read_sidecar(best)["metrics"]))

    def _value(self, metrics: dict[str, float]) -> float:
        value = metrics.get(self.monitor, math.inf)
        return math.inf if value is None or math.isnan(value) else value

    def _tidy(self) -> None:
        """Link the newest and the best checkpoint, then remove those that are neither recent nor best."""
        best = self.best
        for link, target in ((LATEST, self.latest), (BEST, best)):
            if target:
                point(self.folder / link, target)
        old = self.names[: -self.keep] if self.keep else []
        for name in old:
            if self.folder / name != best:
                (self.folder / name).unlink(missing_ok=True)
                sidecar_of(self.folder / name).unlink(missing_ok=True)
        self.names = [name for name in self.names if (self.folder / name).is_file()]
