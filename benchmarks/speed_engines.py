"""Compare an ONNX Runtime engine with eager PyTorch, with the same weights, pair and number of threads, in one run.

python benchmarks/speed_engines.py [--device cpu|cuda] [--network vits] [--precisions fp32 fp16] [--size 320 736]
    [--iters 4]

Random weights, a synthetic pair. Each runs in its own process, so that peak memory is separate: on the CPU that of the
process, on CUDA that of the GPU's driver. Times are medians of warm runs. Eager fp16 is autocast.
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
    args = arguments()
    if args.part:
        print(json.dumps(PARTS[args.part](args)))
        return
    with tempfile.TemporaryDirectory() as folder:
        args.folder = folder
        report(args)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument(
        "--precisions", nargs="+", choices=("fp32", "fp16"), default=["fp32"], help="precisions of the engines"
    )
    parser.add_argument("--network", choices=tuple(networks.NETWORKS), default="vits")
    parser.add_argument("--size", type=int, nargs=2, default=(320, 736), metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--iters", type=int, default=4)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--part", choices=tuple(PARTS), help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    return parser.parse_args()


def report(args: argparse.Namespace) -> None:
    in_process(args, "build")
    height, width = args.size
    print(f"{args.network} {height}x{width}, {args.iters} iterations, {args.device}, {args.threads} threads")
    eager = {name: in_process(args, name) for name in ("eager_fp32", "eager_fp16") if name in parts_on(args.device)}
    measured = eager | {f"engine_{p}": in_process(args, f"engine_{p}") for p in args.precisions}
    reference = np.load(Path(args.folder) / "eager_fp32.npy")
    for name, (milliseconds, memory) in measured.items():
        difference = np.abs(np.load(Path(args.folder) / f"{name}.npy") - reference).mean()
        ratios = ", ".join(f"{values[0] / milliseconds:.2f} x {other}" for other, values in eager.items())
        print(f"{name}: {milliseconds:8.1f} ms ({ratios}), peak {memory:.2f} GiB, {difference:.2g} px from eager_fp32")


def parts_on(device: str) -> tuple[str, ...]:
    return ("eager_fp32", "eager_fp16") if device == "cuda" else ("eager_fp32",)


def in_process(args: argparse.Namespace, part: str) -> list[float]:
    """Run one part in its own process; return the numbers on its last line."""
    options = [f"--{name}={getattr(args, name)}" for name in ("device", "network", "iters", "runs")]
    options += ["--precisions", *args.precisions, "--size", *map(str, args.size)]
    options += [f"--part={part}", f"--folder={args.folder}"]
    environment = os.environ | {"OMP_NUM_THREADS": str(args.threads)}
    command = [sys.executable, __file__, *options]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment)
    return json.loads(done.stdout.splitlines()[-1])


def build(args: argparse.Namespace) -> None:
    """Write the checkpoint and the engines."""
    from stereo_core.engines import BuildSettings, build_engine
    from stereo_core.models import save_checkpoint
    from stereo_core.run.perform import perform
    from stereo_core.spec import spec_from_dict

    folder = Path(args.folder)
    save_checkpoint(networks.made(args.network), folder / "model.pth")
    export = {"checkpoint": str(folder / "model.pth"), "onnx_file": str(folder / "model.onnx"), "on_cpu": True}
    export |= {"input_height": args.size[0], "input_width": args.size[1], "valid_iters": args.iters}
    export |= {"batch_size": 1, "check": False, "results_dir": str(folder)}
    if perform("export", spec_from_dict("export", {"export": export})):
        raise SystemExit("the export failed; see the log above")
    for precision in args.precisions:
        settings = BuildSettings(backend="onnxruntime", precision=precision, verify=False)
        build_engine(folder / "model.onnx", folder / f"{precision}.ort.onnx", settings)


def eager(args: argparse.Namespace, half: bool) -> tuple[float, float]:
    import torch

    from stereo_core.models import load_model

    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    before = gpu_gib(args.device)
    model = load_model(Path(args.folder) / "model.pth").eval().to(args.device)
    pair = [torch.from_numpy(image).permute(2, 0, 1)[None] for image in images(args)]

    def call() -> np.ndarray:
        with torch.inference_mode(), torch.autocast("cuda", torch.float16, enabled=half):
            left, right = (x.to(args.device).float() for x in pair)
            return model(left, right, iters=args.iters)[0, 0].float().cpu().numpy()

    return measure(args, call, before, "eager_fp16" if half else "eager_fp32")


def engine(args: argparse.Namespace, precision: str) -> tuple[float, float]:
    from stereo_core.engines import load_engine

    before = gpu_gib(args.device)
    loaded = load_engine(Path(args.folder) / f"{precision}.ort.onnx", args.device)
    left, right = images(args)
    return measure(args, lambda: loaded.infer(left, right), before, f"engine_{precision}")


def measure(args: argparse.Namespace, call, before: float, name: str) -> tuple[float, float]:
    """(median milliseconds of the warm runs, peak memory in GiB); saves the last disparity as `name`.npy."""
    times = []
    for _ in range(1 + args.runs):
        start = time.perf_counter()
        disparity = call()
        times.append(1000 * (time.perf_counter() - start))
    np.save(Path(args.folder) / f"{name}.npy", disparity)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    memory = peak if args.device == "cpu" else gpu_gib(args.device) - before
    return statistics.median(times[1:]), memory


def images(args: argparse.Namespace) -> tuple[np.ndarray, np.ndarray]:
    scene = make_scene(*args.size, args.size[1] // 8, seed=1)
    return scene["left"], scene["right"]


def gpu_gib(device: str) -> float:
    """Memory in use on the GPU according to its driver; 0 on a CPU."""
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
