"""Proof that training learns, and what a training step costs.

python benchmarks/training.py learn --data DATA [--minutes 8.5] [--only memorise scenes] [key=value ...]
    Two trainings from scratch, random backbones, through `train` and `evaluate` themselves: `memorise` learns the two
    FlyingThings3D pairs below DATA/SceneFlow (their upper 512 rows), unaugmented, by heart; `scenes` learns 200
    synthetic scenes and is measured on 20 others. OpenCV's StereoSGBM sees the same pairs in the same run. Both are
    rehearsed first, a few steps with everything that comes after them; from the time that took follows the number of
    epochs that fits.
    The last weights count, not the best by validation: that would choose with the pairs that are measured on.
    key=value changes the spec of both trainings, --memorise and --scenes that of one.

python benchmarks/training.py steps [--only 'bf16*' ...] [--limit 240]
    Forward, backward and optimizer step of StereoModule under Lightning, batches in memory, each configuration in a
    process of its own: median of the warm steps, pairs a second, peak memory.

python benchmarks/training.py plot
    Draws curves.png anew from the results.json of `learn`.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import math
import os
import re
import resource
import shutil
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from datetime import timedelta
from fnmatch import fnmatch
from pathlib import Path

import numpy as np
import pytorch_lightning as pl
import torch
from rich.console import Console
from rich.table import Table
from sgbm import background_filled, sgbm_disparity
from torch.utils.data import DataLoader, default_collate

from stereo_core.actions.train import _PRECISIONS, choose_kernels, tune
from stereo_core.data.annotations import write_annotations
from stereo_core.data.codecs import read_disparity, write_pfm
from stereo_core.data.datasets import StereoDataset, build_dataset
from stereo_core.data.images import read_image, write_png
from stereo_core.data.synthetic.planes import make_scene
from stereo_core.files import atomic_path
from stereo_core.metrics import StereoMetrics, disparity_metrics
from stereo_core.models import from_spec
from stereo_core.models.files import read_sidecar
from stereo_core.run.perform import perform
from stereo_core.spec import ExperimentSpec, spec_from_dict
from stereo_core.spec.choice import LATEST
from stereo_core.spec.overrides import apply_override, parse_override
from stereo_core.training.distribution import Ranks
from stereo_core.training.module import StereoModule

GPU = torch.cuda.is_available()
CORES = len(os.sched_getaffinity(0))
BEGIN = time.monotonic()

# learn

VALIDATIONS = 3  # in a training, for its curve
REHEARSED_STEPS = 6  # an epoch of the rehearsal; its second one is timed
DISK_GIB = 6  # four checkpoints of vits with their optimizer states, and the scenes
ROWS = 512  # of a memorised pair: a multiple of 32, so that training and evaluation pad nothing and see the same
REPEATED = 32  # lines a memorised pair has in its list: an epoch of one step would be mostly its end

MODEL = {"max_disparity": 416, "train_iters": 8, "valid_iters": 8, "stereo_backbone": {"allow_random_backbone": True}}
# No pair's disparity reaches 192 px. What counts is how many steps there are time for, hence few iterations.
LEARNT = MODEL | {"max_disparity": 192, "train_iters": 4, "valid_iters": 4}
TRAIN = {
    "precision": "bf16" if GPU else "fp32",
    "clip_grad_norm": 1.0,
    "keep_checkpoints": 1,
    "log_every_n_steps": 10,
    "vis_step_interval": 1000,  # pictures take time
    "cudnn": {"benchmark": False, "deterministic": False},
    "optim": {"lr": 8e-4, "lr_scheduler": "OneCycleLR"},
}
PLAIN = {  # augmentation: the crop alone
    "spatial_aug_prob": 0.0,
    "hshift_prob": 0.0,
    "yjitter_prob": 0.0,
    "eraser_aug_prob": 0.0,
    "color_aug_brightness": 0.0,
    "color_aug_contrast": 0.0,
    "color_aug_saturation": [1.0, 1.0],
    "color_aug_hue_range": [0.0, 0.0],
}
SPLITS = {
    "memorise": {"batch_size": 2, "augmentation": PLAIN | {"crop_size": [512, 960]}},  # whole images
    "scenes": {"batch_size": 6, "augmentation": PLAIN | {"crop_size": [256, 512]}},
}
FLYING_THINGS = {
    "image_dir_pattern": ["frames_cleanpass", "/left/"],
    "right_dir_pattern": ["frames_cleanpass", "/right/"],
    "depth_dir_pattern": ["disparity"],
    "image_extension": ".png",
    "depth_extension": ".pfm",
}
SCENES = {
    "image_dir_pattern": ["left/rgb"],
    "right_dir_pattern": ["right/rgb"],
    "depth_dir_pattern": ["left/disparity"],
    "image_extension": ".png",
    "depth_extension": ".png",
}
MASKED = {"nocc_dir_pattern": ["left/nocc"], "nocc_extension": ".png"}


@dataclass
class Task:
    """One training and what is known of it so far.

    Attributes:
        train, test: lists of pairs; visible: the test pairs with their masks, None where there are none.
        row: results, saved whenever they change.
    """

    name: str
    share: float  # of the time that is left when it begins
    train: Path
    test: Path
    visible: Path | None = None
    row: dict = field(default_factory=dict)
    step_seconds: float = 0.0
    other_seconds: float = 0.0  # start, the validations before and after, checkpoint
    evaluate_seconds: float = 0.0


def learn(asked: argparse.Namespace) -> None:
    """Prepare, rehearse, then train and measure one after the other; the table comes after each."""
    end = BEGIN + 60 * asked.minutes
    tasks = prepared(asked)
    say(f"{device()}, {CORES} cores, torch {torch.__version__}; {asked.preset or asked.encoder} from scratch")
    for task in tasks:
        task.row.update(data=task.name, network=asked.preset or asked.encoder, sgbm=sgbm(asked, task))
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


def prepared(asked: argparse.Namespace) -> list[Task]:
    """Lists, scenes and everything that can be wrong before the first step."""
    for folder in (asked.work, asked.out):
        folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(asked.work).free / 2**30
    if free < DISK_GIB and not asked.preset:
        sys.exit(f"--work {asked.work}: {free:.1f} GiB are free there, {DISK_GIB} are needed")
    makers = {"memorise": memorise_task, "scenes": scenes_task}
    tasks = [makers[name](asked) for name in makers if name in asked.only]
    tasks[-1].share = 1.0
    for task in tasks:
        build_dataset(train_spec(asked, task, asked.work / task.name, 1, 1), "train")
    return tasks


def memorise_task(asked: argparse.Namespace) -> Task:
    root = asked.data / "SceneFlow" / "FlyingThings3D"
    if not root.is_dir():
        sys.exit(f"--data {asked.data}: has no folder SceneFlow/FlyingThings3D; without it: --only scenes")
    whole = convert(asked, "flying_things", {"data_root": str(root), **FLYING_THINGS})
    rows = [upper_rows(line.split(), asked.work / "pairs") for line in whole.read_text().splitlines()]
    listed = asked.work / "lists" / "pairs" / "test.txt"
    write_annotations(listed, rows)
    repeated = listed.with_name("train.txt")
    write_annotations(repeated, rows * REPEATED)
    return Task("memorise", 0.45, repeated, listed)


def upper_rows(files: list[str], root: Path) -> list[str]:
    """Copies of a pair's files (left, right, disparity) with their upper ROWS rows."""
    folder = root / Path(files[0]).relative_to(Path(files[0]).anchor).with_suffix("")
    folder.mkdir(parents=True, exist_ok=True)
    left, right, disparity = (str(folder / name) for name in ("left.png", "right.png", "disparity.pfm"))
    write_png(left, read_image(files[0])[:ROWS])
    write_png(right, read_image(files[1])[:ROWS])
    write_pfm(disparity, read_disparity(files[2])[0][:ROWS])
    return [left, right, disparity]


def scenes_task(asked: argparse.Namespace) -> Task:
    begin = time.monotonic()
    root = asked.work / "synthetic"
    shutil.rmtree(root, ignore_errors=True)
    synthesize(asked, root / "train", asked.train_scenes, seed=1)
    synthesize(asked, root / "held_out", asked.held_out_scenes, seed=2)
    say(f"{asked.train_scenes} and {asked.held_out_scenes} scenes in {time.monotonic() - begin:.0f} s")
    trained = convert(asked, "train", {"data_root": str(root / "train"), **SCENES})
    held_out = convert(asked, "held_out", {"data_root": str(root / "held_out"), **SCENES})
    visible = convert(asked, "visible", {"data_root": str(root / "held_out"), **SCENES, **MASKED})
    return Task("scenes", 1.0, trained, held_out, visible)


def synthesize(asked: argparse.Namespace, root: Path, scenes: int, seed: int) -> None:
    """`scenes` scenes below `root`, a part of them on every core."""
    parts = min(CORES, scenes)
    height, width = asked.scene_size
    sizes = {"height": height, "width": width, "max_disparity": asked.scene_disparity}
    counts = [scenes // parts + (part < scenes % parts) for part in range(parts)]
    trees = [
        {"results_dir": str(root / f"part_{part:02d}"), "num_scenes": count, "seed": 1000 * seed + part, **sizes}
        for part, count in enumerate(counts)
    ]
    with ProcessPoolExecutor(parts) as pool:
        list(pool.map(do, ["synthesize"] * parts, trees))


def convert(asked: argparse.Namespace, name: str, tree: dict) -> Path:
    """The list of a tree's pairs."""
    folder = asked.work / "lists" / name
    do("convert", tree | {"results_dir": str(folder), "strict": True})
    return folder / "test.txt"


def do(verb: str, tree: dict) -> None:
    code = quietly(verb, spec_from_dict(verb, tree))
    if code:
        sys.exit(f"{verb}: exit code {code}")


def quietly(verb: str, spec) -> int:
    """The exit code of a verb; what it prints on stdout says less than the table."""
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        return perform(verb, spec)


def network(asked: argparse.Namespace) -> dict[str, str]:
    return {"encoder": "vitt", "preset": "tiny"} if asked.preset else {"encoder": asked.encoder}


def train_spec(asked: argparse.Namespace, task: Task, folder: Path, epochs: int, interval: int, listed=None):
    """The spec of a training of `epochs` epochs, validated every `interval`, on the pairs of `listed` or the task's."""
    tree = {
        "dataset": {
            "train_dataset": SPLITS[task.name] | {"data_sources": source(task, listed or task.train)},
            "val_dataset": {"data_sources": source(task, task.test), "workers": CORES // 4},
        },
        "model": LEARNT | network(asked),
        "train": TRAIN | {"results_dir": str(folder), "num_epochs": epochs, "validation_interval": interval},
    }
    tree = json.loads(json.dumps(tree))  # a copy: overrides change it
    tree["dataset"]["train_dataset"]["workers"] = max(1, CORES - CORES // 4)
    tree["train"]["checkpoint_interval"] = epochs  # at the end; a validation that is the best so far leaves one too
    for override in asked.overrides + getattr(asked, task.name):
        apply_override(tree, *parse_override(override))
    tree["dataset"].setdefault("max_disparity", tree["model"]["max_disparity"])
    return spec_from_dict("train", tree)


def source(task: Task, listed: Path) -> list[dict]:
    name = "FSD" if task.name == "scenes" else "GenericDataset"
    return [{"dataset_name": name, "data_file": str(listed)}]


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


def status(folder: Path) -> list[dict]:
    """The whole lines of a status.json, none where there is no file yet."""
    path = folder / "status.json"
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


def curves_of(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """(step, value) of every epoch's mean loss and of every validation; step 0 is the one before training."""
    loss, epe, waiting, step = [], [], None, 0
    for line in status(folder):
        kpi = line.get("kpi", {})
        if line["message"] == "Eval metrics generated before training.":
            epe.append((0, kpi["epe"]))
        elif line["message"] == "Eval metrics generated.":
            waiting = kpi["epe"]  # the step that it belongs to is in the next line
        elif "step" in line:
            step = line["step"]
            epe += [(step, waiting)] if waiting is not None else []
            waiting = None
        elif "train_loss" in kpi and line["status"] == "RUNNING":
            loss.append((step, kpi["train_loss"]))
    return {"loss": loss, "epe": epe}


def evaluate(asked: argparse.Namespace, task: Task, pairs: Path, trained: Path) -> dict[str, float]:
    """What `evaluate` says of a training's last checkpoint, in float32."""
    folder = trained / f"evaluate_{pairs.parent.name}"
    do("evaluate", evaluate_tree(asked, task, pairs, folder, trained / LATEST))
    return json.loads((folder / "results.json").read_text())


def evaluate_tree(asked: argparse.Namespace, task: Task, pairs: Path, folder: Path, checkpoint: Path) -> dict:
    spec = train_spec(asked, task, folder, 1, 1)
    return {
        "dataset": {
            "max_disparity": spec.dataset.max_disparity,
            "test_dataset": {"data_sources": source(task, pairs), "workers": CORES // 4},
        },
        "model": {"valid_iters": spec.model.valid_iters},
        "evaluate": {"results_dir": str(folder), "checkpoint": str(checkpoint)},
    }


# StereoSGBM


def sgbm(asked: argparse.Namespace, task: Task) -> dict[str, float]:
    """StereoSGBM on the test pairs: `epe` and `d1` with its holes filled, `epe_visible` over the mask; `epe_own` over
    the pixels that it has a disparity for, and their share."""
    data = test_pairs(asked, task, task.test)
    max_disparity = max(float(data[i]["disparity"].max()) for i in range(len(data)))
    found = [sgbm_disparity(*views_of(data[i]), max_disparity) for i in range(len(data))]
    filled = [background_filled(disparity) for disparity in found]
    limit = train_spec(asked, task, asked.work, 1, 1).dataset.max_disparity
    all_pixels = totals(data, filled, limit)
    own = totals(data, found, limit, own=True)
    share = float(np.mean([(disparity > 0).mean() for disparity in found]))
    result = {"epe": all_pixels["epe"], "d1": all_pixels["d1"], "epe_own": own["epe"], "own_share": share}
    if task.visible:
        visible = totals(test_pairs(asked, task, task.visible), filled, limit)
        result |= {"epe_visible": visible["epe"], "d1_visible": visible["d1"]}
    return {name: round(value, 4) for name, value in result.items()}


def views_of(sample: dict) -> list[np.ndarray]:
    return [np.ascontiguousarray(sample[side].permute(1, 2, 0).numpy().astype(np.uint8)) for side in ("left", "right")]


def test_pairs(asked: argparse.Namespace, task: Task, pairs: Path) -> StereoDataset:
    tree = evaluate_tree(asked, task, pairs, asked.work, asked.work)
    return build_dataset(ExperimentSpec.model_validate(tree), "test")


def totals(data: StereoDataset, predictions: list[np.ndarray], limit: float, own: bool = False) -> dict[str, float]:
    metrics = StereoMetrics()
    for index, prediction in enumerate(predictions):
        gt, valid = data[index]["disparity"][0], data[index]["valid"][0]
        counts = valid & torch.from_numpy(prediction > 0) if own else valid
        metrics.update([disparity_metrics(prediction, gt, counts, limit)])
    return metrics.compute()


# what is shown


def save(asked: argparse.Namespace, tasks: list[Task]) -> None:
    """results.json: the device, the options and what is known so far."""
    options = {name: str(value) if isinstance(value, Path) else value for name, value in vars(asked).items()}
    results = {"device": device(), "torch": torch.__version__, "options": options, "rows": [t.row for t in tasks]}
    with atomic_path(asked.out / "results.json") as path:
        path.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


def show(tasks: list[Task]) -> None:
    table = Table("data", "network", "steps", "seconds", "EPE before", "EPE", "D1", "SGBM's EPE, D1", "own pixels")
    for task in tasks:
        row, baseline = task.row, task.row["sgbm"]
        if "steps" not in row:
            continue
        steps = f"{row['steps']}{' (stopped)' if row['stopped_by_clock'] else ''}"
        own = f"{baseline['epe_own']:.3f} ({baseline['own_share']:.0%})"
        for suffix in [""] + (["_visible"] if task.visible else []):
            table.add_row(
                task.name + suffix.replace("_", ", "),
                row["network"],
                steps,
                f"{row['seconds']:.0f}",
                "" if suffix else f"{row['epe_before']:.2f}",
                f"{row[f'epe{suffix}']:.3f}",
                f"{row[f'd1{suffix}']:.4f}",
                f"{baseline[f'epe{suffix}']:.3f}, {baseline[f'd1{suffix}']:.4f}",
                "" if suffix else own,
            )
    Console(width=130).print(table)


def plot(out: Path) -> None:
    """curves.png from results.json: a column a training, its loss above its EPE."""
    try:
        import matplotlib
    except ImportError:
        say(f"curves.png is not drawn, matplotlib is missing; where it is: training.py plot --out {out}")
        return
    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = [row for row in json.loads((out / "results.json").read_text())["rows"] if "curves" in row]
    figure, axes = pyplot.subplots(2, len(rows), squeeze=False, figsize=(5 * len(rows), 6), layout="constrained")
    for (loss, epe), row in zip(axes.T, rows, strict=True):
        loss.semilogy(*zip(*row["curves"]["loss"], strict=True), marker=".")
        epe.semilogy(*zip(*row["curves"]["epe"], strict=True), marker=".", label="network")
        epe.axhline(row["sgbm"]["epe"], linestyle="--", color="grey", label="StereoSGBM")
        epe.legend()
        loss.set(title=f"{row['data']}, {row['network']}", xlabel="step", ylabel="training loss, px")
        epe.set(xlabel="step", ylabel="EPE, px")
        for axis in (loss.yaxis, epe.yaxis):
            axis.set_major_formatter("{x:g}")
            axis.set_minor_formatter("")
    figure.savefig(out / "curves.png", dpi=110)
    pyplot.close(figure)


def say(text: str) -> None:
    print(f"[{time.monotonic() - BEGIN:5.0f} s] {text}", flush=True, file=sys.__stdout__)  # also within `quietly`


def device() -> str:
    return torch.cuda.get_device_name() if GPU else f"CPU, {torch.get_num_threads()} threads"


def peak_gib() -> float:
    if GPU:
        return torch.cuda.max_memory_allocated() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


# steps

RECOMPUTE = {"activation_checkpoint": True}
COMPILED = {"compile": "on"}
CONFIGURATIONS = {
    "fp32": {},
    "fp32-recompute": RECOMPUTE,
    "bf16": {"precision": "bf16"},
    "bf16-recompute": {"precision": "bf16"} | RECOMPUTE,
    "bf16-deterministic": {"precision": "bf16", "deterministic": True},
    "bf16-cudnn-benchmark": {"precision": "bf16", "cudnn": {"benchmark": True, "deterministic": False}},
    "bf16-compile": {"precision": "bf16"} | COMPILED,
    "bf16-recompute-compile": {"precision": "bf16"} | RECOMPUTE | COMPILED,
    "fp32-compile": COMPILED,
    "fp32-recompute-compile": RECOMPUTE | COMPILED,
}


def steps(asked: argparse.Namespace) -> None:
    """A line a configuration as it is measured, ratios against the first that could be; steps.json holds them all."""
    asked.out.mkdir(parents=True, exist_ok=True)
    height, width = asked.size
    what = f"{asked.preset or asked.encoder} {height}x{width}, {asked.iters} iterations, batch {asked.batch}"
    print(f"{what}; {device()}, torch {torch.__version__}; TF32 convolutions {torch.backends.cudnn.allow_tf32}")
    names = [name for name in CONFIGURATIONS if any(fnmatch(name, pattern) for pattern in asked.only)]
    rows: dict[str, dict] = {}
    for name in names:
        rows[name] = in_process(asked, name)
        first = next((row for row in rows.values() if "seconds" in row), {})
        print(step_line(name, rows[name], first, asked.batch), flush=True)
        with atomic_path(asked.out / "steps.json") as path:
            path.write_text(json.dumps({"what": what, "device": device(), "rows": rows}, indent=1) + "\n")


def step_line(name: str, row: dict, first: dict, batch: int) -> str:
    if "seconds" not in row:
        return f"{name:24} {row['failed']}"
    return (
        f"{name:24} {1000 * row['seconds']:8.1f} ms a step, {batch / row['seconds']:6.2f} pairs/s "
        f"({first['seconds'] / row['seconds']:.2f} x), peak {row['peak_gib']:6.2f} GiB "
        f"({row['peak_gib'] / first['peak_gib']:.2f} x), first step {row['first']:.1f} s, loss {row['loss']:.3f}"
    )


def in_process(asked: argparse.Namespace, name: str) -> dict:
    """Measure one configuration in its own process; why not, where it fails or takes longer than the limit."""
    options = [f"--{key}={getattr(asked, key)}" for key in ("encoder", "iters", "batch", "runs") if getattr(asked, key)]
    options += [f"--preset={asked.preset}"] if asked.preset else []
    options += ["--size", *map(str, asked.size), f"--part={name}", f"--out={asked.out}"]
    command = [sys.executable, __file__, "steps", *options]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        output, errors = process.communicate(timeout=asked.limit)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)  # the compiler's processes too
        process.communicate()
        return {"failed": f"not done after {asked.limit} s"}
    if process.returncode:
        (asked.out / f"{name}.log").write_text(errors)
        lines = [line for line in errors.splitlines() if line.strip()] or [f"exit code {process.returncode}"]
        named = [line for line in lines if re.match(r"[\w.]*(Error|Exception|Unsupported)\b", line)]
        return {"failed": (named or lines)[-1][:300]}
    return json.loads(output.splitlines()[-1])


def measure(asked: argparse.Namespace) -> dict:
    """Steps of one configuration in this process."""
    model = MODEL | network(asked) | {"train_iters": asked.iters}
    settings = CONFIGURATIONS[asked.part] | {"results_dir": str(asked.out / "steps"), "num_epochs": 1}
    spec = ExperimentSpec.model_validate({"model": model, "train": settings})
    choose_kernels(spec.train, GPU)
    torch.manual_seed(0)
    net = from_spec(spec)
    tune(net, spec.train, Ranks(gpu=GPU))
    batch = default_collate([sample(*asked.size, seed) for seed in range(asked.batch)])
    # As `train` sets it up; no logger, no checkpoints.
    trainer = pl.Trainer(
        accelerator="gpu" if GPU else "cpu",
        devices=1,
        precision=_PRECISIONS[spec.train.precision],
        max_epochs=1,
        gradient_clip_val=spec.train.clip_grad_norm,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[clock := Clock()],
    )
    trainer.fit(StereoModule(net, spec), DataLoader([batch] * (WARM + asked.runs + 1), batch_size=None))
    return {
        "seconds": statistics.median(np.diff(clock.starts)[WARM:]),
        "first": clock.starts[1] - clock.starts[0],
        "peak_gib": peak_gib(),
        "loss": float(trainer.callback_metrics["train_loss_step"]),
    }


WARM = 3


class Clock(pl.Callback):
    """When each step began; from one to the next is a whole step, with the batch's way to the GPU."""

    def __init__(self) -> None:
        self.starts: list[float] = []

    def on_train_batch_start(self, *_) -> None:
        if GPU:
            torch.cuda.synchronize()
        self.starts.append(time.perf_counter())


def sample(height: int, width: int, seed: int) -> dict:
    """What the loader gives for one synthetic pair."""
    scene = make_scene(height, width, width // 8, seed)
    left, right = (torch.from_numpy(scene[side]).permute(2, 0, 1).float() for side in ("left", "right"))
    disparity = torch.from_numpy(scene["disparity"])[None]
    return {"left": left, "right": right, "disparity": disparity, "valid": disparity > 0, "path": str(seed)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    modes = parser.add_subparsers(dest="mode", required=True)
    learn_, steps_, plot_ = (modes.add_parser(name) for name in ("learn", "steps", "plot"))
    for mode in (learn_, steps_, plot_):
        mode.add_argument("--out", type=Path, default=Path("runs/training"), help="results and curves")
    for mode in (learn_, steps_):
        mode.add_argument("--encoder", default="vits")
        mode.add_argument("--preset", choices=("tiny",), help="instead of --encoder")
    learn_.add_argument("--data", type=Path, default=Path("../shared/data"), help="has SceneFlow/FlyingThings3D")
    learn_.add_argument("--work", type=Path, default=Path("runs/training/work"), help="scenes and checkpoints")
    learn_.add_argument("--only", nargs="+", choices=("memorise", "scenes"), default=["memorise", "scenes"])
    learn_.add_argument("--minutes", type=float, default=8.5, help="all in all")
    learn_.add_argument("--epochs", type=int, help="of each training, whatever the time it takes")
    learn_.add_argument("--train-scenes", type=int, default=200)
    learn_.add_argument("--held-out-scenes", type=int, default=20)
    learn_.add_argument("--scene-size", type=int, nargs=2, default=[384, 768], metavar=("HEIGHT", "WIDTH"))
    learn_.add_argument("--scene-disparity", type=int, default=128, help="px")
    learn_.add_argument("--memorise", nargs="+", default=[], metavar="key=value")
    learn_.add_argument("--scenes", nargs="+", default=[], metavar="key=value")
    learn_.add_argument("overrides", nargs="*", default=[], metavar="key=value")
    steps_.add_argument("--size", type=int, nargs=2, default=[320, 736], metavar=("HEIGHT", "WIDTH"))
    steps_.add_argument("--iters", type=int, default=22)
    steps_.add_argument("--batch", type=int, default=4)
    steps_.add_argument("--runs", type=int, default=8, help="steps timed, after 3 warm ones")
    steps_.add_argument("--only", nargs="+", default=["*"], help=f"patterns of {', '.join(CONFIGURATIONS)}")
    steps_.add_argument("--limit", type=float, default=240, help="seconds for a configuration")
    steps_.add_argument("--part", choices=tuple(CONFIGURATIONS), help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.mode == "learn":
        learn(asked)
    elif asked.mode == "plot":
        plot(asked.out)
    elif asked.part:
        print(json.dumps(measure(asked)))
    else:
        steps(asked)


if __name__ == "__main__":
    main()
