"""Times of the log lines of `depth_net evaluate` and `inference`, in seconds from the start of the process.

python benchmarks/speed_first_pair.py CHECKPOINT ANNOTATIONS [--verb evaluate] [--dataset-name Kitti] [--runs 2]

Only the last run is printed; the runs before it fill the disk caches.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time

SPLITS = {"evaluate": "test_dataset", "inference": "infer_dataset"}


def main() -> None:
    """Print the seconds of each log line and of the end."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint")
    parser.add_argument("annotations")
    parser.add_argument("--verb", choices=tuple(SPLITS), default="evaluate")
    parser.add_argument("--dataset-name", default="Kitti")
    parser.add_argument("--workers", type=int, default=8)
    parser.add_argument("--runs", type=int, default=2)
    args = parser.parse_args()
    for _ in range(args.runs):
        lines = seconds_of_lines(args)
    for seconds, line in lines:
        print(f"{seconds:7.2f}  {line}")


def seconds_of_lines(args: argparse.Namespace) -> list[tuple[float, str]]:
    split = f"dataset.{SPLITS[args.verb]}"
    source = f"[{{data_file: {os.path.abspath(args.annotations)}, dataset_name: {args.dataset_name}}}]"
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "stereo_core.cli", args.verb, f"results_dir={folder}"]
        command += [f"{args.verb}.checkpoint={args.checkpoint}", f"{split}.data_sources={source}"]
        command += [f"{split}.workers={args.workers}", f"{split}.batch_size=1"]
        start = time.perf_counter()
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        lines = [(time.perf_counter() - start, line.rstrip()) for line in process.stdout]
        if process.wait():
            raise SystemExit("\n".join(line for _, line in lines))
    return [*lines, (time.perf_counter() - start, "the process has ended")]


if __name__ == "__main__":
    main()
