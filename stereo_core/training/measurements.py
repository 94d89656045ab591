"""Speed and memory of a training run, measured in one place for all outputs."""

from __future__ import annotations

import resource
import sys
import time
from collections import deque
from collections.abc import Iterable
from typing import Any, NamedTuple

import pytorch_lightning as pl
import torch

RECENT = 20  # batches


class Work(NamedTuple):
    """Time and amount of work of some batches."""

    seconds: float = 0.0
    waited: float = 0.0  # seconds spent waiting for the loader
    pairs: int = 0
    steps: int = 0  # optimizer steps


def total(works: Iterable[Work]) -> Work:
    return Work(*map(sum, zip(Work(), *works, strict=True)))


class Measurements(pl.Callback):
    """Four figures of the recent batches and of the epoch, measured without synchronising with the GPU.

    step_time: seconds per optimizer step, from one batch's end to the next one's. It includes pictures and checkpoints
        made after a batch, but not validation.
    pairs_per_second: of all ranks.
    data_wait: share (0..1) of the time spent waiting for this rank's loader.
    memory_gib: peak memory so far, in GiB: of this rank's tensors on its GPU; on a CPU, resident in this process.

    The loggers get the figures of the last RECENT batches every `train.log_every_n_steps` steps, and at an epoch's end
    those of the whole epoch, with the suffix `_epoch`, and the learning rate. It must come before all callbacks that
    use it.
    """

    def __init__(self) -> None:
        self.recent: deque[Work] = deque(maxlen=RECENT)
        self.epoch = Work()

    def figures(self) -> dict[str, float]:
        """The figures of the last RECENT batches; empty before the first."""
        return _figures(total(self.recent))

    def epoch_figures(self) -> dict[str, float]:
        """The figures of the epoch, or of a resumed run's part of it; empty if that had no batches."""
        return _figures(self.epoch)

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self.step = trainer.global_step
        self.on_train_epoch_start(trainer, module)  # Lightning does not call it when it resumes within an epoch

    def on_train_epoch_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self.epoch = Work()
        self._look(trainer)

    def on_train_batch_end(
        self, trainer: pl.Trainer, module: Any, outputs: Any, batch: dict[str, Any], batch_index: int
    ) -> None:
        before, waited_before = self.now, self.waited
        stepped, self.step = trainer.global_step != self.step, trainer.global_step
        self._look(trainer)
        pairs = len(batch["left"]) * trainer.world_size
        self.recent.append(Work(self.now - before, self.waited - waited_before, pairs, int(stepped)))
        self.epoch = total([self.epoch, self.recent[-1]])
        if stepped and trainer.global_step % trainer.log_every_n_steps == 0:
            _log(trainer, self.figures())

    def on_train_epoch_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        figures = {f"{name}_epoch": value for name, value in self.epoch_figures().items()}
        lr = trainer.callback_metrics.get("lr")  # logged every log_every_n_steps steps, perhaps never
        _log(trainer, figures | ({} if lr is None else {"lr": float(lr)}))

    def _look(self, trainer: pl.Trainer) -> None:
        self.now, self.waited = time.monotonic(), trainer.train_dataloader.waited


def words(figures: dict[str, float]) -> str:
    """The figures as a text."""
    return (
        f"{figures['step_time']:.3g} s per step, {figures['pairs_per_second']:.3g} pairs per second, "
        f"{figures['data_wait']:.0%} of the time waiting for data, {figures['memory_gib']:.2f} GiB of memory"
    )


def _figures(work: Work) -> dict[str, float]:
    if not work.pairs:
        return {}
    return {
        "step_time": work.seconds / max(1, work.steps),
        "pairs_per_second": work.pairs / work.seconds,
        "data_wait": work.waited / work.seconds,
        "memory_gib": _memory() / 2**30,
    }


def _memory() -> int:
    """Peak bytes of tensors on the GPU; without a GPU, the peak resident size of this process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _log(trainer: pl.Trainer, figures: dict[str, float]) -> None:
    """Send figures to every logger; only those of the first rank write them."""
    for logger in trainer.loggers:
        logger.log_metrics(figures, step=trainer.global_step)
