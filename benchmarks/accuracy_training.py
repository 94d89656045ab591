"""Compare the losses of a training computed in several ways with those of float32.

python benchmarks/accuracy_training.py [--only 'bf16*' ...] [--steps 100]
    The starter network learns twenty rich scenes, each time from its own weights, by StereoModule under Lightning.
    Prints the mean loss of the first and of the last 20 steps. The first line comes twice: sums in another order change
    a loss, too. At the default rate, 1e-4, equal runs on a GPU differ by up to 10 % in the end, hence the low rate.
"""

from __future__ import annotations

import argparse
import tempfile
from fnmatch import fnmatch

import pytorch_lightning as pl
import torch
from common import COLD, DATASET, GPU, device, item, say
from speed_steps import CONFIGURATIONS
from torch.utils.data import DataLoader, default_collate

from stereo_core.data.synthetic import scene_maker
from stereo_core.models import load_model
from stereo_core.spec import ExperimentSpec
from stereo_core.training.distribution import Ranks
from stereo_core.training.module import StereoModule
from stereo_core.training.trainer import choose_kernels, trainer_of, tune

YARDSTICK = "fp32-off"
DEFAULT = ("fp32", "bf16-off", "bf16", "bf16-compile", "bf16-recompute-compile")
SCENES, BATCH, SIZE, DISPARITIES = 20, 2, (256, 384), (4, 48)
STEPS = 20  # whose losses are averaged
OPTIM = COLD | {"lr": 1e-5}


class Losses(pl.Callback):
    """The loss of each step."""

    def __init__(self) -> None:
        self.values: list[torch.Tensor] = []

    def on_train_batch_end(self, trainer, module, *_) -> None:
        self.values.append(module.step_in_hand.loss)


def scenes() -> list[dict]:
    """Batches with left, right (B, 3, H, W) 0..255, disparity in px and valid (B, 1, H, W)."""
    make = scene_maker("rich", *SIZE, DISPARITIES, 7)
    items = [item(make(number), number) for number in range(SCENES)]
    return [default_collate(items[begin : begin + BATCH]) for begin in range(0, SCENES, BATCH)]


def trained(name: str, batches: list[dict], steps: int, folder: str) -> tuple[float, float]:
    """Train by a row of speed_steps' configurations; the mean losses of the first and of the last steps."""
    settings = CONFIGURATIONS[name] | {"results_dir": folder, "num_epochs": 1, "optim": OPTIM}
    spec = ExperimentSpec.model_validate({"model": {"preset": "small"}, "dataset": DATASET, "train": settings})
    choose_kernels(spec.train, GPU)
    network = load_model("starter").train()
    tune(network, spec.train, Ranks(gpu=GPU), 1)
    trainer = trainer_of(spec.train, Ranks(gpu=GPU), [losses := Losses()])
    repeated = [batches[step % len(batches)] for step in range(steps)]
    trainer.fit(StereoModule(network, spec), DataLoader(repeated, batch_size=None))
    found = torch.stack(losses.values)
    return found[:STEPS].mean().item(), found[-STEPS:].mean().item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--only", nargs="+", default=DEFAULT, help=f"patterns of {', '.join(CONFIGURATIONS)}")
    args = parser.parse_args()
    say(f"{args.steps} steps of {BATCH} pairs of {SIZE[1]} x {SIZE[0]} px; {device()}, torch {torch.__version__}")
    batches, expected = scenes(), None
    chosen = [name for name in CONFIGURATIONS if any(fnmatch(name, pattern) for pattern in args.only)]
    for name in (YARDSTICK, YARDSTICK, *chosen):
        with tempfile.TemporaryDirectory() as folder:
            first, loss = trained(name, batches, args.steps, folder)
        expected = expected or loss
        say(f"{name:24} {first:.4f}, then {loss:.4f} px, {100 * (loss / expected - 1):+.2f} % from the first line")


if __name__ == "__main__":
    main()
