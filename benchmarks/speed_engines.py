"""An ONNX Runtime engine against PyTorch eager: the same weights, pair and number of threads, in one run.

python benchmarks/speed_engines.py [--device cpu|cuda] [--network vits] [--precisions fp32 fp16] [--size 320 736]
    [--iters 4]

Random weights, a synthetic pair. Each runs in a process of its own, so that its peak memory is its own: that of the
process on the CPU, that of the GPU's driver on CUDA. Times are medians of warm runs. Eager fp16 is autocast.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import networks
import numpy as np

from stereo_core.data.synthetic.planes import make_scene


def main() -> None:
    """Print a line for eager fp32, one for eager fp16 on a GPU, and one for each engine."""
    asked = arguments()
    if asked.part:
        print(json.dumps(PARTS[asked.part](asked)))
        return
    with tempfile.TemporaryDirectory() as folder:
        asked.folder = folder
        report(asked)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--precisions", nargs="+", choices=("fp32", "fp16"), default=["fp32"], help="of the engines")
    parser.add_argument("--network", choices=tuple(networks.NETWORKS), default="vits")
    parser.add_argument("--size", type=int, nargs=2, default=(320, 736), metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--iters", type=int, default=4)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--part", choices=tuple(PARTS), help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    return parser.parse_args()


def report(asked: argparse.Namespace) -> None:
    in_process(asked, "build")
    height, width = asked.size
    print(f"{asked.network} {height}x{width}, {asked.iters} iterations, {asked.device}, {asked.threads} threads")
    eager = {name: in_process(asked, name) for name in ("eager_fp32", "eager_fp16") if name in parts_on(asked.device)}
    measured = eager | {f"engine_{p}": in_process(asked, f"engine_{p}") for p in asked.precisions}
    reference = np.load(Path(asked.folder) / "eager_fp32.npy")
    for name, (milliseconds, memory) in measured.items():
        difference = np.abs(np.load(Path(asked.folder) / f"{name}.npy") - reference).mean()
        ratios = ", ".join(f"{values[0] / milliseconds:.2f} x {other}" for other, values in eager.items())
        print(f"{name}: {milliseconds:8.1f} ms ({ratios}), peak {memory:.2f} GiB, {difference:.2g} px from eager_fp32")


def parts_on(device: str) -> tuple[str, ...]:
    return ("eager_fp32", "eager_fp16") if device == "cuda" else ("eager_fp32",)


def in_process(asked: argparse.Namespace, part: str) -> list[float]:
    """Run one part in its own process; returns what it printed on its last line."""
    options = [f"--{name}={getattr(asked, name)}" for name in ("device", "network", "iters", "runs")]
    options += ["--precisions", *asked.precisions, "--size", *map(str, asked.size)]
    options += [f"--part={part}", f"--folder={asked.folder}"]
    environment = os.environ | {"OMP_NUM_THREADS": str(asked.threads)}
    command = [sys.executable, __file__, *options]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment)
    return json.loads(done.stdout.splitlines()[-1])


def build(asked: argparse.Namespace) -> None:
    """Write the checkpoint and the engines."""
    from stereo_core.engines import BuildSettings, build_engine
    from stereo_core.models import save_checkpoint
    from stereo_core.run.perform import perform
    from stereo_core.spec import spec_from_dict

    folder = Path(asked.folder)
    save_checkpoint(networks.made(asked.network), folder / "model.pth")
    export = {"checkpoint": str(folder / "model.pth"), "onnx_file": str(folder / "model.onnx"), "on_cpu": True}
    export |= {"input_height": asked.size[0], "input_width": asked.size[1], "valid_iters": asked.iters}
    export |= {"batch_size": 1, "check": False, "results_dir": str(folder)}
    if perform("export", spec_from_dict("export", {"export": export})):
        raise SystemExit("the export failed")
    for precision in asked.precisions:
        settings = BuildSettings(backend="onnxruntime", precision=precision, verify=False)
        build_engine(folder / "model.onnx", folder / f"{precision}.ort.onnx", settings)


def eager(asked: argparse.Namespace, half: bool) -> tuple[float, float]:
    import torch

    from stereo_core.models import load_model

    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    before = gpu_gib(asked.device)
    model = load_model(Path(asked.folder) / "model.pth").eval().to(asked.device)
    pair = [torch.from_numpy(image).permute(2, 0, 1)[None] for image in images(asked)]

    def call() -> np.ndarray:
        with torch.inference_mode(), torch.autocast("cuda", torch.float16, enabled=half):
            left, right = (x.to(asked.device).float() for x in pair)
            return model(left, right, iters=asked.iters)[0, 0].float().cpu().numpy()

    return measure(asked, call, before, "eager_fp16" if half else "eager_fp32")


def engine(asked: argparse.Namespace, precision: str) -> tuple[float, float]:
    from stereo_core.engines import load_engine

    before = gpu_gib(asked.device)
    loaded = load_engine(Path(asked.folder) / f"{precision}.ort.onnx", asked.device)
    left, right = images(asked)
    return measure(asked, lambda: loaded.infer(left, right), before, f"engine_{precision}")


def measure(asked: argparse.Namespace, call, before: float, name: str) -> tuple[float, float]:
    """(median milliseconds of the warm runs, peak memory in GiB); leaves the last disparity in `name`.npy."""
    times = []
    for _ in range(1 + asked.runs):
        start = time.perf_counter()
        disparity = call()
        times.append(1000 * (time.perf_counter() - start))
    np.save(Path(asked.folder) / f"{name}.npy", disparity)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    memory = peak if asked.device == "cpu" else gpu_gib(asked.device) - before
    return statistics.median(times[1:]), memory


def images(asked: argparse.Namespace) -> tuple[np.ndarray, np.ndarray]:
    scene = make_scene(*asked.size, asked.size[1] // 8, seed=1)
    return scene["left"], scene["right"]


def gpu_gib(device: str) -> float:
    """Memory in use on the GPU, as its driver counts; 0 on a CPU."""
    if device == "cpu":
        return 0.0
    import torch

    free, total = torch.cuda.mem_get_info()
    return (total - free) / 2**30


PARTS = {
    "build": build,
    "eager_fp32": partial(eager, half=False),
    "eager_fp16": partial(eager, half=True),
    "engine_fp32": partial(engine, precision="fp32"),
    "engine_fp16": partial(engine, precision="fp16"),
}


if __name__ == "__main__":
    main()
