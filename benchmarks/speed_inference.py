"""Inference on a GPU: compare eager execution with `optimize_for_inference` for the same weights, in the same run.

python benchmarks/speed_inference.py [--network vits] [--size 320 736] [--max-disparity 416]
    [--iters 22] [--batch 1] [--parts] [--profile FILE] [--rows fp32 fp16 graph compiled]
    [--checkpoint FILE] [--pair LEFT.npy RIGHT.npy] [--peer MODULE:CALLABLE]

Rows: fp32 and fp16 (autocast) are eager with channels-last 3-D weights; graph is the rewritten network in half
precision as a CUDA graph; compiled is the same, compiled by TorchInductor. A peer is called once as CALLABLE(model) and
returns a function from left and right (B, 3, H, W), RGB, 0..255, to a disparity. TF32 is off. Times are medians of warm
calls; memory is the allocator's peak during such calls, including weights and the graph's own memory; differences are
from eager float32, over all pixels.
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
    """Print one line per row and, if requested, one per part."""
    args = arguments()
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    pair = images(args)
    name = f"{args.network} {args.size[0]}x{args.size[1]}, {args.iters} iterations"
    print(f"{name}, batch {args.batch}, torch {torch.__version__}, {torch.cuda.get_device_name()}", flush=True)
    reference = slowest = None
    for row in (*args.rows, *(args.peer or ())):
        torch.cuda.empty_cache()
        began = time.perf_counter()
        predict, network = ROWS[row](args) if row in ROWS else (peer(args, row), None)
        with torch.inference_mode():
            predict(*pair)
            torch.cuda.synchronize()
            first = time.perf_counter() - began
            disparity = predict(*pair).clone()
            milliseconds, memory = measured(lambda predict=predict: predict(*pair), args.runs)
        reference = disparity if reference is None else reference
        slowest = slowest or milliseconds
        apart, within = (disparity - reference).abs(), 0.25
        share = (apart <= within).float().mean()
        print(
            f"{row}: {milliseconds / args.batch:.2f} ms per pair ({slowest / milliseconds:.2f} x), {memory:.2f} GiB, "
            f"ready in {first:.1f} s, mean difference {apart.mean():.2g} px, within {within} px {share:.5f}",
            flush=True,
        )
        if network is not None and args.parts:
            print_parts(network, pair, args)
        if args.profile and row == args.rows[-1]:
            write_profile(lambda predict=predict: predict(*pair), args.profile)
        del predict, network
        gc.collect()


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", choices=tuple(networks.NETWORKS), default="vits")
    parser.add_argument("--size", type=int, nargs=2, default=(320, 736), metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--max-disparity", type=int, help="default: the network's")
    parser.add_argument("--iters", type=int, default=22)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--rows", nargs="+", choices=tuple(ROWS), default=list(ROWS))
    parser.add_argument("--peer", nargs="*", metavar="MODULE:CALLABLE")
    parser.add_argument("--checkpoint", help="instead of random weights")
    parser.add_argument("--pair", nargs=2, help="two .npy (H, W, 3), cut to the size, instead of a synthetic scene")
    parser.add_argument("--parts", action="store_true", help="time each part of the rewritten network separately")
    parser.add_argument("--profile", help="file for a list of the kernels in one call of the last row")
    return parser.parse_args()


def images(args: argparse.Namespace) -> list[Tensor]:
    height, width = args.size
    if args.pair:
        both = [np.load(file)[:height, :width] for file in args.pair]
    else:
        scene = make_scene(height, width, width // 8, seed=1)
        both = [scene["left"], scene["right"]]
    return [torch.from_numpy(x).permute(2, 0, 1)[None].float().repeat(args.batch, 1, 1, 1).cuda() for x in both]


def make_model(args: argparse.Namespace) -> torch.nn.Module:
    if args.checkpoint:
        return load_model(args.checkpoint).eval().cuda()
    return networks.made(args.network, args.max_disparity).eval().cuda()


def eager(args: argparse.Namespace, half: bool) -> tuple[Predict, None]:
    model = channels_last(make_model(args), dims=(3,))

    def predict(left: Tensor, right: Tensor) -> Tensor:
        with torch.autocast("cuda", torch.float16, enabled=half):
            return model(left, right, iters=args.iters)

    return predict, None


def fast(args: argparse.Namespace, compile: bool) -> tuple[Predict, torch.nn.Module]:
    network = make_network(make_model(args), torch.float16, compile=compile)
    return at_size(network, *args.size, args.batch, args.iters), network


def peer(args: argparse.Namespace, name: str) -> Predict:
    module, _, attribute = name.partition(":")
    return getattr(importlib.import_module(module), attribute)(make_model(args))


ROWS = {
    "fp32": lambda args: eager(args, half=False),
    "fp16": lambda args: eager(args, half=True),
    "graph": lambda args: fast(args, compile=False),
    "compiled": lambda args: fast(args, compile=True),
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
    # A graph's own memory is reserved, but not counted as allocated.
    segments = torch.cuda.memory_snapshot()
    reserved = sum(s["total_size"] for s in segments if tuple(s["segment_pool_id"]) != (0, 0))
    return statistics.median(times[WARM:]), (torch.cuda.max_memory_allocated() + reserved) / 2**30


def print_parts(network, pair: list[Tensor], args: argparse.Namespace) -> None:
    """Time each part as a separate graph, with the inputs of a real pass."""
    calls, parts, side = {}, network.parts, network.side

    def remembered(name: str, part: Callable) -> Callable:
        def run(*inputs):
            calls.setdefault(f"{name} {inputs[0]}" if name == "coarse" else name, (part, inputs))
            return part(*inputs)

        return run

    network.side, network.parts = None, {name: remembered(name, part) for name, part in parts.items()}
    with torch.inference_mode():
        dtype = next(network.parameters()).dtype
        network(*(x.to(dtype) / 100 - 1 for x in pair), args.iters)
        for name, (part, inputs) in calls.items():
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                part(*inputs)
            print(f"    {name}: {measured(graph.replay, args.runs)[0]:.3f} ms", flush=True)
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
