"""Does the network learn? Run two trainings from scratch, with random backbones, by `train` and `evaluate`.

python benchmarks/learning.py --data DATA [--minutes 8.5] [--only memorise scenes] [key=value ...]
    `memorise` memorises the two FlyingThings3D pairs below DATA/SceneFlow (their upper 512 rows), without augmentation;
    `scenes` learns 200 synthetic scenes and is evaluated on 20 others. OpenCV's StereoSGBM runs on the same pairs. A
    rehearsal of a few steps and everything after them comes first; its time determines the number of epochs.
    The last weights are evaluated, not the best by validation: that would select by the test pairs.
    key=value changes the spec of both trainings, --memorise and --scenes that of one.

python benchmarks/learning.py --plot
    Redraws curves.png from the results.json of such a run.
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

VALIDATIONS = 3  # per training, for its curve
REHEARSED_STEPS = 6  # steps per epoch of the rehearsal; its second epoch is timed


def learn(args: argparse.Namespace) -> None:
    """Prepare and rehearse, then train and measure one task after the other; print the table after each."""
    end = BEGIN + 60 * args.minutes
    tasks = prepared(args)
    say(f"{device()}, {CORES} cores, torch {torch.__version__}; {args.preset or args.encoder} from scratch")
    for task in tasks:
        task.row.update(data=task.name, network=args.preset or args.encoder, sgbm=sgbm_of(args, task))
        save(args, tasks)
        say(f"{task.name}: StereoSGBM {json.dumps(task.row['sgbm'])}")
    for task in tasks:
        rehearse(args, task)
        save(args, tasks)
    for task in tasks:
        train(args, task, task.share * (end - time.monotonic()), lambda: save(args, tasks))
        evaluated = {"": task.test} | ({"_visible": task.visible} if task.visible else {})
        for suffix, pairs in evaluated.items():
            metrics = evaluate(args, task, pairs, args.work / task.name)
            task.row.update({f"epe{suffix}": metrics["epe"], f"d1{suffix}": metrics["d1"]})
            save(args, tasks)
        task.row["curves"]["epe"].append((task.row["steps"], task.row["epe"]))
        save(args, tasks)
        show(tasks)
        plot(args.out)
    say("done")


def sgbm_of(args: argparse.Namespace, task: Task) -> dict[str, float]:
    """StereoSGBM's figures on the test pairs."""
    visible = test_pairs(args, task, task.visible) if task.visible else None
    limit = train_spec(args, task, args.work, 1, 1).dataset.max_disparity
    return sgbm.figures(test_pairs(args, task, task.test), limit, visible)


def rehearse(args: argparse.Namespace, task: Task) -> None:
    """Run three short epochs, a validation, a checkpoint and its evaluation, to check and time them."""
    folder = args.work / f"rehearsal_{task.name}"
    shutil.rmtree(folder, ignore_errors=True)
    lines = task.train.read_text().splitlines(keepends=True)
    short = task.train.with_name("rehearsal.txt")
    batch = train_spec(args, task, folder, 3, 3).dataset.train_dataset.batch_size
    count = REHEARSED_STEPS * batch
    short.write_text("".join((lines * math.ceil(count / len(lines)))[:count]))
    if GPU:
        torch.cuda.reset_peak_memory_stats()
    begin = time.monotonic()
    run_training(train_spec(args, task, folder, 3, 3, short))
    whole = time.monotonic() - begin
    task.row["peak_gib"] = peak_gib()
    epochs = [line for line in status(folder) if "time_per_step" in line]
    hours, minutes, seconds = epochs[1]["time_per_step"].split(":")  # the third includes the validation
    task.step_seconds = timedelta(hours=int(hours), minutes=int(minutes), seconds=float(seconds)).total_seconds()
    task.other_seconds = max(0.0, whole - 3 * REHEARSED_STEPS * task.step_seconds)
    begin = time.monotonic()
    evaluate(args, task, task.test, folder)
    task.evaluate_seconds = (time.monotonic() - begin) * (2 if task.visible else 1)
    task.row["seconds_a_step"] = task.step_seconds
    say(
        f"{task.name} rehearsed: {task.step_seconds:.3f} s per step of {batch} pairs, {task.other_seconds:.0f} s "
        "besides "
        f"the steps, {task.evaluate_seconds:.0f} s for evaluation, peak {task.row['peak_gib']:.1f} GiB"
    )
    shutil.rmtree(folder)


def train(args: argparse.Namespace, task: Task, seconds: float, save_row) -> None:
    """Train for as many epochs as fit in the seconds with evaluation; stop by SIGTERM if they take longer."""
    folder = args.work / task.name
    shutil.rmtree(folder, ignore_errors=True)
    pairs = len(task.train.read_text().splitlines())
    an_epoch = pairs // train_spec(args, task, folder, 1, 1).dataset.train_dataset.batch_size * task.step_seconds
    around = task.other_seconds * (1 + (VALIDATIONS - 1) / 2) + task.evaluate_seconds
    epochs = args.epochs or max(1, int((seconds - around) / (1.05 * an_epoch)))
    interval = math.ceil(epochs / VALIDATIONS)
    spec = train_spec(args, task, folder, epochs, interval)
    say(f"{task.name}: {epochs} epochs, about {around + epochs * an_epoch:.0f} of {seconds:.0f} s with the evaluation")
    begin = time.monotonic()

    def note() -> None:
        curves = task.row["curves"] = curves_of(folder)
        task.row["seconds"] = time.monotonic() - begin
        task.row["epe_before"] = curves["epe"][0][1] if curves["epe"] else None
        last = {name: f"{curve[-1][1]:.3f} at step {curve[-1][0]}" for name, curve in curves.items() if curve}
        say(f"{task.name}: {last}")
        save_row()

    limit = None if args.epochs else seconds - task.evaluate_seconds
    with followed(folder, note), stopped_after(limit) as stopped:
        run_training(spec, stopped)
    task.row["stopped_by_clock"] = stopped.is_set()
    note()
    task.row["steps"] = read_sidecar(folder / LATEST)["global_step"]


def run_training(spec, stopped: threading.Event | None = None) -> None:
    """Run `train`, which may end by SIGTERM after writing a checkpoint if our own clock has `stopped` it."""
    code = quietly("train", spec)
    gc.collect()
    if GPU:
        torch.cuda.empty_cache()
    if code and not (code == 143 and stopped and stopped.is_set()):
        sys.exit(f"train: exit code {code}")


@contextlib.contextmanager
def stopped_after(seconds: float | None) -> Iterator[threading.Event]:
    """Send this process SIGTERM after the time: `train` finishes its step, writes a checkpoint and returns 143."""
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
    """Call `note` for every new line of the folder's status.json."""
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


def evaluate(args: argparse.Namespace, task: Task, pairs: Path, trained: Path) -> dict[str, float]:
    """The metrics by `evaluate` of a training's last checkpoint, in float32."""
    folder = trained / f"evaluate_{pairs.parent.name}"
    do("evaluate", evaluate_tree(args, task, pairs, folder, trained / LATEST))
    return json.loads((folder / "results.json").read_text())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    network_options(parser)
    parser.add_argument("--out", type=Path, default=Path("runs/learning"), help="results and curves")
    parser.add_argument("--plot", action="store_true", help="only draw the curves of the results in --out")
    parser.add_argument(
        "--data", type=Path, default=Path("../shared/data"), help="folder that contains SceneFlow/FlyingThings3D"
    )
    parser.add_argument("--work", type=Path, default=Path("runs/learning/work"), help="scenes and checkpoints")
    parser.add_argument("--only", nargs="+", choices=("memorise", "scenes"), default=["memorise", "scenes"])
    parser.add_argument("--minutes", type=float, default=8.5, help="time limit of the whole run")
    parser.add_argument("--epochs", type=int, help="epochs of each training, regardless of the time")
    parser.add_argument("--train-scenes", type=int, default=200)
    parser.add_argument("--held-out-scenes", type=int, default=20)
    parser.add_argument("--scene-size", type=int, nargs=2, default=[384, 768], metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--scene-disparity", type=int, default=128, help="px")
    parser.add_argument("--memorise", nargs="+", default=[], metavar="key=value")
    parser.add_argument("--scenes", nargs="+", default=[], metavar="key=value")
    parser.add_argument("overrides", nargs="*", default=[], metavar="key=value")
    args = parser.parse_args()
    if args.plot:
        plot(args.out)
    else:
        learn(args)


if __name__ == "__main__":
    main()
