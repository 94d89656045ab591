"""Compare one GPU with two: equal gradients, and the speed-up by the second.

python benchmarks/speed_several_gpus.py [--seconds 230] [--processes 2]
    The first part checks that both give the same result: the tiny network in float64 with active batch normalisation,
    five steps with SGD, one process with a double batch against several with SyncBatchNorm (ddp and fsdp). The second
    part times a step of vits at 320x736 with the same batch per process: median of the warm steps, pairs per second,
    peak memory of a GPU, and the share of the ideal speed-up. Results are printed and saved to OUT/several_gpus.json as
    they arrive.

Each number of processes runs as a separate command, which is killed at its time limit. Without GPUs everything runs on
the CPU (use `--preset tiny --size 64 96`); there is no SyncBatchNorm there, so the first part is skipped.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch
from common import COLD, DATASET, GPU, MODEL, WARM, Clock, device, network, network_options, peak_gib, sample
from torch.utils.data import DataLoader, default_collate

from stereo_core.models import create_model, from_spec
from stereo_core.run.outcome import Outcome
from stereo_core.run.ranks import in_ranks
from stereo_core.run.status import StatusLog
from stereo_core.spec import ExperimentSpec
from stereo_core.training.distribution import Ranks, joined
from stereo_core.training.module import StereoModule
from stereo_core.training.strategy import whole
from stereo_core.training.trainer import quieten, trainer_of, tune

PRECISIONS = ("bf16", "fp32")
STEPS, SIZE = 5, (64, 96)  # steps and image size of the comparison


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--seconds", type=float, default=230, help="time limit of the whole run; later parts are left out"
    )
    parser.add_argument("--processes", type=int, default=2, help="GPUs")
    network_options(parser)
    parser.add_argument("--size", type=int, nargs=2, default=[320, 736], metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--iters", type=int, default=22)
    parser.add_argument("--batch", type=int, default=4, help="batch of each process")
    parser.add_argument("--runs", type=int, default=8, help="timed steps, after 3 warm-up steps")
    parser.add_argument("--out", type=Path, default=Path("runs/several_gpus"))
    parser.add_argument("--part", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.out = args.out.resolve()
    args.out.mkdir(parents=True, exist_ok=True)
    if args.part:
        in_ranks(work, args, StatusLog(None), Ranks(tuple(range(args.part)) if GPU else (0,) * args.part, GPU))
        return
    if GPU and torch.cuda.device_count() < args.processes:
        sys.exit(f"{args.processes} GPUs are needed, but this machine has {torch.cuda.device_count()}")
    begin = time.monotonic()
    what = f"{args.preset or args.encoder} {args.size[0]}x{args.size[1]}, {args.iters} iterations, "
    print(f"{what}batch {args.batch} per process; {device()}, torch {torch.__version__}", flush=True)
    for old in args.out.glob("*.json*"):
        old.unlink()
    failed = [part for part in (1, args.processes) if not in_time(args, part, begin)]
    rows = read_rows(args.out)
    if {"check 1"} < rows.keys():
        compare(args.out, rows)
    show(rows, args)
    (args.out / "several_gpus.json").write_text(json.dumps({"what": what, "rows": rows}, indent=1) + "\n")
    sys.exit(f"the runs with {failed} processes failed; the results are incomplete" if failed else 0)


def in_time(args: argparse.Namespace, part: int, begin: float) -> bool:
    """Run this script with a number of processes; the first number gets half of the remaining time."""
    left = args.seconds - (time.monotonic() - begin)
    process = subprocess.Popen([sys.executable, __file__, *sys.argv[1:], f"--part={part}"], start_new_session=True)
    try:
        return process.wait(left / 2 if part == 1 else left) == 0
    except subprocess.TimeoutExpired:
        print(f"{part} processes: stopped at the time limit", flush=True)
        return False
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)


def read_rows(out: Path) -> dict[str, dict]:
    return {row["name"]: row for path in sorted(out.glob("*.jsonl")) for row in map(json.loads, path.open())}


def compare(out: Path, rows: dict[str, dict]) -> None:
    """Compare weights and running statistics with those of the single process."""
    one = torch.load(out / "check 1.pth", weights_only=True)
    for name in [name for name in rows if name.startswith("check") and name != "check 1"]:
        other = torch.load(out / f"{name}.pth", weights_only=True)
        far = max(float((other[key].double() - value.double()).abs().max()) for key, value in one.items())
        rows[name]["difference"] = far
        print(f"{name:16} weights and statistics differ by {far:.1e} from one process after {STEPS} steps: "
              f"{'the same' if far < 1e-9 else 'NOT THE SAME'}")  # fmt: skip


def show(rows: dict[str, dict], args: argparse.Namespace) -> None:
    for name, row in rows.items():
        if "seconds" not in row:
            continue
        pairs = args.batch * row["ranks"] / row["seconds"]
        line = f"{name:16} {1000 * row['seconds']:8.1f} ms per step, {pairs:6.2f} pairs/s, {row['peak_gib']:6.2f} GiB"
        alone = rows.get(f"{row['precision']} 1")
        if alone and row["ranks"] > 1:
            row["efficiency"] = alone["seconds"] / row["seconds"]
            line += f" ({row['peak_gib'] / alone['peak_gib']:.2f} x); {row['efficiency']:.0%} of the ideal speed-up"
        print(line)


# ---- in each process


def work(args: argparse.Namespace, _: StatusLog, ranks: Ranks) -> Outcome:
    quieten()
    strategies = ("",) if ranks.world == 1 else ("ddp", "fsdp")
    with joined(ranks):
        for name in strategies if GPU else ():
            check(args, ranks, name)
        for precision in PRECISIONS:
            for name in strategies:
                row = measure(args, ranks, precision, name)
                note(args, ranks, {"name": f"{precision} {ranks.world} {name}".strip(), "precision": precision} | row)
    return Outcome("")


def note(args: argparse.Namespace, ranks: Ranks, row: dict) -> None:
    if ranks.rank == 0:
        with (args.out / f"{ranks.world}.jsonl").open("a") as file:
            file.write(json.dumps(row | {"ranks": ranks.world}) + "\n")
        print(json.dumps(row), flush=True)


def check(args: argparse.Namespace, ranks: Ranks, name: str) -> None:
    """A few steps in float64 on two images, one per process or both in this one; rank 0 writes the weights."""
    torch.manual_seed(0)
    net = create_model(preset="tiny", train_iters=2).double()
    for layer in net.modules():
        if isinstance(layer, torch.nn.Dropout):  # every rank would draw its own mask
            layer.eval()
    batches = []
    for step in range(STEPS):
        images = [sample(*SIZE, 2 * step + number) for number in range(2)]
        images[1]["valid"] &= images[1]["disparity"] > 4  # the two have different numbers of valid pixels
        batches.append(double(default_collate(images if ranks.world == 1 else [images[ranks.rank % 2]])))
    sgd = {"optimizer": "SGD", "lr": 1e-2, "warmup_steps": 0}
    settings = {"optim": sgd, "results_dir": str(args.out), "num_epochs": 1} | named(name)
    fit(net, ExperimentSpec.model_validate({"dataset": DATASET, "train": settings}), ranks, batches, [])
    weights = {key: whole(value).cpu() for key, value in net.state_dict().items()}
    title = f"check {ranks.world} {name}".strip()
    if ranks.rank == 0:
        torch.save(weights, args.out / f"{title}.pth")
    note(args, ranks, {"name": title})


def named(strategy_name: str) -> dict[str, str]:
    return {"distributed_strategy": strategy_name} if strategy_name else {}


def double(batch: dict) -> dict:
    return {key: value.double() if value.__class__ is torch.Tensor and value.is_floating_point() else value
            for key, value in batch.items()}  # fmt: skip


def measure(args: argparse.Namespace, ranks: Ranks, precision: str, name: str) -> dict:
    """Time steps of the chosen network."""
    model = MODEL | network(args) | {"train_iters": args.iters}
    settings = {"precision": precision, "results_dir": str(args.out), "num_epochs": 1, "optim": COLD} | named(name)
    spec = ExperimentSpec.model_validate({"model": model, "dataset": DATASET, "train": settings})
    torch.manual_seed(0)
    gc.collect()
    if GPU:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    batch = default_collate([sample(*args.size, args.batch * ranks.rank + n) for n in range(args.batch)])
    fit(from_spec(spec), spec, ranks, [batch] * (WARM + args.runs + 1), [clock := Clock()])
    return {"seconds": statistics.median(np.diff(clock.starts)[WARM:]), "peak_gib": peak_gib()}


def fit(net, spec, ranks: Ranks, batches: list, callbacks: list) -> None:
    """Train with the setup of `train`, without loggers and checkpoints."""
    tune(net, spec.train, ranks, 1)
    trainer = trainer_of(spec.train, ranks, callbacks)
    trainer.fit(StereoModule(net, spec), DataLoader(batches, batch_size=None))


if __name__ == "__main__":
    main()
