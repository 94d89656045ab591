"""One GPU against two: the same gradients, and what the second is worth.

python benchmarks/speed_several_gpus.py [--seconds 230] [--processes 2]
    First, that they do the same: the tiny network in float64 with batch normalisation at work, five steps with SGD, one
    process with a double batch against several with SyncBatchNorm (ddp and fsdp). Then what a step of vits at 320x736
    takes, every process with the same batch as the one alone: median of the warm steps, pairs a second, peak memory of
    a GPU, and the share of the ideal speed-up. Each line is printed, and kept in OUT/several_gpus.json, as it is done.

Every number of processes has one command of its own, which is killed when its time is over. Without GPUs it all runs on
the CPU (`--preset tiny --size 64 96` then), where SyncBatchNorm is not there and the first part is skipped.
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
from common import COLD, GPU, MODEL, WARM, Clock, device, network, network_options, peak_gib, sample
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
STEPS, SIZE = 5, (64, 96)  # of the comparison


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=230, help="all in all; what is not done by then is left out")
    parser.add_argument("--processes", type=int, default=2, help="GPUs")
    network_options(parser)
    parser.add_argument("--size", type=int, nargs=2, default=[320, 736], metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--iters", type=int, default=22)
    parser.add_argument("--batch", type=int, default=4, help="of each process")
    parser.add_argument("--runs", type=int, default=8, help="steps timed, after 3 warm ones")
    parser.add_argument("--out", type=Path, default=Path("runs/several_gpus"))
    parser.add_argument("--part", type=int, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    asked.out = asked.out.resolve()
    asked.out.mkdir(parents=True, exist_ok=True)
    if asked.part:
        in_ranks(work, asked, StatusLog(None), Ranks(tuple(range(asked.part)) if GPU else (0,) * asked.part, GPU))
        return
    if GPU and torch.cuda.device_count() < asked.processes:
        sys.exit(f"{asked.processes} GPUs are needed, {torch.cuda.device_count()} are here")
    begin = time.monotonic()
    what = f"{asked.preset or asked.encoder} {asked.size[0]}x{asked.size[1]}, {asked.iters} iterations, "
    print(f"{what}batch {asked.batch} a process; {device()}, torch {torch.__version__}", flush=True)
    for old in asked.out.glob("*.json*"):
        old.unlink()
    failed = [part for part in (1, asked.processes) if not in_time(asked, part, begin)]
    rows = read_rows(asked.out)
    if {"check 1"} < rows.keys():
        compare(asked.out, rows)
    show(rows, asked)
    (asked.out / "several_gpus.json").write_text(json.dumps({"what": what, "rows": rows}, indent=1) + "\n")
    sys.exit(f"{failed} processes: not all was measured" if failed else 0)


def in_time(asked: argparse.Namespace, part: int, begin: float) -> bool:
    """Run this script with a number of processes; half of the time that is left is for the first number."""
    left = asked.seconds - (time.monotonic() - begin)
    process = subprocess.Popen([sys.executable, __file__, *sys.argv[1:], f"--part={part}"], start_new_session=True)
    try:
        return process.wait(left / 2 if part == 1 else left) == 0
    except subprocess.TimeoutExpired:
        print(f"{part} processes: stopped, the time is over", flush=True)
        return False
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)


def read_rows(out: Path) -> dict[str, dict]:
    return {row["name"]: row for path in sorted(out.glob("*.jsonl")) for row in map(json.loads, path.open())}


def compare(out: Path, rows: dict[str, dict]) -> None:
    """How far weights and running statistics are from those of the one process."""
    one = torch.load(out / "check 1.pth", weights_only=True)
    for name in [name for name in rows if name.startswith("check") and name != "check 1"]:
        other = torch.load(out / f"{name}.pth", weights_only=True)
        far = max(float((other[key].double() - value.double()).abs().max()) for key, value in one.items())
        rows[name]["difference"] = far
        print(f"{name:16} weights and statistics differ by {far:.1e} from one process after {STEPS} steps: "
              f"{'the same' if far < 1e-9 else 'NOT THE SAME'}")  # fmt: skip


def show(rows: dict[str, dict], asked: argparse.Namespace) -> None:
    for name, row in rows.items():
        if "seconds" not in row:
            continue
        pairs = asked.batch * row["ranks"] / row["seconds"]
        line = f"{name:16} {1000 * row['seconds']:8.1f} ms a step, {pairs:6.2f} pairs/s, {row['peak_gib']:6.2f} GiB"
        alone = rows.get(f"{row['precision']} 1")
        if alone and row["ranks"] > 1:
            row["efficiency"] = alone["seconds"] / row["seconds"]
            line += f" ({row['peak_gib'] / alone['peak_gib']:.2f} x); {row['efficiency']:.0%} of the ideal speed-up"
        print(line)


# ---- in each process


def work(asked: argparse.Namespace, _: StatusLog, ranks: Ranks) -> Outcome:
    quieten()
    strategies = ("",) if ranks.world == 1 else ("ddp", "fsdp")
    with joined(ranks):
        for name in strategies if GPU else ():
            check(asked, ranks, name)
        for precision in PRECISIONS:
            for name in strategies:
                row = measure(asked, ranks, precision, name)
                note(asked, ranks, {"name": f"{precision} {ranks.world} {name}".strip(), "precision": precision} | row)
    return Outcome("")


def note(asked: argparse.Namespace, ranks: Ranks, row: dict) -> None:
    if ranks.rank == 0:
        with (asked.out / f"{ranks.world}.jsonl").open("a") as file:
            file.write(json.dumps(row | {"ranks": ranks.world}) + "\n")
        print(json.dumps(row), flush=True)


def check(asked: argparse.Namespace, ranks: Ranks, name: str) -> None:
    """A few steps in float64 on two images each, one a process or both in this one; rank 0 writes the weights."""
    torch.manual_seed(0)
    net = create_model(preset="tiny", train_iters=2).double()
    for layer in net.modules():
        if isinstance(layer, torch.nn.Dropout):  # it is drawn anew on every rank
            layer.eval()
    batches = []
    for step in range(STEPS):
        images = [sample(*SIZE, 2 * step + number) for number in range(2)]
        images[1]["valid"] &= images[1]["disparity"] > 4  # the two have different numbers of valid pixels
        batches.append(double(default_collate(images if ranks.world == 1 else [images[ranks.rank % 2]])))
    sgd = {"optimizer": "SGD", "lr": 1e-2, "warmup_steps": 0}
    settings = {"optim": sgd, "results_dir": str(asked.out), "num_epochs": 1} | named(name)
    fit(net, ExperimentSpec.model_validate({"train": settings}), ranks, batches, [])
    weights = {key: whole(value).cpu() for key, value in net.state_dict().items()}
    title = f"check {ranks.world} {name}".strip()
    if ranks.rank == 0:
        torch.save(weights, asked.out / f"{title}.pth")
    note(asked, ranks, {"name": title})


def named(strategy_name: str) -> dict[str, str]:
    return {"distributed_strategy": strategy_name} if strategy_name else {}


def double(batch: dict) -> dict:
    return {key: value.double() if value.__class__ is torch.Tensor and value.is_floating_point() else value
            for key, value in batch.items()}  # fmt: skip


def measure(asked: argparse.Namespace, ranks: Ranks, precision: str, name: str) -> dict:
    """Steps of the network that was asked for."""
    model = MODEL | network(asked) | {"train_iters": asked.iters}
    settings = {"precision": precision, "results_dir": str(asked.out), "num_epochs": 1, "optim": COLD} | named(name)
    spec = ExperimentSpec.model_validate({"model": model, "train": settings})
    torch.manual_seed(0)
    gc.collect()
    if GPU:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    batch = default_collate([sample(*asked.size, asked.batch * ranks.rank + n) for n in range(asked.batch)])
    fit(from_spec(spec), spec, ranks, [batch] * (WARM + asked.runs + 1), [clock := Clock()])
    return {"seconds": statistics.median(np.diff(clock.starts)[WARM:]), "peak_gib": peak_gib()}


def fit(net, spec, ranks: Ranks, batches: list, callbacks: list) -> None:
    """As `train` sets it up; no logger, no checkpoints."""
    tune(net, spec.train, ranks)
    trainer = trainer_of(spec.train, ranks, callbacks)
    trainer.fit(StereoModule(net, spec), DataLoader(batches, batch_size=None))


if __name__ == "__main__":
    main()
