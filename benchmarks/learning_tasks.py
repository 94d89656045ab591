"""The two tasks of benchmarks/learning.py: their pairs and specs."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from common import CORES, GPU, MODEL, network, say

from stereo_core.data.annotations import write_annotations
from stereo_core.data.codecs import read_disparity, write_pfm
from stereo_core.data.datasets import StereoDataset, build_dataset
from stereo_core.data.images import read_image, write_png
from stereo_core.run.perform import perform
from stereo_core.spec import ExperimentSpec, spec_from_dict
from stereo_core.spec.overrides import apply_override, parse_override

DISK_GIB = 6  # four checkpoints of vits with their optimizer states, and the scenes
ROWS = 512  # rows of a memorised pair: a multiple of 32, so that training and evaluation need no padding
REPEATED = 32  # lines per memorised pair in its list: an epoch of one step would be mostly overhead

# No pair's disparity reaches 192 px. Few iterations allow many steps in the available time.
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
CROP_ONLY = {  # augmentation: only the crop
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
    "memorise": {"batch_size": 2, "augmentation": CROP_ONLY | {"crop_size": [512, 960]}},  # whole images
    "scenes": {"batch_size": 6, "augmentation": CROP_ONLY | {"crop_size": [256, 512]}},
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
    """One training and its results so far.

    Attributes:
        train, test: lists of pairs; visible: the test pairs with their masks, None if there are no masks.
        row: results, saved whenever they change.
    """

    name: str
    share: float  # share of the time left at its start
    train: Path
    test: Path
    visible: Path | None = None
    row: dict = field(default_factory=dict)
    step_seconds: float = 0.0
    other_seconds: float = 0.0  # start, the validations before and after, checkpoint
    evaluate_seconds: float = 0.0


def prepared(args: argparse.Namespace) -> list[Task]:
    """Prepare lists and scenes, and check everything that can be wrong before the first step."""
    for folder in (args.work, args.out):
        folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(args.work).free / 2**30
    if free < DISK_GIB and not args.preset:
        sys.exit(f"--work {args.work}: needs {DISK_GIB} GiB of disk space, but only {free:.1f} GiB are free")
    makers = {"memorise": memorise_task, "scenes": scenes_task}
    tasks = [makers[name](args) for name in makers if name in args.only]
    tasks[-1].share = 1.0
    for task in tasks:
        build_dataset(train_spec(args, task, args.work / task.name, 1, 1), "train")
    return tasks


def memorise_task(args: argparse.Namespace) -> Task:
    root = args.data / "SceneFlow" / "FlyingThings3D"
    if not root.is_dir():
        sys.exit(
            f"--data {args.data}: there is no folder SceneFlow/FlyingThings3D; set --only scenes to run without it"
        )
    whole = convert(args, "flying_things", {"data_root": str(root), **FLYING_THINGS})
    rows = [upper_rows(line.split(), args.work / "pairs") for line in whole.read_text().splitlines()]
    listed = args.work / "lists" / "pairs" / "test.txt"
    write_annotations(listed, rows)
    repeated = listed.with_name("train.txt")
    write_annotations(repeated, rows * REPEATED)
    return Task("memorise", 0.45, repeated, listed)


def upper_rows(files: list[str], root: Path) -> list[str]:
    """Copy the upper ROWS rows of a pair's files (left, right, disparity)."""
    folder = root / Path(files[0]).relative_to(Path(files[0]).anchor).with_suffix("")
    folder.mkdir(parents=True, exist_ok=True)
    left, right, disparity = (str(folder / name) for name in ("left.png", "right.png", "disparity.pfm"))
    write_png(left, read_image(files[0])[:ROWS])
    write_png(right, read_image(files[1])[:ROWS])
    write_pfm(disparity, read_disparity(files[2])[0][:ROWS])
    return [left, right, disparity]


def scenes_task(args: argparse.Namespace) -> Task:
    begin = time.monotonic()
    root = args.work / "synthetic"
    shutil.rmtree(root, ignore_errors=True)
    synthesize(args, root / "train", args.train_scenes, seed=1)
    synthesize(args, root / "held_out", args.held_out_scenes, seed=2)
    say(f"{args.train_scenes} and {args.held_out_scenes} scenes in {time.monotonic() - begin:.0f} s")
    trained = convert(args, "train", {"data_root": str(root / "train"), **SCENES})
    held_out = convert(args, "held_out", {"data_root": str(root / "held_out"), **SCENES})
    visible = convert(args, "visible", {"data_root": str(root / "held_out"), **SCENES, **MASKED})
    return Task("scenes", 1.0, trained, held_out, visible)


def synthesize(args: argparse.Namespace, root: Path, scenes: int, seed: int) -> None:
    """Write `scenes` scenes below `root`, in parallel on all cores."""
    parts = min(CORES, scenes)
    height, width = args.scene_size
    sizes = {"height": height, "width": width, "max_disparity": args.scene_disparity}
    counts = [scenes // parts + (part < scenes % parts) for part in range(parts)]
    trees = [
        {"results_dir": str(root / f"part_{part:02d}"), "num_scenes": count, "seed": 1000 * seed + part, **sizes}
        for part, count in enumerate(counts)
    ]
    with ProcessPoolExecutor(parts) as pool:
        list(pool.map(do, ["synthesize"] * parts, trees))


def convert(args: argparse.Namespace, name: str, tree: dict) -> Path:
    """The list of a tree's pairs."""
    folder = args.work / "lists" / name
    do("convert", tree | {"results_dir": str(folder), "strict": True})
    return folder / "test.txt"


def do(verb: str, tree: dict) -> None:
    code = quietly(verb, spec_from_dict(verb, tree))
    if code:
        sys.exit(f"{verb}: exit code {code}")


def quietly(verb: str, spec) -> int:
    """The exit code of a verb; its stdout is dropped, because the table has more details."""
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        return perform(verb, spec)


def train_spec(args: argparse.Namespace, task: Task, folder: Path, epochs: int, interval: int, listed=None):
    """The spec of a training of `epochs` epochs, validated every `interval`, on the pairs of `listed` or the task's."""
    tree = {
        "dataset": {
            "train_dataset": SPLITS[task.name] | {"data_sources": source(task, listed or task.train)},
            "val_dataset": {"data_sources": source(task, task.test), "workers": CORES // 4},
        },
        "model": LEARNT | network(args),
        "train": TRAIN | {"results_dir": str(folder), "num_epochs": epochs, "validation_interval": interval},
    }
    tree = json.loads(json.dumps(tree))  # copy: overrides change it
    tree["dataset"]["train_dataset"]["workers"] = max(1, CORES - CORES // 4)
    tree["train"]["checkpoint_interval"] = epochs  # at the end; each best validation writes one too
    for override in args.overrides + getattr(args, task.name):
        apply_override(tree, *parse_override(override))
    tree["dataset"].setdefault("max_disparity", tree["model"]["max_disparity"])
    return spec_from_dict("train", tree)


def source(task: Task, listed: Path) -> list[dict]:
    name = "FSD" if task.name == "scenes" else "GenericDataset"
    return [{"dataset_name": name, "data_file": str(listed)}]


def evaluate_tree(args: argparse.Namespace, task: Task, pairs: Path, folder: Path, checkpoint: Path) -> dict:
    spec = train_spec(args, task, folder, 1, 1)
    return {
        "dataset": {
            "max_disparity": spec.dataset.max_disparity,
            "test_dataset": {"data_sources": source(task, pairs), "workers": CORES // 4},
        },
        "model": {"valid_iters": spec.model.valid_iters},
        "evaluate": {"results_dir": str(folder), "checkpoint": str(checkpoint)},
    }


def test_pairs(args: argparse.Namespace, task: Task, pairs: Path) -> StereoDataset:
    tree = evaluate_tree(args, task, pairs, args.work, args.work)
    return build_dataset(ExperimentSpec.model_validate(tree), "test")
