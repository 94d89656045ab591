"""Compare eager PyTorch, the network for inference, and engines on one GPU (or, as a trial, a CPU) in one run.

python benchmarks/engines_gpu.py OUT [--sizes 320x736 576x960] [--batches 1 8] [--rows ...] [--minutes 8.7]
    [--encoder vits] [--iters 22] [--max-disparity 416]

Random weights, synthetic pairs. Every row is a separate process. All of them load, compile and warm up in parallel.
When all are ready, or two thirds of the minutes have passed, the ready ones are measured one after the other, each
alone on the GPU. After each, a line is printed and OUT/engines_gpu.md is rewritten.

Milliseconds are medians of warm calls by the wall clock, with images and disparity in GPU memory, per pair (the call's
time divided by the batch). Memory is what the driver gets back when the process ends: weights, graphs, workspaces and
CUDA itself. The difference is the mean difference from eager float32, an upper bound for the change of EPE.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch

from stereo_core.data.synthetic.planes import make_scene
from stereo_core.engines import BuildSettings, build_engine
from stereo_core.engines.files import read_engine
from stereo_core.models import channels_last, create_model, load_model, save_checkpoint

BEGIN = time.monotonic()
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
Call = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
SECONDS, MOST = 3.0, 30  # limits of the timed calls of a row


@dataclass(frozen=True)
class Case:
    """One shape."""

    height: int
    width: int
    batch: int

    @property
    def name(self) -> str:
        return f"{self.height}x{self.width}_{self.batch}"


def main() -> None:
    """Run all rows, or a single one in a process that the main call started."""
    args = arguments()
    args.out.mkdir(parents=True, exist_ok=True)
    if args.part:
        PARTS[args.part](args, case_of(args.case))
    else:
        measure_all(args)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--sizes", nargs="+", default=["320x736", "576x960"])
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8])
    parser.add_argument("--rows", nargs="+", choices=tuple(MAKE), default=list(MAKE))
    parser.add_argument("--minutes", type=float, default=8.7, help="time limit of the whole run")
    parser.add_argument("--encoder", default="vits")
    parser.add_argument("--iters", type=int, default=22)
    parser.add_argument("--max-disparity", type=int, default=416)
    parser.add_argument("--part", choices=tuple(PARTS), help=argparse.SUPPRESS)
    parser.add_argument("--case", help=argparse.SUPPRESS)
    return parser.parse_args()


def case_of(name: str) -> Case:
    size, batch = name.split("_")
    return Case(*map(int, size.split("x")), int(batch))


def measure_all(args: argparse.Namespace) -> None:
    torch.manual_seed(0)
    preset = {"preset": "tiny"} if args.encoder == "vitt" else {"encoder": args.encoder}
    save_checkpoint(create_model(max_disparity=args.max_disparity, **preset), args.out / "model.pth")
    cases = [case_of(f"{size}_{batch}") for size in args.sizes for batch in args.batches]
    rows = {(case, row): Row(args, case, row) for case in cases for row in args.rows}
    exports = [Row(args, case, "export") for case in cases]
    deadline = BEGIN + 60 * args.minutes
    until = BEGIN + 60 * args.minutes * 2 / 3
    while time.monotonic() < until and any(row.is_busy for row in [*rows.values(), *exports]):
        time.sleep(0.5)
    for row in rows.values():
        if row.is_busy:
            row.end(f"not ready in {60 * args.minutes * 2 / 3:.0f} s")
    title = f"{args.encoder}, {args.iters} iterations, max_disparity {args.max_disparity}, torch {torch.__version__}"
    title += f", {torch.cuda.get_device_name() if DEVICE == 'cuda' else DEVICE}"
    say(title)
    for (case, name), row in rows.items():
        row.measure(deadline)
        say(f"{case.name} {name}: {row.text(args.out, rows.get((case, 'eager fp32')))}")
        write_table(args.out, title, rows)


class Row:
    """A process that prepares, waits for a signal, measures and prints its figures."""

    def __init__(self, args: argparse.Namespace, case: Case, part: str):
        self.case, self.part, self.why, self.figures, self.gib = case, part, "", None, 0.0
        options = [f"--{name}={getattr(args, name.replace('-', '_'))}" for name in ("encoder", "iters")]
        command = [sys.executable, __file__, str(args.out), *options, f"--part={part}", f"--case={case.name}"]
        self.log = args.out / f"{case.name}_{part.replace(' ', '_')}.log"
        environment = os.environ | {"OMP_NUM_THREADS": "2", "TORCHINDUCTOR_COMPILE_THREADS": "4"}
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.log.open("w"), text=True,
            env=environment,
        )  # fmt: skip
        self.lines: list[str] = []
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        self.lines.extend(iter(self.process.stdout.readline, ""))

    @property
    def is_busy(self) -> bool:
        """Whether the process is still preparing."""
        return self.process.poll() is None and not self.lines

    def measure(self, deadline: float) -> None:
        if not self.why and self.process.poll() is not None:
            self.why = self._last_words()
        if self.why:
            return
        before = len(self.lines)
        self.process.stdin.write("go\n")
        self.process.stdin.flush()
        while time.monotonic() < deadline and self.process.poll() is None and len(self.lines) == before:
            time.sleep(0.05)
        if len(self.lines) > before:
            self.figures = json.loads(self.lines[0]) | json.loads(self.lines[-1])
            free = free_gib()
            self.end("")
            self.gib = free_gib() - free
        else:
            self.end("the time limit was reached" if self.process.poll() is None else self._last_words())

    def _last_words(self) -> str:
        lines = self.log.read_text().strip().splitlines()
        print(f"--- the end of {self.log}", *lines[-20:], sep="\n", file=sys.stderr)
        errors = [line for line in lines if re.match(r"[\w.]*(Error|Exception)\b", line)]
        return f"failed: {(errors or lines or [str(self.process.returncode)])[-1][:160]}"

    def end(self, why: str) -> None:
        self.why = why
        self.process.kill()
        self.process.wait()

    def text(self, out: Path, reference: Row | None) -> str:
        if self.figures is None:
            return self.why
        ms = self.figures["ms"] / self.case.batch
        times = f", {reference.figures['ms'] / self.case.batch / ms:.2f} x" if reference and reference.figures else ""
        ready = f"ready in {self.figures['ready_s']:.0f} s"
        apart = self.apart(out)
        return f"{ms:.2f} ms per pair{times}, {self.gib:.2f} GiB, {apart:.2g} px from eager fp32, {ready}"

    def apart(self, out: Path) -> float:
        files = [result_file(out, self.case, part) for part in (self.part, "eager fp32")]
        if not all(file.is_file() for file in files):
            return float("nan")
        found, reference = map(np.load, files)
        return float(np.abs(found - reference).mean())


def write_table(out: Path, title: str, rows: dict[tuple[Case, str], Row]) -> None:
    lines = [title, "", "| size, batch | | ms per pair | x eager fp32 | memory, GiB | mean difference, px | ready in |"]
    lines.append("|---|---|---|---|---|---|---|")
    for (case, name), row in rows.items():
        where = f"| {case.height}x{case.width}, {case.batch} | {name} |"
        if row.figures is None:
            lines.append(f"{where} {row.why or 'pending'} | | | | |")
            continue
        ms, reference = row.figures["ms"] / case.batch, rows.get((case, "eager fp32"))
        times = f"{reference.figures['ms'] / case.batch / ms:.2f}" if reference and reference.figures else ""
        figures = f" {ms:.2f} | {times} | {row.gib:.2f} | {row.apart(out):.2g} | {row.figures['ready_s']:.0f} s |"
        lines.append(where + figures)
    (out / "engines_gpu.md").write_text("\n".join(lines) + "\n")


def export(args: argparse.Namespace, case: Case) -> None:
    """The ONNX file of one shape, traced on the GPU, and its ONNX Runtime engine."""
    from stereo_core.run.perform import perform
    from stereo_core.spec import spec_from_dict

    folder = args.out / case.name
    unfinished = folder / "unfinished.onnx"
    keys = {"checkpoint": str(args.out / "model.pth"), "onnx_file": str(unfinished), "valid_iters": args.iters}
    keys |= {"input_height": case.height, "input_width": case.width, "batch_size": case.batch, "check": False}
    if perform("export", spec_from_dict("export", {"results_dir": str(folder), "export": keys})):
        raise SystemExit("the export failed; see the log above")
    unfinished.rename(onnx_file(args, case))


def onnx_file(args: argparse.Namespace, case: Case) -> Path:
    return args.out / case.name / "model.onnx"


def exported(args: argparse.Namespace, case: Case) -> Path:
    """The ONNX file; waits until another process has written it."""
    while not onnx_file(args, case).is_file():
        time.sleep(0.5)
    return onnx_file(args, case)


def result_file(out: Path, case: Case, part: str) -> Path:
    return out / f"{case.name}_{part.replace(' ', '_')}.npy"


def eager(half: bool, args: argparse.Namespace, case: Case) -> Call:
    model = channels_last(load_model(args.out / "model.pth").eval().to(DEVICE), dims=(3,))

    def call(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        with torch.autocast(DEVICE, torch.float16, enabled=half):
            return model(left, right, iters=args.iters)[:, 0].float()

    return call


def optimised(args: argparse.Namespace, case: Case) -> Call:
    from stereo_core.models.optimize import optimize_for_inference

    model = load_model(args.out / "model.pth").eval().to(DEVICE)
    call = optimize_for_inference(model, case.height, case.width, case.batch, args.iters)
    return lambda left, right: call(left, right)[:, 0].clone()


def onnxruntime(graph: bool, args: argparse.Namespace, case: Case) -> Call:
    import onnxruntime as library

    from stereo_core.engines.onnxruntime import OnnxRuntimeEngine

    if "CUDAExecutionProvider" not in library.get_available_providers():
        raise SystemExit(f"onnxruntime {library.__version__} has no CUDA provider; install onnxruntime-gpu")
    engine = args.out / case.name / f"graph_{graph}.ort.onnx"
    build_engine(exported(args, case), engine, BuildSettings("onnxruntime", "fp16", verify=False))
    return OnnxRuntimeEngine(engine, read_engine(engine), "cuda", graph=graph).infer


@torch.inference_mode()
def row(make: Callable[[argparse.Namespace, Case], Call], part: str, args: argparse.Namespace, case: Case) -> None:
    """Prepare, report readiness, wait, measure, print."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    began = time.monotonic()
    call = make(args, case)
    pair = images(case)
    if part.startswith("optimised"):  # it compiles; the others would only fill the GPU, which holds all rows at once
        call(*pair)
    wait()
    print(json.dumps({"ready_s": time.monotonic() - began}), flush=True)
    sys.stdin.readline()
    for _ in range(2):
        disparity = call(*pair)
    wait()
    times, first = [], time.perf_counter()
    while len(times) < 3 or (len(times) < MOST and time.perf_counter() - first < SECONDS):
        start = time.perf_counter()
        call(*pair)
        wait()
        times.append(1000 * (time.perf_counter() - start))
    np.save(result_file(args.out, case, part), disparity.cpu().numpy())
    print(json.dumps({"ms": statistics.median(times), "calls": len(times)}), flush=True)
    sys.stdin.readline()  # its memory is measured before it ends


def images(case: Case) -> list[torch.Tensor]:
    scenes = [make_scene(case.height, case.width, case.width // 8, seed) for seed in range(case.batch)]
    sides = (np.stack([scene[side] for scene in scenes]) for side in ("left", "right"))
    return [torch.from_numpy(side).permute(0, 3, 1, 2).float().contiguous().to(DEVICE) for side in sides]


def wait() -> None:
    if DEVICE == "cuda":
        torch.cuda.synchronize()


def free_gib() -> float:
    return torch.cuda.mem_get_info()[0] / 2**30 if DEVICE == "cuda" else 0.0


def say(text: str) -> None:
    print(f"[{time.monotonic() - BEGIN:5.0f} s] {text}", flush=True)


MAKE = {
    "eager fp32": partial(eager, False),
    "eager fp16": partial(eager, True),
    "optimised fp16": optimised,
    "onnxruntime fp16": partial(onnxruntime, False),
    "onnxruntime fp16 graph": partial(onnxruntime, True),
}
PARTS = {"export": export} | {part: partial(row, make, part) for part, make in MAKE.items()}


if __name__ == "__main__":
    main()
