"""Time reading, computing and writing of evaluate and inference, together and separately.

python benchmarks/speed_overlap.py [--pairs 500] [--size 375 1242] [--batch 1] [--workers 8] [--verbs VERB ...]
    [--encoder vits | --preset tiny | --checkpoint FILE] [--iters 22]

It writes synthetic scenes and lists them repeatedly. Then it times: the network alone, on a batch in the device's
memory; reading and writing alone, by the action with a network that immediately returns a scene's ground truth; and the
action itself. An action runs on a tenth of the pairs and on all of them; the difference excludes start-up, loading and
the recording of a CUDA graph. Aim: together at most 1.1 times the slower of the two alone.
"""

from __future__ import annotations

import argparse
import importlib
import tempfile
import time
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import torch
from common import CORES, device, network, network_options, say

from stereo_core.actions.predict.predictor import Predictor, load_predictor
from stereo_core.actions.synthesize import write_scene
from stereo_core.data.annotations import write_annotations
from stereo_core.data.loaders import StereoLoaders
from stereo_core.data.synthetic import scene_maker
from stereo_core.models import create_model, save_checkpoint
from stereo_core.run.status import StatusLog
from stereo_core.spec import ExperimentSpec, spec_from_dict

SPLITS = {"evaluate": "test", "inference": "infer"}
COLUMNS = ("left/rgb", "right/rgb", "left/disparity")
SCENES = 32  # different scenes
SECONDS = 20.0  # time limit for measuring the network alone
WARM = 3  # warm-up calls of the network: the second records its graph


def write_one(number: int, folder: Path, size: tuple[int, int]) -> list[str]:
    """Write a scene; return its line of an annotation list."""
    torch.set_num_threads(1)
    data = folder / f"scene_{number:04d}"
    write_scene(data, scene_maker("rich", *size, (6, 64), 1234)(number))
    return [str(data / column / "0000.png") for column in COLUMNS]


def lists(args: argparse.Namespace, folder: Path) -> list[Path]:
    """The lists of a tenth of the pairs and of all."""
    with get_context("spawn").Pool(min(CORES, SCENES)) as pool:
        lines = pool.map(partial(write_one, folder=folder, size=tuple(args.size)), range(SCENES))
    found = []
    for pairs in (args.pairs // 10, args.pairs):
        write_annotations(folder / f"{pairs}.txt", [lines[number % SCENES] for number in range(pairs)])
        found.append(folder / f"{pairs}.txt")
    return found


def spec_of(args: argparse.Namespace, verb: str, listed: Path) -> ExperimentSpec:
    source = {"data_file": str(listed), "dataset_name": "FSD"}
    split = {"data_sources": [source], "batch_size": args.batch, "workers": args.workers}
    section = {"checkpoint": args.checkpoint, "results_dir": str(listed.parent / verb)}
    model = {"valid_iters": args.iters}
    tree = {"dataset": {f"{SPLITS[verb]}_dataset": split}, "model": model, verb: section}
    return spec_from_dict(verb, tree)


def first_batch(args: argparse.Namespace, listed: Path) -> dict[str, torch.Tensor]:
    """The first pairs with their ground truth, stacked."""
    loaders = StereoLoaders(spec_of(args, "evaluate", listed))
    loaders.setup("test")
    samples = [loaders.datasets["test"][number] for number in range(args.batch)]
    return {name: torch.stack([sample[name] for sample in samples]) for name in ("left", "right", "disparity")}


def network_alone(spec: ExperimentSpec, verb: str, batch: dict[str, torch.Tensor]) -> float:
    """Seconds per pair of the network alone."""
    predictor = load_predictor(spec, verb, 0)
    images = [batch[side].to(predictor.device) for side in ("left", "right")]
    with torch.inference_mode():
        for _ in range(WARM):
            predictor.predict(*images)  # also waits for the GPU
        calls, start = 0, time.perf_counter()
        while calls < 100 and time.perf_counter() < start + SECONDS:
            predictor.predict(*images)
            calls += 1
    return (time.perf_counter() - start) / (calls * len(images[0]))


def action(args: argparse.Namespace, verb: str, listed: list[Path], load) -> float:
    """Seconds per pair of an action whose network `load` returns."""
    module = importlib.import_module(f"stereo_core.actions.{verb}")
    module.load_predictor = load
    took = []
    for file in listed:
        start = time.perf_counter()
        module.run(spec_of(args, verb, file), StatusLog(None))
        took.append(time.perf_counter() - start)
    return (took[1] - took[0]) / (args.pairs - args.pairs // 10)


def measure(args: argparse.Namespace, verb: str, listed: list[Path]) -> None:
    batch = first_batch(args, listed[1])
    known = Predictor(lambda left, right: batch["disparity"][: len(left), 0], settings={"max_disparity": 416})
    alone = network_alone(spec_of(args, verb, listed[1]), verb, batch)
    say(f"{verb}: the network alone {1000 * alone:.1f} ms per pair")
    files = action(args, verb, listed, lambda *_: known)
    say(f"{verb}: reading and writing alone {1000 * files:.1f} ms per pair")
    together = action(args, verb, listed, load_predictor)
    say(
        f"{verb}: together {1000 * together:.1f} ms per pair: {together / alone:.3f} times the network alone, "
        f"{together / max(alone, files):.3f} times the slower (aim: 1.1)"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    network_options(parser)
    parser.add_argument("--pairs", type=int, default=500)
    parser.add_argument("--size", type=int, nargs=2, default=[375, 1242], metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--iters", type=int, default=22)
    parser.add_argument("--workers", type=int, default=8)
    parser.add_argument("--verbs", nargs="+", choices=tuple(SPLITS), default=list(SPLITS))
    parser.add_argument("--checkpoint", help="instead of random weights")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        listed = lists(args, folder)
        if args.checkpoint is None:
            args.checkpoint = str(folder / "random.pth")
            torch.manual_seed(0)
            save_checkpoint(create_model(**network(args)), args.checkpoint)
        what = f"{args.pairs} pairs of {args.size[1]} x {args.size[0]} px, {args.iters} iterations"
        say(f"{what}, batch {args.batch}, {args.workers} workers; {device()}, {CORES} cores")
        for verb in args.verbs:
            measure(args, verb, listed)


if __name__ == "__main__":
    main()
