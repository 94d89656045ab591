"""Progress of a training run: a bar on a terminal, log lines elsewhere."""

from __future__ import annotations

import contextlib
import logging
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytorch_lightning as pl
from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

from stereo_core.progress import SECONDS, heartbeat, since
from stereo_core.training.measurements import Measurements

SECONDS_BETWEEN = 0.5  # between reads of the loss for the bar, each of which waits for the GPU


class _WithFigures(Progress):
    """A progress bar with a line of figures below."""

    figures = ""

    def get_renderables(self) -> Iterator[RenderableType]:
        yield from super().get_renderables()
        yield Text(self.figures)


class ProgressBar(pl.Callback):
    """On a terminal, a bar with epoch, step, loss, the last validation's EPE and step, and the figures of Measurements.

    Only the first rank shows it. Log lines appear above it. If `console` is no terminal, the log reports the same every
    stereo_core.progress.SECONDS.

    Args:
        measurements: the run's measurements.
        console: a rich console; by default on stderr.
    """

    def __init__(self, measurements: Measurements, console: Console | None = None) -> None:
        self.measurements = measurements
        self.console = console or Console(stderr=True)
        self.progress: _WithFigures | None = None
        self.between = SECONDS_BETWEEN if self.console.is_terminal else SECONDS / 3
        self.what, self.done, self.total, self.figures = "", 0, 0, ""
        self.loss = self.epe = ""
        self.looked = self.begun = 0.0
        self.beat = contextlib.ExitStack()
        self.handlers: list[logging.StreamHandler[Any]] = []

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self.on_train_epoch_start(trainer, module)  # Lightning does not call it when it resumes within an epoch

    def on_train_epoch_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self._begin(trainer, f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}", trainer.num_training_batches)

    def on_train_batch_end(
        self, trainer: pl.Trainer, module: Any, outputs: Any, batch: dict[str, Any], batch_index: int
    ) -> None:
        if not trainer.is_global_zero:
            return
        last = batch_index + 1 == trainer.num_training_batches
        if last or time.monotonic() - self.looked > self.between:
            self.looked = time.monotonic()
            loss = float(outputs["loss"]) * trainer.accumulate_grad_batches
            self.loss = f"loss {loss:.4f}" if loss else "no loss: no valid ground truth in this batch"
        self._show(batch_index + 1, trainer.global_step)

    def on_validation_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self._begin(trainer, "validation", sum(trainer.num_val_batches))

    def on_validation_batch_end(self, trainer: pl.Trainer, module: Any, outputs: Any, batch: Any, index: int) -> None:
        self._show(index + 1, trainer.global_step)

    def on_validation_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        epe = trainer.callback_metrics.get("val/epe")
        self.epe = "" if epe is None else f"val/epe {float(epe):.4f} px after step {trainer.global_step}"

    def on_exception(self, trainer: pl.Trainer, module: pl.LightningModule, exception: BaseException) -> None:
        self._stop()

    def teardown(self, trainer: pl.Trainer, module: pl.LightningModule, stage: str) -> None:
        self._stop()

    def _begin(self, trainer: pl.Trainer, what: str, total: int) -> None:
        if not trainer.is_global_zero:
            return
        if not self.what:
            self.beat.enter_context(heartbeat(self._text))
        self.what, self.done, self.total, self.begun = what, 0, total, time.monotonic()
        if self.progress is not None:
            self.progress.reset(self.task, description=what, total=total)
        elif self.console.is_terminal:
            self._start(what, total)

    def _text(self) -> str:
        if self.progress is not None:
            return ""
        where = f"{self.what}: {self.done} of {self.total} batches in {since(self.begun)}"
        return " | ".join(filter(None, [where, self.figures]))

    def _start(self, what: str, total: int) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self.progress = _WithFigures(*columns, console=self.console, redirect_stdout=False)
        self.task = self.progress.add_task(what, total=total)
        self.handlers = list(_handlers_of(sys.stderr))
        self.progress.start()  # from now on sys.stderr writes above the bar
        for handler in self.handlers:
            handler.setStream(sys.stderr)

    def _show(self, done: int, step: int) -> None:
        self.done = done
        parts = [f"step {step}", self.loss, self.epe, *_short(self.measurements.figures())]
        self.figures = " | ".join(filter(None, parts))
        if self.progress is not None:
            self.progress.figures = self.figures
            self.progress.update(self.task, completed=done)

    def _stop(self) -> None:
        self.beat.close()
        self.what = ""
        if self.progress is None:
            return
        self.progress.stop()
        self.progress = None
        for handler in self.handlers:
            handler.setStream(sys.stderr)


def _handlers_of(stream: Any) -> Iterator[logging.StreamHandler[Any]]:
    for handler in logging.getLogger().handlers:
        if isinstance(handler, logging.StreamHandler) and handler.stream is stream:
            yield handler


def _short(figures: dict[str, float]) -> list[str]:
    if not figures:
        return []
    return [
        f"{figures['step_time']:.3g} s/step",
        f"{figures['pairs_per_second']:.3g} pairs/s",
        f"data wait {figures['data_wait']:.0%}",
        f"{figures['memory_gib']:.2f} GiB",
    ]
