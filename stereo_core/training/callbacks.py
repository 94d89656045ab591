"""Status of a running training: the lines of status.json, and one log line per epoch."""

from __future__ import annotations

import logging
import time
from datetime import timedelta

import pytorch_lightning as pl
from pytorch_lightning.trainer.states import TrainerFn

from stereo_core.run.status import LOOP, StatusLog
from stereo_core.training.measurements import Measurements, words

LOG = logging.getLogger(__name__)


class StatusLines(pl.Callback):
    """TAO's line sequence: loop started, then for each epoch eval metrics, progress, train metrics.

    The progress line and the log also report the epoch's speed (see Measurements).
    """

    def __init__(self, status: StatusLog, measurements: Measurements) -> None:
        self.status, self.measurements = status, measurements

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        # Resuming within an epoch, Lightning does not call on_train_epoch_start.
        self.loop_start = self.epoch_start = time.monotonic()
        self.first_epoch = trainer.current_epoch
        self.status.started(LOOP)

    def on_train_epoch_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self.epoch_start = time.monotonic()

    def on_validation_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        before = trainer.state.fn == TrainerFn.VALIDATING and not module.validated
        when = " before training" if before else ""
        self.status.running(f"Eval metrics generated{when}.", kpi=validation_kpi(validation_metrics(trainer)))
        if module.validated:  # the line of the epoch that the stopped run did not write
            epoch, step, last = module.validated.epochs - 1, module.validated.steps, module.settings.num_epochs - 1
            self.status.running("Training loop in progress", epoch=epoch, step=step, max_epoch=last)

    def on_train_epoch_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        now = time.monotonic()
        epoch, steps = trainer.current_epoch, max(1, int(trainer.num_training_batches))
        done = epoch + 1 - self.first_epoch
        seconds_left = (now - self.loop_start) / done * (trainer.max_epochs - epoch - 1)
        self.status.running(
            "Training loop in progress",
            epoch=epoch,
            step=trainer.global_step,
            max_epoch=trainer.max_epochs - 1,
            max_step=int(trainer.estimated_stepping_batches),
            time_per_epoch=str(timedelta(seconds=now - self.epoch_start)),
            time_per_step=str(timedelta(seconds=(now - self.epoch_start) / steps)),
            eta=str(timedelta(seconds=seconds_left)),
            **self.measurements.epoch_figures(),
        )
        self.status.running("Train metrics generated.", kpi=train_kpi(trainer))
        if trainer.is_global_zero:
            LOG.info("epoch %d of %d: %s", epoch + 1, trainer.max_epochs, self._words(trainer))

    def _words(self, trainer: pl.Trainer) -> str:
        shown = train_kpi(trainer) | {"val/epe": validation_metrics(trainer).get("val/epe")}
        parts = [f"{name} {value:.4f}" for name, value in shown.items() if value is not None]
        figures = self.measurements.epoch_figures()
        return ", ".join([*parts, *([words(figures)] if figures else [])])

    def on_train_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self.status.running("Training loop complete.")


def train_kpi(trainer: pl.Trainer) -> dict[str, float]:
    """`train_loss`, the mean over the last epoch; empty if a resumed run had no batches of the epoch left."""
    loss = trainer.callback_metrics.get("train_loss_epoch")
    return {} if loss is None else {"train_loss": float(loss)}


def validation_metrics(trainer: pl.Trainer) -> dict[str, float]:
    """The logged metrics of the last validation: `val_loss`, `val/loss`, `val/epe`, ...; empty if there was none."""
    return {name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith("val")}


def validation_kpi(logged: dict[str, float]) -> dict[str, float]:
    """The validation metrics with short names: `val_loss`, `epe`, `bp1`, ..."""
    return {name.removeprefix("val/"): value for name, value in logged.items() if name != "val/loss"}
