"""Time a training step.

python benchmarks/speed_steps.py [--only 'bf16*' ...] [--limit 240]
    Forward, backward and optimizer step of StereoModule under Lightning with batches in memory, each configuration in
    its own process: median of the warm steps, pairs per second, peak memory, and how often per step the host
    synchronises with the GPU (aim: never).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import warnings
from fnmatch import fnmatch
from pathlib import Path

import numpy as np
import pytorch_lightning as pl
import torch
from common import COLD, DATASET, GPU, MODEL, WARM, Clock, device, network, network_options, peak_gib, sample
from torch.utils.data import DataLoader, default_collate

from stereo_core.files import atomic_path
from stereo_core.models import from_spec
from stereo_core.spec import ExperimentSpec
from stereo_core.training.distribution import Ranks
from stereo_core.training.module import StereoModule
from stereo_core.training.trainer import choose_kernels, trainer_of, tune

RECOMPUTE = {"activation_checkpoint": True}
COMPILED = {"compile": "on"}
CONFIGURATIONS = {
    "fp32": {},
    "fp32-off": {"compile": "off"},
    "fp32-recompute": RECOMPUTE,
    "bf16-off": {"precision": "bf16", "compile": "off"},
    "bf16-recompute-off": {"precision": "bf16", "compile": "off"} | RECOMPUTE,
    "bf16": {"precision": "bf16"},
    "bf16-recompute": {"precision": "bf16"} | RECOMPUTE,
    "bf16-deterministic": {"precision": "bf16", "deterministic": True},
    "bf16-cudnn-benchmark": {"precision": "bf16", "cudnn": {"benchmark": True, "deterministic": False}},
    "bf16-compile": {"precision": "bf16"} | COMPILED,
    "bf16-recompute-compile": {"precision": "bf16"} | RECOMPUTE | COMPILED,
    "fp32-compile": COMPILED,
    "fp32-recompute-compile": RECOMPUTE | COMPILED,
}


class Waits(pl.Callback):
    """Counts synchronisations of the host with a GPU, as PyTorch reports them, from one batch's start to the next."""

    def __init__(self, number: int) -> None:
        self.number, self.watch, self.caught = number, contextlib.ExitStack(), []

    def on_train_batch_start(self, trainer, module, batch, index: int) -> None:
        if GPU and index == self.number:
            caught = self.watch.enter_context(warnings.catch_warnings(record=True))
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            self.seen = caught
        if GPU and index == self.number + 1:
            torch.cuda.set_sync_debug_mode("default")
            self.caught = [str(one.message) for one in self.seen if "synchroniz" in str(one.message)]
            self.watch.close()


def steps(args: argparse.Namespace) -> None:
    """Print a line per configuration, with ratios to the first that succeeded; steps.json contains all of them."""
    args.out.mkdir(parents=True, exist_ok=True)
    height, width = args.size
    what = f"{args.preset or args.encoder} {height}x{width}, {args.iters} iterations, batch {args.batch}"
    print(f"{what}; {device()}, torch {torch.__version__}; TF32 convolutions {torch.backends.cudnn.allow_tf32}")
    names = [name for name in CONFIGURATIONS if any(fnmatch(name, pattern) for pattern in args.only)]
    rows: dict[str, dict] = {}
    for name in names:
        rows[name] = in_process(args, name)
        first = next((row for row in rows.values() if "seconds" in row), {})
        print(step_line(name, rows[name], first, args.batch), flush=True)
        with atomic_path(args.out / "steps.json") as path:
            path.write_text(json.dumps({"what": what, "device": device(), "rows": rows}, indent=1) + "\n")


def step_line(name: str, row: dict, first: dict, batch: int) -> str:
    if "seconds" not in row:
        return f"{name:24} {row['failed']}"
    return (
        f"{name:24} {1000 * row['seconds']:8.1f} ms per step, {batch / row['seconds']:6.2f} pairs/s "
        f"({first['seconds'] / row['seconds']:.2f} x), peak {row['peak_gib']:6.2f} GiB "
        f"({row['peak_gib'] / first['peak_gib']:.2f} x), first step {row['first']:.1f} s, loss {row['loss']:.3f}, "
        f"{row['waits']} waits"
    )


def in_process(args: argparse.Namespace, name: str) -> dict:
    """Measure one configuration in its own process; returns the reason if it fails or exceeds the limit."""
    options = [f"--{key}={getattr(args, key)}" for key in ("encoder", "iters", "batch", "runs") if getattr(args, key)]
    options += [f"--preset={args.preset}"] if args.preset else []
    options += ["--size", *map(str, args.size), f"--part={name}", f"--out={args.out}"]
    command = [sys.executable, __file__, *options]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        output, errors = process.communicate(timeout=args.limit)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)  # also ends the compiler's processes
        process.communicate()
        return {"failed": f"not finished after {args.limit} s"}
    if process.returncode:
        (args.out / f"{name}.log").write_text(errors)
        lines = [line for line in errors.splitlines() if line.strip()] or [f"exit code {process.returncode}"]
        named = [line for line in lines if re.match(r"[\w.]*(Error|Exception|Unsupported)\b", line)]
        return {"failed": (named or lines)[-1][:300]}
    return json.loads(output.splitlines()[-1])


def measure(args: argparse.Namespace) -> dict:
    """Time steps of one configuration in this process."""
    model = MODEL | network(args) | {"train_iters": args.iters}
    settings = CONFIGURATIONS[args.part] | {"results_dir": str(args.out / "steps"), "num_epochs": 1, "optim": COLD}
    spec = ExperimentSpec.model_validate({"model": model, "dataset": DATASET, "train": settings})
    choose_kernels(spec.train, GPU)
    torch.manual_seed(0)
    net = from_spec(spec)
    tune(net, spec.train, Ranks(gpu=GPU), 1)
    batch = default_collate([sample(*args.size, seed) for seed in range(args.batch)])
    trainer = trainer_of(spec.train, Ranks(gpu=GPU), [clock := Clock(), waits := Waits(WARM + args.runs + 1)])
    trainer.fit(StereoModule(net, spec), DataLoader([batch] * (WARM + args.runs + 3), batch_size=None))
    return {
        "seconds": statistics.median(np.diff(clock.starts[: WARM + args.runs + 1])[WARM:]),
        "first": clock.starts[1] - clock.starts[0],
        "peak_gib": peak_gib(),
        "waits": len(waits.caught),
        "loss": float(trainer.callback_metrics["train_loss_step"]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    network_options(parser)
    parser.add_argument("--out", type=Path, default=Path("runs/steps"), help="folder for steps.json and logs")
    parser.add_argument("--size", type=int, nargs=2, default=[320, 736], metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--iters", type=int, default=22)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--runs", type=int, default=8, help=f"timed steps, after {WARM} warm-up steps")
    parser.add_argument("--only", nargs="+", default=["*"], help=f"patterns of {', '.join(CONFIGURATIONS)}")
    parser.add_argument("--limit", type=float, default=240, help="maximum seconds per configuration")
    parser.add_argument("--part", choices=tuple(CONFIGURATIONS), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.part:
        print(json.dumps(measure(args)))
    else:
        steps(args)


if __name__ == "__main__":
    main()
