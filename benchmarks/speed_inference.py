"""Inference on a GPU: eager against what `optimize_for_inference` makes of the same weights, in the same run.

python benchmarks/speed_inference.py [--network vits] [--size 320 736] [--max-disparity 416]
    [--iters 22] [--batch 1] [--parts] [--profile FILE] [--rows fp32 fp16 graph compiled]
    [--checkpoint FILE] [--pair LEFT.npy RIGHT.npy] [--peer MODULE:CALLABLE]

Rows: fp32 and fp16 (autocast) are eager with the 3-D weights channels last; graph is the rewritten network in half
precision as a CUDA graph, compiled the same through TorchInductor. A peer is called as CALLABLE(model) once and returns
a function of left and right (B, 3, H, W), RGB, 0..255, to a disparity. TF32 is off. Times are medians of warm calls;
memory is the allocator's peak during such calls, weights and a graph's own memory included; differences are to eager
float32, over all pixels.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import statistics
import time
from collections.abc import Callable

import networks
import numpy as np
import torch
from torch import Tensor

from stereo_core.data.synthetic import make_scene
from stereo_core.models import channels_last, load_model
from stereo_core.models.optimize import at_size, make_network

Predict = Callable[[Tensor, Tensor], Tensor]
WARM = 3


def main() -> None:
    """Print a line a row and, where asked, a line a part."""
    asked = arguments()
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    pair = images(asked)
    name = f"{asked.network} {asked.size[0]}x{asked.size[1]}, {asked.iters} iterations"
    print(f"{name}, batch {asked.batch}, torch {torch.__version__}, {torch.cuda.get_device_name()}", flush=True)
    reference = slowest = None
    for row in (*asked.rows, *(asked.peer or ())):
        torch.cuda.empty_cache()
        began = time.perf_counter()
        predict, network = ROWS[row](asked) if row in ROWS else (peer(asked, row), None)
        with torch.inference_mode():
            predict(*pair)
            torch.cuda.synchronize()
            first = time.perf_counter() - began
            disparity = predict(*pair).clone()
            milliseconds, memory = measured(lambda predict=predict: predict(*pair), asked.runs)
        reference = disparity if reference is None else reference
        slowest = slowest or milliseconds
        apart, within = (disparity - reference).abs(), 0.25
        share = (apart <= within).float().mean()
        print(
            f"{row}: {milliseconds / asked.batch:.2f} ms a pair ({slowest / milliseconds:.2f} x), {memory:.2f} GiB, "
            f"ready in {first:.1f} s, mean difference {apart.mean():.2g} px, within {within} px {share:.5f}",
            flush=True,
        )
        if network is not None and asked.parts:
            print_parts(network, pair, asked)
        if asked.profile and row == asked.rows[-1]:
            write_profile(lambda predict=predict: predict(*pair), asked.profile)
        del predict, network
        gc.collect()


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", choices=tuple(networks.NETWORKS), default="vits")
    parser.add_argument("--size", type=int, nargs=2, default=(320, 736), metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--max-disparity", type=int, help="default: the network's own")
    parser.add_argument("--iters", type=int, default=22)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--rows", nargs="+", choices=tuple(ROWS), default=list(ROWS))
    parser.add_argument("--peer", nargs="*", metavar="MODULE:CALLABLE")
    parser.add_argument("--checkpoint", help="instead of random weights")
    parser.add_argument("--pair", nargs=2, help="two .npy (H, W, 3), cut to the size, instead of a synthetic scene")
    parser.add_argument("--parts", action="store_true", help="time each part of the rewritten network alone")
    parser.add_argument("--profile", help="file for the kernels of one call of the last row")
    return parser.parse_args()


def images(asked: argparse.Namespace) -> list[Tensor]:
    height, width = asked.size
    if asked.pair:
        both = [np.load(file)[:height, :width] for file in asked.pair]
    else:
        scene = make_scene(height, width, width // 8, seed=1)
        both = [scene["left"], scene["right"]]
    return [torch.from_numpy(x).permute(2, 0, 1)[None].float().repeat(asked.batch, 1, 1, 1).cuda() for x in both]


def make_model(asked: argparse.Namespace) -> torch.nn.Module:
    if asked.checkpoint:
        return load_model(asked.checkpoint).eval().cuda()
    return networks.made(asked.network, asked.max_disparity).eval().cuda()


def eager(asked: argparse.Namespace, half: bool) -> tuple[Predict, None]:
    model = channels_last(make_model(asked), dims=(3,))

    def predict(left: Tensor, right: Tensor) -> Tensor:
        with torch.autocast("cuda", torch.float16, enabled=half):
            return model(left, right, iters=asked.iters)

    return predict, None


def fast(asked: argparse.Namespace, compile: bool) -> tuple[Predict, torch.nn.Module]:
    network = make_network(make_model(asked), torch.float16, compile=compile)
    return at_size(network, *asked.size, asked.batch, asked.iters), network


def peer(asked: argparse.Namespace, name: str) -> Predict:
    module, _, attribute = name.partition(":")
    return getattr(importlib.import_module(module), attribute)(make_model(asked))


ROWS = {
    "fp32": lambda asked: eager(asked, half=False),
    "fp16": lambda asked: eager(asked, half=True),
    "graph": lambda asked: fast(asked, compile=False),
    "compiled": lambda asked: fast(asked, compile=True),
}


def measured(call: Callable[[], object], runs: int) -> tuple[float, float]:
    """(median milliseconds, peak GiB)."""
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    times = []
    for _ in range(WARM + runs):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        call()
        end.record()
        torch.cuda.synchronize()
        times.append(begin.elapsed_time(end))
    # What a graph keeps for itself is reserved, and not counted as allocated.
    segments = torch.cuda.memory_snapshot()
    reserved = sum(s["total_size"] for s in segments if tuple(s["segment_pool_id"]) != (0, 0))
    return statistics.median(times[WARM:]), (torch.cuda.max_memory_allocated() + reserved) / 2**30


def print_parts(network, pair: list[Tensor], asked: argparse.Namespace) -> None:
    """Each part as a graph of its own, with the inputs it had in a pass."""
    calls, parts, side = {}, network.parts, network.side

    def remembered(name: str, part: Callable) -> Callable:
        def run(*inputs):
            calls.setdefault(f"{name} {inputs[0]}" if name == "coarse" else name, (part, inputs))
            return part(*inputs)

        return run

    network.side, network.parts = None, {name: remembered(name, part) for name, part in parts.items()}
    with torch.inference_mode():
        dtype = next(network.parameters()).dtype
        network(*(x.to(dtype) / 100 - 1 for x in pair), asked.iters)
        for name, (part, inputs) in calls.items():
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                part(*inputs)
            print(f"    {name}: {measured(graph.replay, asked.runs)[0]:.3f} ms", flush=True)
    network.side, network.parts = side, parts


def write_profile(call: Callable[[], object], file: str) -> None:
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        call()
        torch.cuda.synchronize()
    kernels = {}
    for event in profile.events():
        if event.device_type == torch.autograd.DeviceType.CUDA:
            count, total = kernels.get(event.name, (0, 0.0))
            kernels[event.name] = (count + 1, total + event.device_time)
    rows = sorted(kernels.items(), key=lambda item: -item[1][1])
    with open(file, "w") as out:
        out.write(
            f"{sum(c for c, _ in kernels.values())} kernels, {sum(t for _, t in kernels.values()) / 1000:.2f} ms\n"
        )
        for kernel, (count, total) in rows:
            out.write(f"{total / 1000:9.3f} ms {count:6d} {kernel[:150]}\n")


if __name__ == "__main__":
    main()
