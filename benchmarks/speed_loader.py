"""Compare the training loader with decoding alone: pairs per second of one worker process.

python benchmarks/speed_loader.py [--pairs 16] [--height 540] [--width 960] [--crop 320 736] [--rounds 9]

It writes synthetic pairs (8-bit PNG, disparities as PFM), then reads them through one loader process in three ways:
decoded and discarded; as training batches of 4 with all augmentations at their defaults; with these and flips. Each
round does all three; the figures are medians over the rounds. Aim: at most 2 times the cost of decoding.

python benchmarks/speed_loader.py --step 400 [--workers 8] [--pairs 400] [--height 540] ...
    The share of the time that training steps wait for the loader. The loader is set up as in `train` (with pinned
    memory on a GPU); each step takes the given milliseconds for a batch of 4. Aim: at most 2 %.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import torch
from torch.utils.data import DataLoader, Dataset

from stereo_core.cores import usable_cores
from stereo_core.data.annotations import write_annotations
from stereo_core.data.codecs import write_pfm
from stereo_core.data.datasets import StereoDataset, read_pair
from stereo_core.data.images import write_png
from stereo_core.data.loaders import StereoLoaders, start_worker
from stereo_core.data.synthetic.planes import make_scene
from stereo_core.spec import ExperimentSpec

DIFFERENT = 16
GPU = torch.cuda.is_available()
CORES = usable_cores()


class Decoded(Dataset):
    """Reads the pairs of a data set and returns only their index."""

    def __init__(self, dataset: StereoDataset) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> int:
        read_pair(self.dataset.samples[index], self.dataset.sources[index])
        return index


def write_pairs(folder: Path, pairs: int, height: int, width: int) -> Path:
    """The annotation list of `pairs` synthetic pairs, which repeat DIFFERENT ones."""
    rows = []
    for number in range(min(pairs, DIFFERENT)):
        scene = make_scene(height, width, 128, number)
        row = [str(folder / f"{number:03d}_{name}") for name in ("left.png", "right.png", "disparity.pfm")]
        write_png(row[0], scene["left"])
        write_png(row[1], scene["right"])
        write_pfm(row[2], scene["disparity"])
        rows.append(row)
    write_annotations(folder / "list.txt", [rows[number % len(rows)] for number in range(pairs)])
    return folder / "list.txt"


def training_loader(listed: Path, crop: list[int], augmentation: dict, workers: int = 1) -> DataLoader:
    """The loader of `train` with batches of 4."""
    section = {"data_sources": [{"data_file": str(listed)}], "workers": workers, "batch_size": 4}
    section["augmentation"] = {"crop_size": crop, **augmentation}
    module = StereoLoaders(ExperimentSpec.model_validate({"dataset": {"train_dataset": section}}))
    module.setup("fit")
    return module.train_dataloader()


def seconds_a_pair(loader: DataLoader, epoch: int) -> float:
    if hasattr(loader.sampler, "set_epoch"):
        loader.sampler.set_epoch(epoch)
    begin = time.perf_counter()
    batches = sum(1 for _ in loader)
    return (time.perf_counter() - begin) / (batches * loader.batch_size)


def waiting(loader: DataLoader, step: float, crop: list[int]) -> None:
    """Print the share of an epoch's time that steps of `step` seconds wait, without the first batch."""
    batches = iter(loader)
    next(batches)
    begin, before = time.perf_counter(), loader.waited
    steps = 0
    for batch in batches:
        if GPU:
            batch["left"].to("cuda", non_blocking=True)
        time.sleep(step)
        steps += 1
    seconds, waited = time.perf_counter() - begin, loader.waited - before
    print(
        f"{loader.num_workers} workers of {CORES} cores, crop {crop}, {steps} steps of {1000 * step:.0f} ms, batches "
        f"of {loader.batch_size}: {waited / seconds:.2%} of the time waiting for data, "
        f"{loader.batch_size * steps / seconds:.1f} pairs/s"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=16, help="pairs per epoch, at most 16 different ones")
    parser.add_argument("--height", type=int, default=540)
    parser.add_argument("--width", type=int, default=960)
    parser.add_argument("--crop", type=int, nargs=2, default=[320, 736])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--step", type=float, help="milliseconds")
    parser.add_argument("--workers", type=int, default=8, help="with --step")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        listed = write_pairs(Path(folder), arguments.pairs, arguments.height, arguments.width)
        if arguments.step:
            loader = training_loader(listed, arguments.crop, {"do_flip": True}, arguments.workers)
            waiting(loader, arguments.step / 1000, arguments.crop)
            return
        default = training_loader(listed, arguments.crop, {})
        decoded = DataLoader(
            Decoded(default.dataset),
            batch_size=4,
            num_workers=1,
            worker_init_fn=start_worker,
            persistent_workers=True,
            drop_last=True,
        )
        loaders = {
            "decoding alone": decoded,
            "defaults": default,
            "defaults and flips": training_loader(listed, arguments.crop, {"do_flip": True}),
        }
        for loader in loaders.values():
            seconds_a_pair(loader, 0)  # also starts the workers
        rounds = [
            {name: seconds_a_pair(loader, number) for name, loader in loaders.items()}
            for number in range(arguments.rounds)
        ]
    print(f"{arguments.pairs} pairs {arguments.height}x{arguments.width}, crop {arguments.crop}, one worker")
    print(f"{'':20} {'ms per pair':>11} {'pairs/s':>9} {'x decoding':>11}")
    for name in loaders:
        cost = statistics.median(row[name] for row in rounds)
        ratio = statistics.median(row[name] / row["decoding alone"] for row in rounds)
        print(f"{name:20} {1e3 * cost:11.1f} {1 / cost:9.1f} {ratio:11.2f}")


if __name__ == "__main__":
    main()
