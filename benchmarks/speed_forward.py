"""One forward pass of the network: time and peak memory, of float32 and float16 autocast in the same run.

python benchmarks/speed_forward.py [--encoder vits] [--height 320] [--width 736] [--max-disparity 416] [--iters 22]

Random weights, a synthetic pair. On a GPU it is timed with events, TF32 off, median of the warm runs; on a CPU only
float32.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import time

import torch

from stereo_core.data.synthetic.planes import make_scene
from stereo_core.models import create_model

RUNS, WARM = 12, 3


def timed(call, gpu: bool, runs: int) -> tuple[float, torch.Tensor]:
    """(median milliseconds of the warm runs, the last result)."""
    times = []
    for _ in range(runs):
        if gpu:
            begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            begin.record()
            result = call()
            end.record()
            torch.cuda.synchronize()
            times.append(begin.elapsed_time(end))
        else:
            start = time.perf_counter()
            result = call()
            times.append(1000 * (time.perf_counter() - start))
    return statistics.median(times[min(WARM, runs - 1) :]), result


def peak_gib(gpu: bool) -> float:
    if gpu:
        return torch.cuda.max_memory_allocated() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def main() -> None:
    """Print one line per precision."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encoder", default="vits")
    parser.add_argument("--height", type=int, default=320)
    parser.add_argument("--width", type=int, default=736)
    parser.add_argument("--max-disparity", type=int, default=416)
    parser.add_argument("--iters", type=int, default=22)
    args = parser.parse_args()
    gpu = torch.cuda.is_available()
    device = "cuda" if gpu else "cpu"
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    torch.manual_seed(0)
    model = create_model(encoder=args.encoder, max_disparity=args.max_disparity).eval().to(device)
    scene = make_scene(args.height, args.width, args.width // 8, seed=1)
    pair = [torch.from_numpy(scene[side]).permute(2, 0, 1)[None].float().to(device) for side in ("left", "right")]
    name = torch.cuda.get_device_name() if gpu else "CPU"
    print(f"{args.encoder} {args.height}x{args.width} d{args.max_disparity}, {args.iters} iterations, {name}")
    reference = None
    for precision in ("fp32", "fp16") if gpu else ("fp32",):
        if gpu:
            torch.cuda.reset_peak_memory_stats()
        with torch.inference_mode(), torch.autocast("cuda", torch.float16, enabled=precision == "fp16"):
            milliseconds, disparity = timed(lambda: model(*pair, iters=args.iters), gpu, RUNS if gpu else 1)
        reference = reference if reference is not None else (milliseconds, disparity)
        difference = float((disparity - reference[1]).abs().mean())
        print(
            f"{precision}: {milliseconds:8.1f} ms ({reference[0] / milliseconds:.2f} x fp32's speed), "
            f"peak {peak_gib(gpu):.2f} GiB, mean difference from fp32 {difference:.2g} px"
        )


if __name__ == "__main__":
    main()
