"""Output of benchmarks/learning.py: the curves of a training, a table, a picture."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from common import device, say
from learning_tasks import Task
from rich.console import Console
from rich.table import Table

from stereo_core.files import atomic_path


def status(folder: Path) -> list[dict]:
    """The complete lines of a status.json; none if there is no file yet."""
    path = folder / "status.json"
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


def curves_of(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """(step, value) of every epoch's mean loss and of every validation; step 0 is the validation before training."""
    loss, epe, waiting, step = [], [], None, 0
    for line in status(folder):
        kpi = line.get("kpi", {})
        if line["message"] == "Eval metrics generated before training.":
            epe.append((0, kpi["epe"]))
        elif line["message"] == "Eval metrics generated.":
            waiting = kpi["epe"]  # the next line has its step
        elif "step" in line:
            step = line["step"]
            epe += [(step, waiting)] if waiting is not None else []
            waiting = None
        elif "train_loss" in kpi and line["status"] == "RUNNING":
            loss.append((step, kpi["train_loss"]))
    return {"loss": loss, "epe": epe}


def save(args: argparse.Namespace, tasks: list[Task]) -> None:
    """Write results.json: the device, the options and the results so far."""
    options = {name: str(value) if isinstance(value, Path) else value for name, value in vars(args).items()}
    results = {"device": device(), "torch": torch.__version__, "options": options, "rows": [t.row for t in tasks]}
    with atomic_path(args.out / "results.json") as path:
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
    """Draw curves.png from results.json: one column per training, the loss above the EPE."""
    try:
        import matplotlib
    except ImportError:
        say(f"matplotlib is missing, so curves.png is not drawn; install it and run learning.py --plot --out {out}")
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
