"""Compare convert with a bare recursive scandir of the same tree in a warm cache.

python benchmarks/speed_convert.py [--files 1000000] [--layout frames|flat|scenes] [--runs 3] [--folder FOLDER]

It creates a tree of empty files, four per sample (left, right, disparity, mask), in one of three layouts: `frames` as
FSD, 500 samples per scene in four folders; `flat` as KITTI, four folders in total; `scenes` as Middlebury, a folder per
sample. Then it times alternately, each in its own process, a recursive scandir that only counts, and convert with all
derived files checked. Aims: at most 5 times the scandir, at most 1 KB of peak memory per kept sample.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

FRAMES = 500
PATTERNS = {
    "frames": (["left/rgb"], ["right/rgb"], ["left/disparity"], ["left/nocc"]),
    "flat": (["image_2"], ["image_3"], ["disp_occ_0"], ["mask_0"]),
    "scenes": (["im0"], ["im1"], ["disp0GT"], ["mask0nocc"]),
}


def sample_paths(layout: str, number: int) -> list[str]:
    """The four files of one sample, below the root."""
    if layout == "frames":
        folder, name = f"scene_{number // FRAMES:05d}/dataset/data", f"{number % FRAMES:06d}.png"
        return [f"{folder}/{part}/{name}" for part in ("left/rgb", "right/rgb", "left/disparity", "left/nocc")]
    if layout == "flat":
        return [f"training/{part}/{number:06d}_10.png" for part in ("image_2", "image_3", "disp_occ_0", "mask_0")]
    return [f"trainingQ/scene_{number:06d}/{name}.png" for name in ("im0", "im1", "disp0GT", "mask0nocc")]


def make_tree(root: str, layout: str, samples: int) -> None:
    made = set()
    for number in range(samples):
        for path in sample_paths(layout, number):
            folder = os.path.join(root, os.path.dirname(path))
            if folder not in made:
                os.makedirs(folder, exist_ok=True)
                made.add(folder)
            os.close(os.open(os.path.join(root, path), os.O_CREAT | os.O_WRONLY))


def measure_scandir(root: str) -> dict[str, float]:
    def count(folder: str) -> int:
        files = 0
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    files += count(entry.path)
                else:
                    files += 1
        return files

    start = time.perf_counter()
    files = count(root)
    return {"seconds": time.perf_counter() - start, "files": files}


def measure_convert(root: str, layout: str) -> dict[str, float]:
    from stereo_core.actions.convert import run
    from stereo_core.spec import spec_from_dict

    keys = ("image_dir_pattern", "right_dir_pattern", "depth_dir_pattern", "nocc_dir_pattern")
    extensions = dict.fromkeys(("image_extension", "depth_extension", "nocc_extension"), ".png")
    with tempfile.TemporaryDirectory() as results:
        tree = {"data_root": root, "results_dir": results, "split_ratio": 0.9, "strict": True, **extensions}
        spec = spec_from_dict("convert", tree | dict(zip(keys, PATTERNS[layout], strict=True)))
        before, start = _peak(), time.perf_counter()
        run(spec, None)
        seconds, peak = time.perf_counter() - start, _peak()
        samples = sum(len((Path(results) / name).read_text().splitlines()) for name in ("train.txt", "val.txt"))
        return {"seconds": seconds, "samples": samples, "bytes": peak - before}


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def measure(what: str, root: str, layout: str) -> dict[str, float]:
    """Run one measurement in a fresh process."""
    command = [sys.executable, __file__, "--measure", what, "--folder", root, "--layout", layout]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=1_000_000)
    parser.add_argument("--layout", choices=PATTERNS, default="frames")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--folder", default=None, help="where the tree is created; it is removed afterwards")
    parser.add_argument("--measure", choices=("scandir", "convert"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure == "scandir":
        print(json.dumps(measure_scandir(options.folder)))
        return
    if options.measure == "convert":
        print(json.dumps(measure_convert(options.folder, options.layout)))
        return

    with tempfile.TemporaryDirectory(dir=options.folder) as root:
        make_tree(root, options.layout, options.files // 4)
        measure("scandir", root, options.layout)  # fills the file system's cache
        scans, converts = [], []
        for _ in range(options.runs):
            scans.append(measure("scandir", root, options.layout))
            converts.append(measure("convert", root, options.layout))
        files, samples = scans[0]["files"], converts[0]["samples"]
        scan, convert = (min(run["seconds"] for run in runs) for runs in (scans, converts))
        memory = max(run["bytes"] for run in converts) / samples
        print(f"layout {options.layout}: {files} files, {samples} samples, best of {options.runs}")
        print(f"bare scandir {scan:.2f} s, convert {convert:.2f} s: {convert / scan:.2f} times (aim: 5)")
        print(f"peak memory {memory:.0f} bytes per sample (aim: 1024)")


if __name__ == "__main__":
    main()
