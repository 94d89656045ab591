"""Runs that are stopped by a signal or an error: the step is finished, and nothing of it is lost."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time

import pytest
import training_runs
from training_runs import LOWER_LAST, assert_same, checkpoints, load

from stereo_core.training.callbacks import StatusLines


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_finishes_the_step_and_leaves_a_checkpoint(train, tmp_path, status_lines, number, code):
    sent = []

    def stop_once_it_runs():
        while "Train metrics" not in (tmp_path / "status.json").read_text():
            time.sleep(0.05)
        sent.append(time.monotonic())
        os.kill(os.getpid(), number)

    (tmp_path / "status.json").touch()
    killer = threading.Thread(target=stop_once_it_runs, daemon=True)
    killer.start()
    before = signal.getsignal(number)
    assert train(tmp_path, num_epochs=1000, checkpoint_interval=1000, validation_interval=1000)[0] == code
    assert time.monotonic() - sent[0] < 30  # what Kubernetes gives a pod
    assert signal.getsignal(number) == before
    last = status_lines(tmp_path)[-1]
    assert last["status"] == "FAILURE" and "resume_training_checkpoint_path=auto resumes from it" in last["message"]
    (name,) = checkpoints(tmp_path)
    saved = load(tmp_path / "dn_model_latest.pth")
    assert saved["global_step"] >= 2 and name.endswith(f"step_{saved['global_step']:05d}.pth")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_in_the_validation_before_training(train, tmp_path, monkeypatch, status_lines, number, code):
    monkeypatch.setattr(
        StatusLines, "on_validation_batch_start", lambda *_: os.kill(os.getpid(), number), raising=False
    )
    assert train(tmp_path)[0] == code
    assert status_lines(tmp_path)[-1]["message"].startswith("User/System interruption: ")
    assert checkpoints(tmp_path) == []


def test_a_run_stopped_in_a_validation_ends_its_loader_processes(scenes, split, tmp_path, monkeypatch):
    """Python waited half a minute for them."""

    def stop(self, trainer, *_):
        if trainer.global_step:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(StatusLines, "on_validation_batch_start", stop, raising=False)
    one = split(scenes / "list.txt", 1) | {"workers": 1}
    dataset = {"max_disparity": 64, "val_dataset": one}
    dataset["train_dataset"] = one | {"augmentation": {"crop_size": [32, 64]}}
    assert training_runs.start(dataset, {"results_dir": str(tmp_path), "num_epochs": 2}) == 130
    assert multiprocessing.active_children() == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("hook", "step"), [("on_train_batch_end", 2), ("on_validation_batch_start", 4), ("on_train_epoch_end", 4)]
)
def test_resume_after_sigterm(train, tmp_path, monkeypatch, hook, step):
    """SIGTERM within the first epoch's four steps, in the validation after them, or at the epoch's end."""
    keys = {"num_epochs": 3, "checkpoint_interval": 3, "keep_checkpoints": 0}
    with monkeypatch.context() as patched:

        def stop(self, trainer, *_):
            if trainer.global_step == step:
                os.kill(os.getpid(), signal.SIGTERM)

        patched.setattr(StatusLines, hook, stop, raising=False)
        assert train(tmp_path, batch_size=1, **keys)[0] == 143
    (name,) = checkpoints(tmp_path)
    assert name == f"model_epoch_000_step_{step:05d}.pth"
    latest = str(tmp_path / "dn_model_latest.pth")
    assert train(tmp_path, batch_size=1, resume_training_checkpoint_path=latest, **keys)[0] == 0
    assert {name, "model_epoch_002_step_00012.pth"} <= set(checkpoints(tmp_path))
    saved = load(tmp_path / "dn_model_latest.pth")
    assert (saved["epoch"], saved["global_step"]) == (2, 12)
    assert saved["optimizer_states"][0]["state"][0]["step"] == 12


@pytest.mark.slow
def test_sigterm_within_a_step_of_several_batches(train, tmp_path, monkeypatch):
    """The step is finished, not cut: half of its gradients would be lost."""
    keys = {"num_epochs": 1, "accumulate": 2, "ema_decay": 0.5}
    assert train(tmp_path / "whole", batch_size=1, **keys)[0] == 0
    with monkeypatch.context() as patched:

        def stop(self, trainer, module, outputs, batch, batch_index):
            if batch_index == 0:
                os.kill(os.getpid(), signal.SIGTERM)

        patched.setattr(StatusLines, "on_train_batch_end", stop, raising=False)
        assert train(tmp_path / "run", batch_size=1, **keys)[0] == 143
    assert checkpoints(tmp_path / "run") == ["model_epoch_000_step_00001.pth"]
    assert train(tmp_path / "run", batch_size=1, **keys, resume_training_checkpoint_path="auto")[0] == 0
    assert_same(*(load(tmp_path / name / "dn_model_latest.pth") for name in ("run", "whole")))


def test_sigterm_to_all_processes_at_once(scenes, split, tmp_path, monkeypatch):
    """As timeout(1) and Slurm send it: loader processes go on until the step, here of three batches, is at its end."""

    def stop_all(self, trainer, *_):
        if not self.stopped:
            for child in multiprocessing.active_children():
                os.kill(child.pid, signal.SIGTERM)
            time.sleep(0.3)
            os.kill(os.getpid(), signal.SIGTERM)
            self.stopped = True

    monkeypatch.setattr(StatusLines, "stopped", False, raising=False)
    monkeypatch.setattr(StatusLines, "on_train_batch_start", stop_all, raising=False)
    dataset = {"max_disparity": 64, "train_dataset": split(scenes / "list.txt", 1) | {"workers": 1}}
    dataset["train_dataset"]["augmentation"] = {"crop_size": [32, 64]}
    keys = {"results_dir": str(tmp_path), "num_epochs": 20, "accumulate": 3}
    assert training_runs.start(dataset, keys) == 143
    assert checkpoints(tmp_path) == ["model_epoch_000_step_00001.pth"]


@pytest.mark.slow
def test_a_run_stopped_in_every_step_is_the_run_that_never_stopped(train, tmp_path, monkeypatch):
    """A resumed run is resumed again and again; two batches a step, a validation after every second epoch, averages."""
    keys = {"num_epochs": 3, "accumulate": 2, "ema_decay": 0.7, "validation_interval": 2, "keep_checkpoints": 0}
    keys |= {"checkpoint_interval": 1, "checkpoint_interval_unit": "step"}
    assert train(tmp_path / "whole", batch_size=1, **keys)[0] == 0
    with monkeypatch.context() as patched:
        patched.setattr(
            StatusLines, "on_train_batch_start", lambda *_: os.kill(os.getpid(), signal.SIGTERM), raising=False
        )
        for _ in range(6):
            assert train(tmp_path / "run", batch_size=1, **keys, resume_training_checkpoint_path="auto")[0] == 143
    code, outcome = train(tmp_path / "run", batch_size=1, **keys, resume_training_checkpoint_path="auto")
    assert code == 0 and "3 epochs, 6 steps" in outcome.message
    assert checkpoints(tmp_path / "run") == checkpoints(tmp_path / "whole")
    for name in checkpoints(tmp_path / "whole"):
        assert_same(load(tmp_path / "run" / name), load(tmp_path / "whole" / name))
    assert os.readlink(tmp_path / "run" / "dn_model_best.pth") == os.readlink(tmp_path / "whole" / "dn_model_best.pth")


@pytest.mark.slow
@pytest.mark.parametrize("hook", ["on_train_batch_end", "on_validation_batch_start"])
def test_whatever_ends_a_run_its_last_step_is_there(finished, train, tmp_path, monkeypatch, hook):
    """A tracker that can not be reached, say, right after a step, or a validation that fails after the epoch's last."""
    keys = {"num_epochs": 2, "checkpoint_interval": 2, "optim": LOWER_LAST}  # as `finished` had them

    def fail(self, trainer, *_):
        if trainer.global_step == 2:
            raise ConnectionError("the tracker is gone")

    with monkeypatch.context() as patched:
        patched.setattr(StatusLines, hook, fail, raising=False)
        assert train(tmp_path, **keys)[0] == 1
    assert checkpoints(tmp_path) == ["model_epoch_000_step_00002.pth"]
    assert train(tmp_path, **keys, resume_training_checkpoint_path="auto")[0] == 0
    assert_same(*(load(folder / "dn_model_latest.pth") for folder in (tmp_path, finished[0])))
