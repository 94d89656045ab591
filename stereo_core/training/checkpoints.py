"""Checkpoint files of a training run: written whole or not at all, read without unpickling code."""

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

import pytorch_lightning as pl
import torch
from pytorch_lightning.plugins.io import TorchCheckpointIO
from pytorch_lightning.trainer.states import TrainerFn

from stereo_core.errors import ModelError
from stereo_core.files import atomic_path, point, sha256_of
from stereo_core.models.files import check_digest, read_sidecar, read_torch, sidecar_of
from stereo_core.spec.choice import BEST, LATEST, checkpoints_of
from stereo_core.training.callbacks import validation_metrics
from stereo_core.training.nonfinite import NonFiniteLossError
from stereo_core.training.snapshots import Snapshot
from stereo_core.values import plain

LOG = logging.getLogger(__name__)


class AtomicCheckpointIO(TorchCheckpointIO):
    """Lightning's checkpoint files through a temporary name, with their SHA-256 in `<file>.json`, and `weights_only` on
    the way back."""

    def save_checkpoint(self, checkpoint: dict, path: str | Path, storage_options: object = None) -> None:
        path = Path(path)
        try:
            with atomic_path(path) as temporary:
                torch.save(checkpoint, temporary)
                note = {"kind": "checkpoint", "sha256": sha256_of(temporary)}
                sidecar_of(path).unlink(missing_ok=True)  # of a file of this name that is about to be replaced
            write_sidecar(path, note | {key: checkpoint[key] for key in ("epoch", "global_step")})
        except (OSError, RuntimeError) as error:
            free = shutil.disk_usage(path.parent).free / 2**20
            raise OSError(
                f"{path}: the checkpoint could not be written ({free:.0f} MiB are free there): {error}; "
                "checkpoints written before it are intact"
            ) from error

    def load_checkpoint(self, path: str | Path, map_location: object = "cpu", mmap: bool = False, **_: object) -> dict:
        checkpoint = read_torch(Path(path), map_location, mmap)
        if not {"loops", "optimizer_states"} <= checkpoint.keys():
            raise ModelError(
                f"{path}: holds weights but no state of a training run, so there is nothing to resume; "
                "give it as train.pretrained_model_path"
            )
        try:
            progress_of(checkpoint), seed_of(checkpoint)
        except (LookupError, TypeError, AttributeError) as error:
            raise ModelError(f"{path}: the state of its training run is damaged ({error!r}); copy it again") from None
        return checkpoint


def write_sidecar(path: Path, note: dict) -> None:
    """Note something about a checkpoint: kind, sha256, epoch, global_step, metrics."""
    with atomic_path(sidecar_of(path)) as temporary:
        temporary.write_text(json.dumps(note, indent=2) + "\n", encoding="utf-8")


def add_metrics(path: Path, metrics: dict[str, float]) -> None:
    """Note the metrics of a checkpoint's validation beside its digest."""
    write_sidecar(path, read_sidecar(path) | {"metrics": plain(metrics)})


@dataclass(frozen=True)
class Progress:
    """How far a run had come: whole epochs, batches of the next one, and optimizer steps in all."""

    epochs: int
    batches: int
    steps: int


def read_progress(path: Path) -> Progress:
    """The progress of a checkpoint, its weights left on the disk; ModelError where it is none of a training run."""
    return progress_of(AtomicCheckpointIO().load_checkpoint(path, mmap=True))


def read_seed(path: Path) -> int:
    """The seed of the run that a checkpoint is of."""
    return seed_of(AtomicCheckpointIO().load_checkpoint(path, mmap=True)) or 0


def seed_of(checkpoint: dict) -> int | None:
    """The seed in a loaded checkpoint; None where none is said."""
    return checkpoint.get("rng", {}).get("seed")


def progress_of(checkpoint: dict) -> Progress:
    """The progress in a loaded checkpoint; an epoch whose batches are all done counts as whole."""
    batches = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
    counts = checkpoint["epoch"], batches["current"]["ready"], checkpoint["global_step"]
    epochs, ready, steps = map(operator.index, counts)
    return Progress(epochs + 1, 0, steps) if batches["is_last_batch"] else Progress(epochs, ready, steps)


def settle_counters(checkpoint: dict) -> None:
    """Set Lightning's counters in a loaded checkpoint to what they are after a batch in a run that never stopped.

    From their differences Lightning guesses the hook in which a checkpoint was written, to begin in the right place;
    in the checkpoints of a resumed run they differ otherwise, and it would lose count.
    """
    loops, epoch = checkpoint["loops"]["fit_loop"], checkpoint["epoch"]
    for counts in (loops["epoch_progress"]["total"], loops["epoch_progress"]["current"]):
        counts.update(ready=epoch + 1, started=epoch + 1, processed=epoch, completed=epoch)
    for counts in (loops["epoch_loop.batch_progress"]["total"], loops["epoch_loop.batch_progress"]["current"]):
        counts.update(started=counts["ready"], processed=counts["ready"], completed=counts["ready"] - 1)


def newest_whole(folder: Path) -> Path | None:
    """The newest checkpoint that is whole: `dn_model_latest.pth`, else the ones before it; None where there is none.

    A damaged one is passed over with an error in the log. Later steps than the link's do not count: the run went back
    to an earlier one.

    Raises:
        ModelError: there are checkpoints, and every one is damaged.
    """
    candidates = checkpoints_of(folder)[::-1]
    for path in candidates:
        try:
            check_digest(path)
            AtomicCheckpointIO().load_checkpoint(path, mmap=True)
            return path
        except Exception as error:  # whatever torch makes of a damaged file
            LOG.error("%s can not be resumed, the checkpoint before it is tried: %s", path, error)
    if candidates:
        raise ModelError(
            f"{folder}: none of its checkpoints ({len(candidates)}) is whole, see the log; remove them to train anew"
        )
    return None


class Stopped(BaseException):
    """SIGTERM or Ctrl-C came, the step was finished and its checkpoint written."""


class Checkpoints(pl.callbacks.Checkpoint):
    """Writes `model_epoch_EEE_step_SSSSS.pth` (0-based epoch) and keeps the newest ones and the best one.

    `dn_model_latest.pth` points at the newest, `dn_model_best.pth` at the one with the lowest value of a metric; a
    validation that is better than all before it leaves a checkpoint, whatever the interval. Every checkpoint stands
    between two optimizer steps: at an epoch's end it is the state after the last step, before the validation, whenever
    it is written. While it trains, SIGTERM and the first Ctrl-C let the step end, which may be several batches long,
    write a checkpoint and raise Stopped; within a validation they do so after the batch.

    Any other error than lost weights or a failed write, such as a corrupt image or a loader process that died, leaves a
    checkpoint of the last whole step; not with several processes, which would wait for the one that is gone.

    Args:
        folder: where they go.
        settings: the spec's `train`: checkpoint_interval, checkpoint_interval_unit (the end of training always counts),
            keep_checkpoints (0: all), monitor (the lower the better).
    """

    def __init__(self, folder: Path, settings) -> None:
        self.folder = folder
        self.interval, self.unit = settings.checkpoint_interval, settings.checkpoint_interval_unit
        self.keep, self.monitor = settings.keep_checkpoints, settings.monitor
        self.names: list[str] = []  # of this run, oldest first
        self.initial: dict[str, float] = {}  # of the validation before its first step
        self.step: int | None = None  # the optimizer step seen last; None before training
        self.epoch = 0  # of that step
        self.loops: dict | None = None  # Lightning's after it; None before this process's first step
        self.buffers = Snapshot(())  # the network's after it
        self.within_update = False  # the weights are of no step
        self.saved_step = 0  # of the newest checkpoint, be it that its write failed, or where the run started
        self.metrics: dict[str, float] = {}  # of the last validation
        self.validated_step = -1
        self.stop_asked = 0  # by which signal

    @property
    def latest(self) -> Path | None:
        return self.folder / self.names[-1] if self.names else None

    @property
    def best(self) -> Path | None:
        """The checkpoint with the lowest value of the metric; None where none was validated."""
        values = {name: self._value(read_sidecar(self.folder / name).get("metrics", {})) for name in self.names}
        best = min(self.names, key=values.get, default=None)
        return self.folder / best if best and math.isfinite(values[best]) else None

    @property
    def validation(self) -> dict[str, float]:
        """The validation of the best checkpoint, which is handed on; where there is none, the last one."""
        metrics = read_sidecar(self.best)["metrics"] if self.best else self.metrics
        return {name: value for name, value in metrics.items() if value is not None}  # what is not finite is None there

    def words(self) -> str:
        """Which checkpoint is handed on, and why."""
        best = self.best
        if best:
            return f"the best by {self.monitor} is {best.name}, {self._value(read_sidecar(best)['metrics']):.4f}"
        return f"the last is {self.latest.name}, nothing was validated" if self.latest else "no checkpoint was written"

    def state_dict(self) -> dict:
        return {"names": self.names, "initial": self.initial}

    def load_state_dict(self, state: dict) -> None:
        self.names, self.initial = list(state["names"]), dict(state["initial"])

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self.step = self.saved_step = trainer.global_step
        self.buffers = Snapshot(module.model.buffers())
        if threading.current_thread() is threading.main_thread():
            # Instead of Lightning's handler, which ends between two batches of a step; Lightning sets back the first.
            signal.signal(signal.SIGTERM, self._ask_to_stop)
            signal.signal(signal.SIGINT, self._ask_to_stop)
        if trainer.fast_dev_run or not trainer.is_global_zero:
            return
        for leftover in self.folder.glob(".model_epoch_*"):  # of a process that was killed while writing
            leftover.unlink(missing_ok=True)
        at_home = trainer.ckpt_path and Path(trainer.ckpt_path).resolve().parent == self.folder.resolve()
        self.names = [name for name in self.names if at_home and (self.folder / name).is_file()]
        (self.folder / BEST).unlink(missing_ok=True)  # may be of a later step than this run goes back to
        self._tidy()

    def on_before_optimizer_step(self, *_) -> None:
        self.within_update = True

    def on_train_batch_end(self, trainer: pl.Trainer, module: pl.LightningModule, *_) -> None:
        if trainer.global_step == self.step:
            return
        self._look(trainer, module)
        if self.unit == "step" and trainer.global_step % self.interval == 0:
            self.save(trainer)
        self._stop_if_asked(trainer)

    def on_validation_batch_end(self, trainer: pl.Trainer, module, outputs, batch, batch_index: int, *_) -> None:
        on_every_rank = trainer.val_dataloaders.sampler.batches_on_every_rank
        if trainer.state.fn == TrainerFn.FITTING and batch_index < on_every_rank:
            self._stop_if_asked(trainer)

    def on_validation_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        if trainer.state.fn != TrainerFn.FITTING:
            return
        self.metrics, self.validated_step = validation_metrics(trainer), trainer.global_step
        if trainer.strategy.broadcast(trainer.is_global_zero and self._is_best()):  # the first rank knows the files
            self.save(trainer)
        if self.saved_step == trainer.global_step and self.latest and trainer.is_global_zero:
            add_metrics(self.latest, self.metrics)
            self._tidy()

    def on_train_epoch_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        done = trainer.current_epoch + 1
        if (self.unit == "epoch" and done % self.interval == 0) or done == trainer.max_epochs:
            self.save(trainer)
        self._stop_if_asked(trainer)

    def on_save_checkpoint(self, trainer: pl.Trainer, module: pl.LightningModule, checkpoint: dict) -> None:
        if self.loops is not None:
            checkpoint["epoch"], checkpoint["loops"]["fit_loop"] = self.epoch, self.loops

    def on_exception(self, trainer: pl.Trainer, module: pl.LightningModule, exception: BaseException) -> None:
        lost = not isinstance(exception, Exception) or isinstance(exception, NonFiniteLossError)
        if lost or self.step is None or trainer.world_size > 1:
            return
        try:
            self._save_last_step(trainer, module)
        except Exception as error:  # the one that ended the run is to be told
            LOG.error("the last step could not be saved: %s", error)

    def _save_last_step(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Save the state after the last step, wherever in the next one, or in a callback, an error came."""
        if trainer.global_step != self.step:  # another callback failed, and ours had not come to its turn
            self._look(trainer, module)
        elif self.loops is None or self.within_update:
            return
        self.buffers.give_back()
        if self.save(trainer):
            LOG.warning("the last step was saved: %s", self.latest)

    def _look(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Keep what of the state after a step will be gone when the next batch has begun."""
        self.step, self.epoch, self.within_update = trainer.global_step, trainer.current_epoch, False
        self.loops = copy.deepcopy(trainer.fit_loop.state_dict())
        if trainer.world_size == 1:  # see on_exception
            self.buffers.take()

    def save(self, trainer: pl.Trainer) -> bool:
        """Write the state after the last step; nothing, and False, where it was before, or on a dry run."""
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

    def _ask_to_stop(self, number: int, _: object) -> None:
        self.stop_asked = number
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            LOG.warning("Ctrl-C: finishing the step and writing a checkpoint; once more ends at once")

    def _stop_if_asked(self, trainer: pl.Trainer) -> None:
        """On all ranks together: one of them has had the signal, and all of them save."""
        if trainer.strategy.reduce_boolean_decision(bool(self.stop_asked), all=False):
            self.save(trainer)
            raise Stopped(self.stop_asked)

    def _is_best(self) -> bool:
        """Whether the last validation is better than all before it."""
        best, value = self.best, self._value(self.metrics)
        return math.isfinite(value) and (best is None or value < self._value(read_sidecar(best)["metrics"]))

    def _value(self, metrics: dict[str, float]) -> float:
        value = metrics.get(self.monitor, math.inf)
        return math.inf if value is None or math.isnan(value) else value

    def _tidy(self) -> None:
        """Point the links at the newest and the best checkpoint, then remove what is neither new nor best."""
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
