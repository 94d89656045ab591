"""Compare eager PyTorch, ONNX Runtime, OpenVINO and StereoSGBM on a CPU, on the same pair and number of threads.

python benchmarks/speed_cpu.py [--network vits] [--size 320 736] [--iters 4] [--rounds 5]

The first three use the same random weights, so StereoSGBM's result is not compared. OpenVINO is measured if it is
installed; with --bf16 also in bfloat16. Each runs in its own process, so that peak memory is separate. They take turns,
so that other load on the machine affects all of them equally.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from argparse import Namespace
from collections.abc import Callable
from functools import partial
from pathlib import Path

import networks
import numpy as np
import speed_engines

from stereo_core.cores import usable_cores

SGBM_RANGE = 191  # px: 192 bins


def main() -> None:
    """Print a line for each: seconds per pair, speed-up over eager (median of the rounds), memory, difference."""
    args = arguments()
    if args.part:
        serve(args)
        return
    with tempfile.TemporaryDirectory() as folder:
        args.folder = args.folder or folder
        report(args)


def arguments() -> Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", choices=tuple(networks.NETWORKS), default="vits")
    parser.add_argument("--size", type=int, nargs=2, default=(320, 736), metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--iters", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=usable_cores())
    parser.add_argument(
        "--bf16", action="store_true", help="also measure OpenVINO in bfloat16, for CPUs that support it"
    )
    parser.add_argument("--part", choices=tuple(PARTS), help=argparse.SUPPRESS)
    parser.add_argument("--folder", help="folder that keeps checkpoint and engine for reuse")
    return parser.parse_args()


def report(args: Namespace) -> None:
    folder = Path(args.folder)
    if not (folder / "fp32.ort.onnx").exists():
        subprocess.run(command(args, "build"), check=True, stdout=subprocess.DEVNULL)
    names = ["eager", "onnxruntime"] + ["openvino"] * bool(importlib.util.find_spec("openvino"))
    names += ["openvino_bf16"] * args.bf16 + ["StereoSGBM"]
    parts = {name: start(args, name) for name in names}
    for part in parts.values():
        answer(part)  # ready, after one pass
    before = os.getloadavg()[0]
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(args.rounds):
        for name, part in parts.items():
            part.stdin.write("once\n")
            part.stdin.flush()
            seconds[name].append(answer(part))
    memory = {name: end(part) for name, part in parts.items()}
    height, width = args.size
    print(f"{args.network} {height}x{width}, {args.iters} iterations, {args.threads} threads")
    print(f"load {before:.1f} before, {os.getloadavg()[0]:.1f} after; {args.rounds} rounds")
    reference = np.load(folder / "eager.npy")
    for name in names:
        ratio = statistics.median(a / b for a, b in zip(seconds["eager"], seconds[name], strict=True))
        difference = np.abs(np.load(folder / f"{name}.npy") - reference).mean()
        apart = "" if name == "StereoSGBM" else f", {difference:.2g} px from eager"
        share = memory[name] / memory["eager"]
        times = f"median {statistics.median(seconds[name]):.2f} s, fastest {min(seconds[name]):.2f} s"
        print(f"{name:13} {times}, x {ratio:.2f}, {memory[name]:.2f} GiB ({share:.0%}){apart}")


def command(args: Namespace, part: str) -> list[str]:
    options = [f"--{name}={getattr(args, name)}" for name in ("network", "iters", "threads", "folder")]
    options += ["--size", *map(str, args.size), "--part", part] + ["--bf16"] * args.bf16
    return [sys.executable, __file__, *options]


def start(args: Namespace, part: str) -> subprocess.Popen:
    environment = os.environ | {"OMP_NUM_THREADS": str(args.threads)}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    return subprocess.Popen(command(args, part), text=True, env=environment, **pipes)


def answer(part: subprocess.Popen) -> float:
    line = part.stdout.readline()
    if not line:
        raise SystemExit(f"{part.args[-2:]} ended early; see its error above")
    return float(line)


def end(part: subprocess.Popen) -> float:
    """Let a part write its disparity and end; return its peak memory in GiB."""
    part.stdin.close()
    return answer(part)


def serve(args: Namespace) -> None:
    """Serve a part: for every input line run a pass and print its seconds, finally print the peak memory."""
    if args.part == "build":
        args.precisions = ["fp32"]
        speed_engines.build(args)
        build_openvino(Path(args.folder), ["fp32"] + ["bf16"] * args.bf16)
        return
    left, right = speed_engines.images(args)
    call = PARTS[args.part](args)
    disparity = call(left, right)
    print(0.0, flush=True)
    for _ in sys.stdin:
        begin = time.perf_counter()
        disparity = call(left, right)
        print(time.perf_counter() - begin, flush=True)
    np.save(Path(args.folder) / f"{args.part}.npy", disparity)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, flush=True)


Call = Callable[[np.ndarray, np.ndarray], np.ndarray]


def eager(args: Namespace) -> Call:
    import torch

    from stereo_core.models import load_model

    model = load_model(Path(args.folder) / "model.pth").eval()

    def call(*pair: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            left, right = (torch.from_numpy(image).permute(2, 0, 1)[None].float() for image in pair)
            return model(left, right, iters=args.iters)[0, 0].numpy()

    return call


def engine(args: Namespace, file: str) -> Call:
    from stereo_core.engines import load_engine

    return load_engine(Path(args.folder) / file, "cpu").infer


def build_openvino(folder: Path, precisions: list[str]) -> None:
    from stereo_core.engines import BuildSettings, build_engine

    if importlib.util.find_spec("openvino"):
        for precision in precisions:
            settings = BuildSettings("openvino", precision, verify=False)
            build_engine(folder / "model.onnx", folder / f"{precision}.ov.onnx", settings)


def stereo_sgbm(args: Namespace) -> Call:
    import cv2
    import sgbm
    import torch

    cv2.setNumThreads(args.threads)

    def call(*pair: np.ndarray) -> np.ndarray:
        views = (torch.from_numpy(image).permute(2, 0, 1) for image in pair)
        return sgbm.sgbm_disparity(dict(zip(("left", "right"), views, strict=True)), SGBM_RANGE)

    return call


PARTS: dict[str, Callable] = {
    "build": serve,
    "eager": eager,
    "onnxruntime": partial(engine, file="fp32.ort.onnx"),
    "openvino": partial(engine, file="fp32.ov.onnx"),
    "openvino_bf16": partial(engine, file="bf16.ov.onnx"),
    "StereoSGBM": stereo_sgbm,
}


if __name__ == "__main__":
    main()
