"""What a run says of its speed is true, and the bar shows it."""

from __future__ import annotations

import io
import logging
import re
import sys
from types import SimpleNamespace

import pytest
import pytorch_lightning as pl
import torch
from rich.console import Console
from torch.utils.data import DataLoader

import stereo_core.data.loaders
import stereo_core.training.measurements
from stereo_core.data.loaders import StereoLoader
from stereo_core.training.measurements import Measurements
from stereo_core.training.progress import ProgressBar


class Clock:
    """Time that passes only where a test says so."""

    now = 0.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    for module in (stereo_core.data.loaders, stereo_core.training.measurements):
        monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=clock.monotonic))
    return clock


class Items(torch.utils.data.Dataset):
    """Training items that take 1.5 s each to read."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> dict:
        self.clock.now += 1.5
        return {"left": torch.zeros(3, 4, 4), "skipped": 0, "unreadable": ""}


class Module(pl.LightningModule):
    """Steps of 1 s with loss 4, validations of 100 s with val/epe 7."""

    def __init__(self, clock: Clock, fails: bool = False, loss: float = 4.0) -> None:
        super().__init__()
        self.clock, self.fails, self.loss = clock, fails, loss
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def training_step(self, batch, index):
        self.clock.now += 1
        if self.fails:
            raise ValueError("lost")
        logging.getLogger().warning("said in step %d", index)
        return self.loss + 0 * self.weight.sum()

    def validation_step(self, batch, index):
        self.clock.now += 100
        self.log("val/epe", 7.0)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(clock: Clock, callbacks: list[pl.Callback], fails: bool = False, loss: float = 4.0, **options) -> None:
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = pl.Trainer(
        accelerator="cpu", num_sanity_val_steps=0, enable_model_summary=False, callbacks=callbacks, **quiet, **options
    )
    trainer.fit(Module(clock, fails, loss), StereoLoader(Items(clock), batch_size=2), DataLoader([0, 1]))


def test_figures(clock, monkeypatch):
    """Two batches of two pairs a step: each is waited for 3 s and takes 1 s; validation counts nowhere."""
    monkeypatch.setattr("stereo_core.training.measurements._memory", lambda: 3 * 2**29)
    measurements = Measurements()
    fit(clock, [measurements], max_epochs=2, accumulate_grad_batches=2)
    expected = {"step_time": 8.0, "pairs_per_second": 0.5, "data_wait": 0.75, "memory_gib": 1.5}
    assert measurements.epoch_figures() == measurements.figures() == expected
    assert measurements.epoch.steps == 2  # of the last epoch alone
    assert sum(work.steps for work in measurements.recent) == 4  # of both


@pytest.mark.skipif(torch.cuda.is_available(), reason="there the memory of the GPU is shown")
def test_memory_is_that_of_this_process(clock):
    measurements = Measurements()
    ballast = torch.ones(2**26, dtype=torch.float32)  # 0.25 GiB, all of it touched
    fit(clock, [measurements], max_epochs=1)
    assert 0.25 < measurements.figures()["memory_gib"] < 64 and ballast[-1] == 1


class Redraw(pl.Callback):
    """Draws the bar after every batch; by itself it is drawn a few times a second."""

    def __init__(self, bar: ProgressBar) -> None:
        self.bar = bar

    def on_train_batch_end(self, *_) -> None:
        if self.bar.progress is not None:
            self.bar.progress.refresh()


def bar_of(clock: Clock, is_terminal: bool, **options) -> str:
    console = Console(file=io.StringIO(), force_terminal=is_terminal, width=200)
    measurements = Measurements()
    bar = ProgressBar(measurements, console)
    fit(clock, [measurements, bar, Redraw(bar)], max_epochs=2, **options)
    return console.file.getvalue()


def test_the_loss_is_the_whole_one_when_gradients_are_accumulated(clock):
    assert "| loss 4.0000 |" in bar_of(clock, True, accumulate_grad_batches=2)


def test_a_batch_without_ground_truth_has_no_loss(clock):
    """0.0000 read as if the network were perfect."""
    assert "| no loss: no valid ground truth in this batch |" in bar_of(clock, True, loss=0.0)


def test_no_bar_where_there_is_no_terminal(clock):
    assert bar_of(clock, False) == ""


def test_the_bar_shows_all_and_log_lines_stand_above_it(clock, monkeypatch):
    stderr = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stderr)
    handler = logging.StreamHandler()
    handler.setLevel(logging.WARNING)
    logging.getLogger().addHandler(handler)
    try:
        text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", bar_of(clock, True))
        assert stderr.getvalue() == "" and "said in step 3\n" in text
        logging.getLogger().warning("after")
        assert stderr.getvalue() == "after\n"
    finally:
        logging.getLogger().removeHandler(handler)
    figures = "4 s/step | 0.5 pairs/s | data wait 75% | "
    drawn = text.split("\n\r")
    first, seventh, last = (next(part for part in drawn if f"step {n} |" in part) for n in (1, 7, 8))
    assert "epoch 1/2" in first and "1/4" in first
    assert "step 1 | loss 4.0000 | " + figures in first  # no validation yet
    assert "epoch 2/2" in seventh and "3/4" in seventh
    assert "step 7 | loss 4.0000 | val/epe 7.0000 px after step 4 | " + figures in seventh
    assert re.search(r"data wait 75% \| \d+\.\d\d GiB", last)
    assert "validation" in drawn[-1]


def test_an_error_takes_the_bar_away(clock):
    before = sys.stderr
    with pytest.raises(ValueError, match="lost"):
        bar_of(clock, True, fails=True)
    assert sys.stderr is before
