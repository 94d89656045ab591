"""Shared by several benchmarks: options for the network, a test pair, a clock and memory figures."""

from __future__ import annotations

import argparse
import resource
import sys
import time

import pytorch_lightning as pl
import torch

from stereo_core.cores import usable_cores
from stereo_core.data.synthetic.planes import make_scene

BEGIN = time.monotonic()
CORES = usable_cores()
GPU = torch.cuda.is_available()
COLD = {"warmup_steps": 0}  # for schedules that are longer than the measurement
MODEL = {"max_disparity": 416, "train_iters": 8, "valid_iters": 8, "stereo_backbone": {"allow_random_backbone": True}}
WARM = 3  # steps that are not timed


class Clock(pl.Callback):
    """Start times of the steps; the time between two is a whole step, including the batch's transfer to the GPU."""

    def __init__(self) -> None:
        self.starts: list[float] = []

    def on_train_batch_start(self, *_) -> None:
        if GPU:
            torch.cuda.synchronize()
        self.starts.append(time.perf_counter())


def network_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--encoder", default="vits")
    parser.add_argument("--preset", choices=("tiny",), help="instead of --encoder")


def network(args: argparse.Namespace) -> dict[str, str]:
    return {"encoder": "vitt", "preset": "tiny"} if args.preset else {"encoder": args.encoder}


DATASET = {"train_dataset": {"data_sources": [{"dataset_name": "Synthetic"}]}}  # the source of each `sample`


def sample(height: int, width: int, seed: int) -> dict:
    """The loader's item for one pair of planes."""
    return item(make_scene(height, width, width // 8, seed), seed)


def item(scene: dict, seed: int) -> dict:
    """The loader's item for a synthetic scene."""
    left, right = (torch.from_numpy(scene[side]).permute(2, 0, 1).float() for side in ("left", "right"))
    disparity = torch.from_numpy(scene["disparity"])[None]
    return {
        "left": left,
        "right": right,
        "disparity": disparity,
        "valid": disparity > 0,
        "path": str(seed),
        "source": 0,
    }


def device() -> str:
    return torch.cuda.get_device_name() if GPU else f"CPU, {torch.get_num_threads()} threads"


def peak_gib() -> float:
    if GPU:
        return torch.cuda.max_memory_allocated() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def say(text: str) -> None:
    """Print a line with the seconds since the start, even if stdout is redirected."""
    print(f"[{time.monotonic() - BEGIN:5.0f} s] {text}", flush=True, file=sys.__stdout__)
