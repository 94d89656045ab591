"""What several benchmarks share: the network that they ask for, a pair to feed it, a clock, and what was taken."""

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
COLD = {"warmup_steps": 0}  # of a schedule that is longer than what is measured
MODEL = {"max_disparity": 416, "train_iters": 8, "valid_iters": 8, "stereo_backbone": {"allow_random_backbone": True}}
WARM = 3  # steps that are not timed


class Clock(pl.Callback):
    """When each step began; from one to the next is a whole step, with the batch's way to the GPU."""

    def __init__(self) -> None:
        self.starts: list[float] = []

    def on_train_batch_start(self, *_) -> None:
        if GPU:
            torch.cuda.synchronize()
        self.starts.append(time.perf_counter())


def network_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--encoder", default="vits")
    parser.add_argument("--preset", choices=("tiny",), help="instead of --encoder")


def network(asked: argparse.Namespace) -> dict[str, str]:
    return {"encoder": "vitt", "preset": "tiny"} if asked.preset else {"encoder": asked.encoder}


def sample(height: int, width: int, seed: int) -> dict:
    """What the loader gives for one synthetic pair."""
    scene = make_scene(height, width, width // 8, seed)
    left, right = (torch.from_numpy(scene[side]).permute(2, 0, 1).float() for side in ("left", "right"))
    disparity = torch.from_numpy(scene["disparity"])[None]
    return {"left": left, "right": right, "disparity": disparity, "valid": disparity > 0, "path": str(seed)}


def device() -> str:
    return torch.cuda.get_device_name() if GPU else f"CPU, {torch.get_num_threads()} threads"


def peak_gib() -> float:
    if GPU:
        return torch.cuda.max_memory_allocated() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def say(text: str) -> None:
    """A line with the seconds since the start; also where stdout leads nowhere."""
    print(f"[{time.monotonic() - BEGIN:5.0f} s] {text}", flush=True, file=sys.__stdout__)
