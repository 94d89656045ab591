"""Start-up times of commands and their actions, compared with a bare interpreter and with `import torch`.

python benchmarks/speed_startup.py [--runs 7]
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time

COMMANDS = {
    "python -c pass": ["-c", "pass"],
    "depth_net --help": ["-m", "stereo_core.cli", "--help"],
    "depth_net convert --help": ["-m", "stereo_core.cli", "convert", "--help"],
    "depth_net schema train": ["-m", "stereo_core.cli", "schema", "train"],
    "python -c 'import torch'": ["-c", "import torch"],
} | {
    f"import ...actions.{action}": ["-c", f"import stereo_core.actions.{action}"]
    for action in ("convert", "report", "gen_trt_engine", "export", "inference", "evaluate", "automl", "train")
}


def median_seconds(arguments: list[str], runs: int) -> float:
    """Median wall time of `runs` warm starts of this interpreter."""
    times = []
    for _ in range(runs + 1):
        start = time.perf_counter()
        subprocess.run([sys.executable, *arguments], check=True, capture_output=True)
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


def main() -> None:
    """Print one line per command: median seconds and the ratio to `import torch`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=7, help="timed starts, after an untimed one")
    args = parser.parse_args()
    medians = {name: median_seconds(arguments, args.runs) for name, arguments in COMMANDS.items()}
    reference = medians["python -c 'import torch'"]
    for name, seconds in medians.items():
        print(f"{name:28s} {seconds * 1000:7.0f} ms   {seconds / reference:5.2f} x import torch")


if __name__ == "__main__":
    main()
