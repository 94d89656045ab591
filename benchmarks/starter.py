"""Train the small network on the stream of synthetic scenes, in rounds of a few GPU minutes.

python benchmarks/starter.py OUT [--network small] [--weights FILE] [--minutes 6] [--pairs LIST[:DATASET[:SCALE]] ...]
    --network fast_narrow trains a FastFoundationStereo instead, to compare both as starter.
    A round starts from random weights or, with --weights, from those of an earlier round; set another --start, so that
    it uses new scenes. The learning rate rises in the first hundred steps and then falls along a cosine until the time
    is up: to zero, or to --last-rate, where the next round is to go on. It writes to OUT: weights.pth (half precision;
    the moving average of the weights over some 500 steps), curve.csv (seconds, step, pairs, rate, loss, and where
    measured the EPE of that average on held-out scenes) and, after training, zero_shot.json: figures on pairs that were
    never trained on.

A step (forward, loss, backward, clipping, AdamW) is one CUDA graph; a second stream draws scenes at the same time.
"""

from __future__ import annotations

import argparse
import copy
import csv
import json
import math
import time
from dataclasses import dataclass, field
from pathlib import Path

import networks
import torch
from torch import Tensor, nn
from zero_shot import figures, network, read_set, sgbm, show

from stereo_core.data.synthetic.stream import Stream
from stereo_core.models import channels_last, create_model
from stereo_core.models.checkpoints import load_model, save_checkpoint
from stereo_core.training.losses import stereo_loss

GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if GPU else "cpu")
WARM_UP = 100  # steps
EAGER_STEPS = 3  # before the graph is captured, at a rate of zero: AdamW creates its state
DECAY = 0.998  # of the moving average of weights and running statistics, per step; from random weights it begins lower
HELD_OUT_SEED = 987654321
BEGIN = time.monotonic()


def main() -> None:
    args = arguments()
    args.out.mkdir(parents=True, exist_ok=True)
    torch.set_float32_matmul_precision("high")
    model = made(args)
    reset_broken_statistics(model)
    model = channels_last(model.to(DEVICE)).train()
    say(f"{sum(p.numel() for p in model.parameters()):,} parameters, {torch.cuda.get_device_name() if GPU else 'CPU'}")
    measure_stream(args)
    train(args, model)
    say(f"weights: {(args.out / 'weights.pth').stat().st_size / 2**20:.1f} MiB")
    if args.pairs:
        report(args)


def made(args: argparse.Namespace) -> nn.Module:
    """The network at the start of the round."""
    say(f"{args.network}: {networks.gflop(args.network):.0f} GFLOP at 480x640, 8 iterations")
    torch.manual_seed(args.seed)
    if args.weights:
        vit = {"train_vit": True} if args.network == "small" else {}
        return load_model(args.weights, **vit)
    return create_model(**networks.NETWORKS[args.network])


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--network", choices=("small", "fast", "fast_narrow"), default="small")
    parser.add_argument("--weights", help="weights.pth of the previous round, or starter")
    parser.add_argument("--minutes", type=float, default=6.0, help="minutes of training, without the final evaluation")
    parser.add_argument("--rate", type=float, default=8e-4, help="highest learning rate")
    parser.add_argument("--last-rate", type=float, default=0.0, help="learning rate at the end of the round")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--size", type=int, nargs=2, default=(320, 640), help="height and width, px")
    parser.add_argument(
        "--disparity", type=float, nargs=2, default=(6.0, 190.0), help="range of a scene's largest disparity, px"
    )
    parser.add_argument("--iters", type=int, default=8)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--start", type=int, default=0, help="number of the first scene")
    parser.add_argument("--held-out", type=int, default=64, help="scenes of another seed for the curve")
    parser.add_argument("--pairs", nargs="*", default=[], help="see zero_shot.py")
    return parser.parse_args()


def write_weights(model: nn.Module, args: argparse.Namespace) -> None:
    save_checkpoint(copy.deepcopy(model).half(), args.out / "weights.pth")


def reset_broken_statistics(model: nn.Module) -> None:
    """Reset running averages that are not finite: a hundred steps restore them."""
    for norm in (m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)):
        if not torch.cat([norm.running_mean, norm.running_var]).isfinite().all():
            norm.reset_running_stats()


def say(text: str) -> None:
    print(f"[{time.monotonic() - BEGIN:6.1f} s] {text}", flush=True)


def stream(args: argparse.Namespace, seed: int) -> Stream:
    return Stream(*args.size, tuple(args.disparity), seed, appearance=1.0)


def measure_stream(args: argparse.Namespace) -> None:
    """Print how many pairs per second can be drawn if nothing else runs."""
    batches = stream(args, args.seed).batches(args.batch, DEVICE, args.start)
    next(batches)
    begin, count = time.perf_counter(), 10 if GPU else 1
    for _ in range(count):
        next(batches)
    if GPU:
        torch.cuda.synchronize()
    say(f"scenes: {count * args.batch / (time.perf_counter() - begin):.0f} pairs per second")


@dataclass
class Step:
    """One training step over fixed inputs, as a CUDA graph on a GPU.

    Attributes:
        rate: the learning rate, a tensor so that the graph sees its changes.
        share: weight of a step in the moving average, a tensor likewise.
        loss: loss of the last step.
        skipped: number of steps skipped because of a non-finite gradient.
    """

    model: nn.Module
    batch: int
    size: tuple[int, int]
    iters: int
    rate: Tensor = field(default_factory=lambda: torch.tensor(0.0, device=DEVICE))
    share: Tensor = field(default_factory=lambda: torch.tensor(0.0, device=DEVICE))
    graph: torch.cuda.CUDAGraph | None = None

    def __post_init__(self) -> None:
        views, maps = (self.batch, 3, *self.size), (self.batch, 1, *self.size)
        self.left, self.right = torch.zeros(views, device=DEVICE), torch.zeros(views, device=DEVICE)
        self.disparity = torch.zeros(maps, device=DEVICE)
        self.valid = torch.ones(maps, dtype=torch.bool, device=DEVICE)
        self.loss, self.skipped = torch.zeros((), device=DEVICE), torch.zeros((), device=DEVICE)
        self.parameters = [p for p in self.model.parameters() if p.requires_grad]
        self.statistics = [b for b in self.model.buffers() if b.is_floating_point()]
        self.own = [*self.parameters, *self.statistics]
        self.average = [tensor.detach().clone() for tensor in self.own]
        self.optimizer = torch.optim.AdamW(self.parameters, lr=self.rate, weight_decay=1e-5, fused=True, capturable=GPU)

    def __call__(self, batch: dict[str, Tensor]) -> None:
        for name in ("left", "right", "disparity"):
            getattr(self, name).copy_(batch[name])
        if self.graph:
            self.graph.replay()
        else:
            self.run()

    def run(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        before = torch._foreach_add(self.statistics, 0)
        with torch.autocast(DEVICE.type, torch.bfloat16, enabled=GPU):
            start, disparities = self.model(self.left, self.right, self.iters)
        loss = stereo_loss(start, disparities, self.disparity, self.valid, self.model.config.max_disparity)
        loss.backward()
        grads = [p.grad for p in self.parameters if p.grad is not None]
        norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(grads)))
        torch._foreach_mul_(grads, (1 / (norm + 1e-6)).clamp(max=1))
        # As with a GradScaler, the optimizer skips a step with non-finite gradients.
        self.optimizer.found_inf = (~norm.isfinite()).float()
        self.optimizer.step()
        for now, then in zip(
            self.statistics, before, strict=True
        ):  # one such batch would permanently spoil the averages
            now.copy_(torch.where(now.isfinite() & norm.isfinite(), now, then))
        with torch.no_grad():
            change = torch._foreach_sub(self.own, self.average)
            torch._foreach_mul_(change, self.share)
            torch._foreach_add_(self.average, change)
        self.skipped += self.optimizer.found_inf
        self.loss.copy_(loss.detach())

    def averaged(self) -> nn.Module:
        """A copy of the model in eval mode with the average of its weights and running statistics."""
        model = copy.deepcopy(self.model).eval()
        buffers = (b for b in model.buffers() if b.is_floating_point())
        with torch.no_grad():
            torch._foreach_copy_([*(p for p in model.parameters() if p.requires_grad), *buffers], self.average)
        return model

    def capture(self, batch: dict[str, Tensor]) -> None:
        """Run a few steps at a rate of zero, then capture the graph."""
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(EAGER_STEPS):
                self(batch)
        torch.cuda.current_stream().wait_stream(side)
        self.optimizer.zero_grad(set_to_none=True)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.run()


def train(args: argparse.Namespace, model: nn.Module) -> None:
    """Train until the time is up; append the curve to a file line by line."""
    step = Step(model, args.batch, tuple(args.size), args.iters)
    batches = stream(args, args.seed).batches(args.batch, DEVICE, args.start)
    held_out = list(stream_of_held_out(args))
    if GPU:
        step.capture(next(batches))
    begin, limit, number = time.monotonic(), 60 * args.minutes, 0
    checks = [limit / 8, limit / 4, limit / 2, 3 * limit / 4]
    before = None
    with open(args.out / "curve.csv", "w", newline="") as file:
        curve = csv.writer(file)
        curve.writerow(["seconds", "step", "pairs", "rate", "loss", "epe"])
        while (spent := time.monotonic() - begin) < limit:
            step.rate.fill_(rate(args, number, spent / limit))
            step.share.fill_(1 - DECAY if args.weights else max(1 - DECAY, 9 / (10 + number)))
            step(next(batches))
            number += 1
            before = paced(before)
            due = bool(checks) and spent > checks[0]
            if due:
                checks.pop(0)
            if due or number % 20 == 0:
                epe = looked_at(step, held_out, args) if due else ""
                row = [
                    round(spent, 1),
                    number,
                    number * args.batch,
                    f"{step.rate.item():.2e}",
                    f"{step.loss.item():.3f}",
                    epe,
                ]
                curve.writerow(row)
                file.flush()
                if due or number % 200 == 0:
                    say(", ".join(str(value) for value in row))
        epe = looked_at(step, held_out, args)
        curve.writerow([round(spent, 1), number, number * args.batch, "", f"{step.loss.item():.3f}", epe])
    say(f"{number} steps, {number * args.batch} pairs, {spent / number:.4f} s per step, held-out EPE {epe} px")
    say(f"{int(step.skipped)} steps skipped because of a non-finite gradient")
    if GPU:
        say(f"peak {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB")


def rate(args: argparse.Namespace, number: int, done: float) -> float:
    """The learning rate of a step; `done` is the share of the time that has passed."""
    cosine = (1 + math.cos(math.pi * done)) / 2
    return min(1, (number + 1) / WARM_UP) * (args.last_rate + (args.rate - args.last_rate) * cosine)


def paced(before: torch.cuda.Event | None) -> torch.cuda.Event | None:
    """Wait for the step before the last; otherwise queued steps would exceed the time limit."""
    if not GPU:
        return None
    event = torch.cuda.Event()
    event.record()
    if before is not None:
        before.synchronize()
    return event


def stream_of_held_out(args: argparse.Namespace):
    """Batches of four scenes of another seed."""
    batches = stream(args, HELD_OUT_SEED).batches(4, DEVICE)
    for _ in range(math.ceil(args.held_out / 4)):
        yield next(batches)


def looked_at(step: Step, batches: list[dict[str, Tensor]], args: argparse.Namespace) -> float:
    """Write the average weights, so that an interrupted round is not lost; return their EPE on held-out scenes."""
    model = step.averaged()
    write_weights(model, args)
    return held_out_epe(model, batches)


@torch.no_grad()
def held_out_epe(model: nn.Module, batches: list[dict[str, Tensor]]) -> float:
    errors = []
    for batch in batches:
        with torch.autocast(DEVICE.type, torch.bfloat16, enabled=GPU):
            disparity = model(batch["left"], batch["right"])
        errors.append((disparity - batch["disparity"]).abs().mean((1, 2, 3)))
    return round(torch.cat(errors).mean().item(), 3)


def report(args: argparse.Namespace) -> None:
    """Evaluate the written weights file."""
    model = load_model(args.out / "weights.pth").eval()
    rows = figures({name: read_set(name) for name in args.pairs}, {"StereoSGBM": sgbm, "weights": network(model)})
    (args.out / "zero_shot.json").write_text(json.dumps(rows, indent=2))
    show(rows)


if __name__ == "__main__":
    main()
