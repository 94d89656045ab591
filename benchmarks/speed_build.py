"""Building an engine: time, peak memory and size, for the given sizes and precisions.

python benchmarks/speed_build.py [--network vits] [--iters 22] [--sizes 320x736 576x960] [--precisions fp32 fp16]
    [--backend tensorrt_rtx] [--capability 8.6]

Random weights. Export and build run as separate processes, so that their peaks are separate; all precisions of a size
use the same ONNX file.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import networks
from rich.console import Console
from rich.table import Table

from stereo_core.models import save_checkpoint

MIB, GIB = 2**20, 2**30


def main() -> None:
    """Print a row per file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", choices=tuple(networks.NETWORKS), default="vits")
    parser.add_argument("--max-disparity", type=int, help="default: the network's")
    parser.add_argument("--iters", type=int, default=22)
    parser.add_argument("--sizes", nargs="+", default=["320x736", "576x960"])
    parser.add_argument("--precisions", nargs="+", default=["fp32", "fp16"])
    parser.add_argument("--backend", default="tensorrt_rtx")
    parser.add_argument("--capability", default="8.6")
    args = parser.parse_args()
    table = Table("file", "size", "seconds", "peak GiB", "MiB on disk")
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = Path(folder) / "model.pth"
        save_checkpoint(networks.made(args.network, args.max_disparity), checkpoint)
        for size in args.sizes:
            onnx = Path(folder) / f"{size}.onnx"
            height, width = size.split("x")
            keys = {"checkpoint": checkpoint, "onnx_file": onnx, "input_height": height, "input_width": width}
            keys |= {"batch_size": 1, "valid_iters": args.iters, "check": "false", "on_cpu": "true"}
            table.add_row(f"ONNX, {args.iters} iterations", size, *measured("export", keys, folder, onnx))
            for precision in args.precisions:
                engine = Path(folder) / f"{size}.{precision}.engine"
                keys = {"onnx_file": onnx, "trt_engine": engine, "backend": args.backend, "verify": "false"}
                keys |= {"tensorrt.data_type": precision}
                if args.backend == "tensorrt_rtx":
                    keys |= {"compute_capabilities": f"[{args.capability}]"}
                table.add_row(f"{args.backend} {precision}", size, *measured("gen_trt_engine", keys, folder, engine))
    Console(width=100).print(table)


def measured(verb: str, keys: dict, folder: str, made: Path) -> tuple[str, str, str]:
    """Seconds, peak memory in GiB and size in MiB of a verb run as a process."""
    arguments = [f"{verb}.{key}={value}" for key, value in keys.items()]
    command = [sys.executable, "-m", "stereo_core.cli", verb, *arguments, f"results_dir={folder}"]
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    if status:
        sys.exit(f"{verb} failed")
    return f"{seconds:.0f}", f"{usage.ru_maxrss * 1024 / GIB:.2f}", f"{made.stat().st_size / MIB:.0f}"


if __name__ == "__main__":
    main()
