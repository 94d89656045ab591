"""Evaluate the same benchmark pairs with a checkpoint and with engines built from it, and compare the EPE.

python benchmarks/accuracy_engines.py DATA CHECKPOINT [--iters 22] [--precisions fp32 fp16] [--opset 17] [--out DIR]

DATA contains published benchmark trees under their own names (KITTI_2012, KITTI_2015, Middlebury/2003,
Middlebury/MiddEval3, ETH3D, SceneFlow/FlyingThings3D); missing ones are skipped. One ONNX file with dynamic height and
width is used for every size. Engines run on ONNX Runtime, on a GPU if there is one.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

from stereo_core.run.perform import perform
from stereo_core.spec import spec_from_dict

# Folder below DATA -> dataset_name and the settings for convert.
TREES = {
    "KITTI_2012/training": ("Kitti", ["colored_0"], ["colored_1"], ["disp_occ"], [], ".png", ".png"),
    "KITTI_2015/training": ("Kitti", ["image_2"], ["image_3"], ["disp_occ_0"], [], "_10.png", "_10.png"),
    "Middlebury/2003": ("Middlebury", ["im2"], ["im6"], ["disp2"], [], ".png", ".png"),
    "Middlebury/MiddEval3": ("Middlebury", ["im0"], ["im1"], ["disp0GT"], ["mask0nocc"], ".png", ".pfm"),
    "ETH3D": (
        "Eth3d", ["im0", "two_view_training"], ["im1"], ["disp0GT", "two_view_training_gt"], [], ".png", ".pfm",
    ),
    "SceneFlow/FlyingThings3D": (
        "GenericDataset", ["frames_cleanpass", "/left/"], ["frames_cleanpass", "/right/"], ["disparity"], [], ".png",
        ".pfm",
    ),
}  # fmt: skip
SCALES = {"Middlebury/2003": 4.0}  # stored value of 1 px, for files that do not store it


def main() -> None:
    """Print a table with one row per pair and one column per model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("checkpoint")
    parser.add_argument("--iters", type=int, default=22)
    parser.add_argument("--precisions", nargs="+", default=["fp32"])
    parser.add_argument("--opset", type=int, default=17)
    parser.add_argument("--max-size", type=int, nargs=2, default=[576, 1344], metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--out", type=Path, default=Path("runs/engine_parity"))
    args = parser.parse_args()
    sources = [source for tree in TREES if (source := listed(args.data, tree, args.out))]
    columns = {"checkpoint": evaluated(args, sources, "checkpoint", checkpoint=args.checkpoint)}
    onnx = exported(args)
    for precision in args.precisions:
        engine = built(args, onnx, precision)
        columns[f"engine {precision}"] = evaluated(args, sources, precision, trt_engine=str(engine))
    show(columns)


def do(verb: str, tree: dict) -> None:
    if perform(verb, spec_from_dict(verb, tree)):
        sys.exit(f"{verb} failed")


def listed(data: Path, tree: str, out: Path) -> dict | None:
    """The data source of one tree, or None if the tree is missing."""
    if not (data / tree).is_dir():
        return None
    name, *patterns, image_extension, depth_extension = TREES[tree]
    keys = ("image_dir_pattern", "right_dir_pattern", "depth_dir_pattern", "nocc_dir_pattern")
    folder = out / "lists" / tree.replace("/", "_")
    spec = dict(zip(keys, patterns, strict=True)) | {"data_root": str(data / tree), "results_dir": str(folder)}
    extensions = {"image_extension": image_extension, "depth_extension": depth_extension, "nocc_extension": ".png"}
    do("convert", spec | extensions)
    scale = {"disparity_scale": SCALES[tree]} if tree in SCALES else {}
    return {"dataset_name": name, "data_file": str(folder / "test.txt")} | scale


def evaluated(args: argparse.Namespace, sources: list[dict], name: str, **model: str) -> dict[str, dict]:
    """Left image -> its row of metrics.csv; the totals under "mean"."""
    folder = args.out / name
    tree = {
        "dataset": {"test_dataset": {"data_sources": sources, "batch_size": 1}},
        "evaluate": {"results_dir": str(folder), **model},
        "model": {"valid_iters": args.iters} if "checkpoint" in model else {},
    }
    do("evaluate", tree)
    with (folder / "metrics.csv").open() as file:
        rows = {row["path"]: row for row in csv.DictReader(file)}
    return rows | {"mean": json.loads((folder / "results.json").read_text())}


def exported(args: argparse.Namespace) -> Path:
    onnx = args.out / "model.onnx"
    keys = {"checkpoint": args.checkpoint, "onnx_file": str(onnx), "dynamic_hw": True, "valid_iters": args.iters}
    # The evaluations are the check, so export and build skip theirs.
    size = {"input_height": 320, "input_width": 736, "opset_version": args.opset, "check": False}
    do("export", {"results_dir": str(args.out), "export": keys | size})
    return onnx


def built(args: argparse.Namespace, onnx: Path, precision: str) -> Path:
    engine = args.out / f"{precision}.ort.onnx"
    height, width = args.max_size
    profile = {"min_height": 320, "opt_height": 384, "max_height": height}
    profile |= {"min_width": 448, "opt_width": 1248, "max_width": width}
    files = {"onnx_file": str(onnx), "trt_engine": str(engine), "backend": "onnxruntime", "verify": False}
    tree = files | profile | {"tensorrt": {"data_type": precision}}
    do("gen_trt_engine", {"results_dir": str(args.out), "gen_trt_engine": tree})
    return engine


def show(columns: dict[str, dict]) -> None:
    table = Table("pair", *(f"EPE {name}" for name in columns), *(f"|EPE {n} - checkpoint|" for n in list(columns)[1:]))
    for path in next(iter(columns.values())):
        epe = [float(rows[path]["epe"]) for rows in columns.values()]
        name = "/".join(Path(path).parts[-4:])
        table.add_row(name, *(f"{e:.4f}" for e in epe), *(f"{abs(e - epe[0]):.5f}" for e in epe[1:]))
    median = [rows["mean"].get("latency_median_ms") for rows in columns.values()]
    table.add_row("median latency, ms", *(f"{m:.1f}" if m else "" for m in median))
    Console(width=160).print(table)


if __name__ == "__main__":
    main()
