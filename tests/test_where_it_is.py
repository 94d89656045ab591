"""A long action says where it is, also where there is no terminal."""

from __future__ import annotations

import logging
import threading
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from stereo_core import progress, storage
from stereo_core.run.outcome import Outcome
from stereo_core.run.perform import perform
from stereo_core.spec import load_spec


class Heard(logging.Handler):
    """Log lines; `wait` is for one that holds a text."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []
        self.new = threading.Condition()

    def emit(self, record: logging.LogRecord) -> None:
        with self.new:
            self.lines.append(record.getMessage())
            self.new.notify_all()

    def wait(self, text: str) -> None:
        with self.new:
            assert self.new.wait_for(lambda: any(text in line for line in self.lines), 20), self.lines


@pytest.fixture
def heard(monkeypatch):
    """What is said, a hundred times a second."""
    monkeypatch.setattr(progress, "SECONDS", 0.01)
    handler, root = Heard(), logging.getLogger()
    before = root.level
    root.setLevel(logging.INFO)
    root.addHandler(handler)
    yield handler
    root.removeHandler(handler)
    root.setLevel(before)


def test_an_action_that_says_nothing_tells_its_last_words(heard, tmp_path, monkeypatch):
    def work(spec, status):
        status.running("Tracing on cpu")
        heard.wait("Tracing on cpu (0:00:0")
        return Outcome("done")

    monkeypatch.setattr("stereo_core.run.perform._action", lambda verb: work)
    spec = load_spec("synthesize", None, [f"results_dir={tmp_path}"])
    assert perform("synthesize", spec) == 0


def test_evaluate_and_inference_count_their_batches(heard):
    from stereo_core.actions.predict.predictor import predictions

    def slow(left, right):
        heard.wait("predicting: 1 of 2" if left.mean() else "predicting: 0 of 2")
        return left[:, 0]

    def batch(number):
        image = torch.full((3, 4, 4), float(number))
        return [{"index": number, "left": image, "right": image, "path": "x", "rel": "x", "scale": 1.0}]

    predictor = SimpleNamespace(predict=slow, device="cpu")
    assert len(list(predictions(predictor, [batch(0), batch(1)], 2))) == 2


def test_transfers_tell_megabytes(heard):
    with storage.progress("s3://bucket/weights.pth", 40 * 2**20) as advance:
        advance(21_000_000)
        heard.wait("weights.pth: 21 of 42 MB")


def test_convert_tells_what_it_lists(heard, tmp_path, monkeypatch):
    from stereo_core.data.trees import Tree

    find = Tree.find

    def slow(tree, *arguments):
        heard.wait(f"listing {tmp_path}: 0 files so far")
        return find(tree, *arguments)

    monkeypatch.setattr(Tree, "find", slow)
    (tmp_path / "im0.png").touch()
    (tmp_path / "im1.png").touch()
    keys = [f"data_root={tmp_path}", "image_extension=png", "image_dir_pattern=[im0]", "right_dir_pattern=[im1]"]
    assert perform("convert", load_spec("convert", None, [*keys, f"results_dir={tmp_path}/lists"])) == 0


def test_the_inner_work_speaks_for_the_outer(heard):
    with progress.heartbeat(lambda: "outer"), progress.heartbeat(lambda: "inner"):
        heard.wait("inner")
        heard.lines.clear()
        heard.wait("inner")
        assert "outer" not in heard.lines
        with progress.bars() as bars:
            bars.add_task("third", total=None)
            heard.wait("third; 0:00:0")
    with progress.heartbeat(lambda: "again"):
        heard.wait("again")


def test_a_loop_is_counted_off_a_terminal_too(heard):
    with progress.bars() as bars:
        for step in bars.track(range(3), description="looping"):
            heard.wait(f"looping: {step} of 3;")


def test_on_a_terminal_bars_speak_and_no_lines(heard, monkeypatch, terminal):
    monkeypatch.setattr("sys.stderr", terminal)
    with progress.heartbeat(lambda: "outer"), progress.bars() as bars:
        task = bars.add_task("shown", total=2)
        bars.advance(task)
        bars.refresh()
        before = len(heard.lines)  # the outer one may still have spoken
        threading.Event().wait(0.1)
        assert "shown" in terminal.getvalue() and len(heard.lines) <= before + 1


def test_a_training_tells_epoch_batch_and_figures(heard):
    import pytorch_lightning as pl
    from torch.utils.data import DataLoader

    from stereo_core.training.measurements import Measurements
    from stereo_core.training.progress import ProgressBar

    class Module(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(1))

        def training_step(self, batch, index):
            heard.wait(f"epoch 1/1: {index} of 2 batches")
            return self.weight.sum() + 4

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    bar = ProgressBar(Measurements())
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    trainer = pl.Trainer(accelerator="cpu", max_epochs=1, callbacks=[bar], **quiet)
    trainer.fit(Module(), DataLoader(np.zeros((2, 1), np.float32)))
    assert any("epoch 1/1: 1 of 2 batches" in line and "step 1 | loss 4.0000" in line for line in heard.lines)
