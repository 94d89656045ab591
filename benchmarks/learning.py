"""Does it learn? Two trainings from scratch, random backbones, through `train` and `evaluate` themselves.

python benchmarks/learning.py --data DATA [--minutes 8.5] [--only memorise scenes] [key=value ...]
    `memorise` learns the two FlyingThings3D pairs below DATA/SceneFlow (their upper 512 rows), unaugmented, by heart;
    `scenes` learns 200 synthetic scenes and is measured on 20 others. OpenCV's StereoSGBM sees the same pairs in the
    same run. Both are rehearsed first, a few steps with everything that comes after them; from the time that took
    follows the number of epochs that fits.
    The last weights count, not the best by validation: that would choose with the pairs that are measured on.
    key=value changes the spec of both trainings, --memorise and --scenes that of one.

python benchmarks/learning.py --plot
    Draws curves.png anew from the results.json of such a run.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import math
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import sgbm
import torch
from common import BEGIN, CORES, GPU, device, network_options, peak_gib, say
from learning_results import curves_of, plot, save, show, status
from learning_tasks import Task, do, evaluate_tree, prepared, quietly, test_pairs, train_spec

from stereo_core.models.files import read_sidecar
from stereo_core.spec.choice import LATEST

VALIDATIONS = 3  # in a training, for its curve
REHEARSED_STEPS = 6  # an epoch of the rehearsal; its second one is timed


def learn(asked: argparse.Namespace) -> None:
    """Prepare, rehearse, then train and measure one after the other; the table comes after each."""
    end = BEGIN + 60 * asked.minutes
    tasks = prepared(asked)
    say(f"{device()}, {CORES} cores, torch {torch.__version__}; {asked.preset or asked.encoder} from scratch")
    for task in tasks:
        task.row.update(data=task.name, network=asked.preset or asked.encoder, sgbm=sgbm_of(asked, task))
        save(asked, tasks)
        say(f"{task.name}: StereoSGBM {json.dumps(task.row['sgbm'])}")
    for task in tasks:
        rehearse(asked, task)
        save(asked, tasks)
    for task in tasks:
        train(asked, task, task.share * (end - time.monotonic()), lambda: save(asked, tasks))
        evaluated = {"": task.test} | ({"_visible": task.visible} if task.visible else {})
        for suffix, pairs in evaluated.items():
            metrics = evaluate(asked, task, pairs, asked.work / task.name)
            task.row.update({f"epe{suffix}": metrics["epe"], f"d1{suffix}": metrics["d1"]})
            save(asked, tasks)
        task.row["curves"]["epe"].append((task.row["steps"], task.row["epe"]))
        save(asked, tasks)
        show(tasks)
        plot(asked.out)
    say("done")


def sgbm_of(asked: argparse.Namespace, task: Task) -> dict[str, float]:
    """StereoSGBM's figures on the test pairs."""
    visible = test_pairs(asked, task, task.visible) if task.visible else None
    limit = train_spec(asked, task, asked.work, 1, 1).dataset.max_disparity
    return sgbm.figures(test_pairs(asked, task, task.test), limit, visible)


def rehearse(asked: argparse.Namespace, task: Task) -> None:
    """Three epochs of a few steps, a validation, a checkpoint and its evaluation: that they work, and their time."""
    folder = asked.work / f"rehearsal_{task.name}"
    shutil.rmtree(folder, ignore_errors=True)
    lines = task.train.read_text().splitlines(keepends=True)
    short = task.train.with_name("rehearsal.txt")
    batch = train_spec(asked, task, folder, 3, 3).dataset.train_dataset.batch_size
    count = REHEARSED_STEPS * batch
    short.write_text("".join((lines * math.ceil(count / len(lines)))[:count]))
    if GPU:
        torch.cuda.reset_peak_memory_stats()
    begin = time.monotonic()
    run_training(train_spec(asked, task, folder, 3, 3, short))
    whole = time.monotonic() - begin
    task.row["peak_gib"] = peak_gib()
    epochs = [line for line in status(folder) if "time_per_step" in line]
    hours, minutes, seconds = epochs[1]["time_per_step"].split(":")  # the third has the validation in it
    task.step_seconds = timedelta(hours=int(hours), minutes=int(minutes), seconds=float(seconds)).total_seconds()
    task.other_seconds = max(0.0, whole - 3 * REHEARSED_STEPS * task.step_seconds)
    begin = time.monotonic()
    evaluate(asked, task, task.test, folder)
    task.evaluate_seconds = (time.monotonic() - begin) * (2 if task.visible else 1)
    task.row["seconds_a_step"] = task.step_seconds
    say(
        f"{task.name} rehearsed: {task.step_seconds:.3f} s a step of {batch} pairs, {task.other_seconds:.0f} s around "
        f"the steps, {task.evaluate_seconds:.0f} s for evaluation, peak {task.row['peak_gib']:.1f} GiB"
    )
    shutil.rmtree(folder)


def train(asked: argparse.Namespace, task: Task, seconds: float, save_row) -> None:
    """Train for as many epochs as fit into the seconds, evaluation included; stopped by SIGTERM where they did not."""
    folder = asked.work / task.name
    shutil.rmtree(folder, ignore_errors=True)
    pairs = len(task.train.read_text().splitlines())
    an_epoch = pairs // train_spec(asked, task, folder, 1, 1).dataset.train_dataset.batch_size * task.step_seconds
    around = task.other_seconds * (1 + (VALIDATIONS - 1) / 2) + task.evaluate_seconds
    epochs = asked.epochs or max(1, int((seconds - around) / (1.05 * an_epoch)))
    interval = math.ceil(epochs / VALIDATIONS)
    spec = train_spec(asked, task, folder, epochs, interval)
    say(f"{task.name}: {epochs} epochs, about {around + epochs * an_epoch:.0f} of {seconds:.0f} s with the evaluation")
    begin = time.monotonic()

    def note() -> None:
        curves = task.row["curves"] = curves_of(folder)
        task.row["seconds"] = time.monotonic() - begin
        task.row["epe_before"] = curves["epe"][0][1] if curves["epe"] else None
        last = {name: f"{curve[-1][1]:.3f} at step {curve[-1][0]}" for name, curve in curves.items() if curve}
        say(f"{task.name}: {last}")
        save_row()

    limit = None if asked.epochs else seconds - task.evaluate_seconds
    with followed(folder, note), stopped_after(limit) as stopped:
        run_training(spec, stopped)
    task.row["stopped_by_clock"] = stopped.is_set()
    note()
    task.row["steps"] = read_sidecar(folder / LATEST)["global_step"]


def run_training(spec, stopped: threading.Event | None = None) -> None:
    """`train`, which may end by SIGTERM, its checkpoint written, where our own clock has `stopped` it."""
    code = quietly("train", spec)
    gc.collect()
    if GPU:
        torch.cuda.empty_cache()
    if code and not (code == 143 and stopped and stopped.is_set()):
        sys.exit(f"train: exit code {code}")


@contextlib.contextmanager
def stopped_after(seconds: float | None) -> Iterator[threading.Event]:
    """Send this process SIGTERM when the time is over: `train` ends its step, writes a checkpoint and returns 143."""
    stopped = threading.Event()

    def stop() -> None:
        stopped.set()
        os.kill(os.getpid(), signal.SIGTERM)

    timer = threading.Timer(max(seconds or 0, 1), stop)
    if seconds is not None:
        timer.start()
    try:
        yield stopped
    finally:
        timer.cancel()


@contextlib.contextmanager
def followed(folder: Path, note) -> Iterator[None]:
    """Call `note` whenever a line came to the folder's status.json."""
    over = threading.Event()

    def follow() -> None:
        seen = 0
        while not over.wait(1):
            lines = sum("kpi" in line for line in status(folder))
            if lines > seen:
                seen = lines
                note()

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def evaluate(asked: argparse.Namespace, task: Task, pairs: Path, trained: Path) -> dict[str, float]:
    """What `evaluate` says of a training's last checkpoint, in float32."""
    folder = trained / f"evaluate_{pairs.parent.name}"
    do("evaluate", evaluate_tree(asked, task, pairs, folder, trained / LATEST))
    return json.loads((folder / "results.json").read_text())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    network_options(parser)
    parser.add_argument("--out", type=Path, default=Path("runs/learning"), help="results and curves")
    parser.add_argument("--plot", action="store_true", help="only draw the curves of what is in --out")
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="has SceneFlow/FlyingThings3D")
    parser.add_argument("--work", type=Path, default=Path("runs/learning/work"), help="scenes and checkpoints")
    parser.add_argument("--only", nargs="+", choices=("memorise", "scenes"), default=["memorise", "scenes"])
    parser.add_argument("--minutes", type=float, default=8.5, help="all in all")
    parser.add_argument("--epochs", type=int, help="of each training, whatever the time it takes")
    parser.add_argument("--train-scenes", type=int, default=200)
    parser.add_argument("--held-out-scenes", type=int, default=20)
    parser.add_argument("--scene-size", type=int, nargs=2, default=[384, 768], metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--scene-disparity", type=int, default=128, help="px")
    parser.add_argument("--memorise", nargs="+", default=[], metavar="key=value")
    parser.add_argument("--scenes", nargs="+", default=[], metavar="key=value")
    parser.add_argument("overrides", nargs="*", default=[], metavar="key=value")
    asked = parser.parse_args()
    if asked.plot:
        plot(asked.out)
    else:
        learn(asked)


if __name__ == "__main__":
    main()
