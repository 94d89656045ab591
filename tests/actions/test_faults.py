"""A training run that is killed again and again ends with the weights of one that was left alone."""

from __future__ import annotations

import json
import multiprocessing
import random
import sys
import time

import pytest
from training_runs import assert_same, load, start

KILLS, TERMINATIONS = 10, 3


def _child(dataset: dict, settings: dict) -> None:
    sys.exit(start(dataset, settings))


@pytest.fixture(scope="module")
def launch(scenes, split):
    """folder -> a process of its own that trains in it: ten steps of two batches, a checkpoint after every step."""
    context = multiprocessing.get_context("forkserver")
    # Children are forked from a process that has imported torch but never used it: a start costs no import.
    context.set_forkserver_preload(["training_runs", "stereo_core.actions.train"])
    dataset = {"max_disparity": 64, "train_dataset": split(scenes / "list.txt", 1)}
    dataset["train_dataset"] |= {"workers": 1, "augmentation": {"crop_size": [32, 64]}}
    dataset["val_dataset"] = split(scenes / "list.txt", 2)
    settings = {"num_epochs": 5, "accumulate": 2, "ema_decay": 0.7, "optim": {"lr": 1e-3, "warmup_steps": 3}}
    settings |= {"checkpoint_interval": 1, "checkpoint_interval_unit": "step", "validation_interval": 2}

    def process(folder):
        keys = {"results_dir": str(folder), "resume_training_checkpoint_path": "auto"}
        child = context.Process(target=_child, args=(dataset, settings | keys))
        child.start()
        return child

    return process


def _lines(folder) -> list[dict]:
    path = folder / "status.json"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def _wait_for_training(child, folder, known: int) -> None:
    """Until the child has begun its training loop, or ended."""
    while child.is_alive() and "Starting Training Loop." not in [x["message"] for x in _lines(folder)[known:]]:
        time.sleep(0.01)


def _step(folder) -> int:
    latest = folder / "dn_model_latest.pth"
    return int(latest.resolve().stem.rpartition("_")[2]) if latest.is_symlink() else 0


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_killed_runs_end_like_the_undisturbed_one(launch, tmp_path):
    """SIGKILL at random moments of start-up, steps, validation and writing; SIGTERM within the training loop."""
    began = time.monotonic()
    child = launch(tmp_path / "whole")
    _wait_for_training(child, tmp_path / "whole", 0)
    start_up = time.monotonic() - began
    child.join()
    assert child.exitcode == 0
    step_time = (time.monotonic() - began - start_up) / 10
    whole = load(tmp_path / "whole" / "dn_model_latest.pth")
    assert whole["global_step"] == 10 and whole["ema_state_dict"]

    moments = random.Random(4)
    signals = ["kill"] * KILLS + ["terminate"] * TERMINATIONS
    moments.shuffle(signals)
    sent, runs, resumed = 0, 0, 0
    while sent < len(signals):
        folder = tmp_path / f"run{runs}"
        runs += 1
        finished = False
        while not finished:
            before, known = _step(folder), len(_lines(folder))
            child = launch(folder)
            if sent < len(signals):
                if signals[sent] == "kill":
                    child.join(moments.uniform(0, start_up + 4 * step_time))
                else:
                    _wait_for_training(child, folder, known)
                    child.join(moments.uniform(0, 2 * step_time))
                getattr(child, signals[sent])()
            child.join()
            finished = child.exitcode == 0
            assert finished or child.exitcode == (-9 if signals[sent] == "kill" else 143)
            assert finished or signals[sent] == "kill" or _step(folder) > before
            sent += not finished
            assert _step(folder) >= before
        assert_same(load(folder / "dn_model_latest.pth"), whole)
        resumed += sum(x["message"].startswith("Resuming training from checkpoint") for x in _lines(folder))
    assert resumed >= TERMINATIONS  # every one of these left a checkpoint to go on from
