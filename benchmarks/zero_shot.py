"""Evaluate checkpoints and StereoSGBM on pairs that were never trained on.

python benchmarks/zero_shot.py LIST[:DATASET[:SCALE]] ... [--checkpoint FILE ...] [--iters N]
    LIST is an annotation file (lines `left right disparity [mask]`); DATASET and SCALE are the data source's
    dataset_name and disparity_scale, for example Middlebury:4 for the 8-bit files of 2003. A row is the mean over the
    images of a list: EPE in px, BP-1, BP-2 and D1 in percent over all pixels with ground truth, and seconds per image.
    StereoSGBM uses the largest disparity of the ground truth as its search range; its gaps are filled.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from sgbm import background_filled, sgbm_disparity

from stereo_core.data.annotations import read_annotations
from stereo_core.data.datasets import StereoDataset
from stereo_core.metrics import disparity_metrics
from stereo_core.models.checkpoints import load_model

Matcher = Callable[[dict], np.ndarray]
COLUMNS = ("epe", "bp1", "bp2", "d1", "seconds")


def main() -> None:
    args = arguments()
    sets = {name: read_set(name) for name in args.lists}
    matchers: dict[str, Matcher] = {"StereoSGBM": sgbm}
    for checkpoint in args.checkpoint:
        matchers[Path(checkpoint).name] = network(load_model(checkpoint).eval(), args.iters)
    show(figures(sets, matchers))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("lists", nargs="+")
    parser.add_argument("--checkpoint", nargs="*", default=[])
    parser.add_argument("--iters", type=int, help="iterations of the network; default: the checkpoint's")
    return parser.parse_args()


def read_set(name: str) -> StereoDataset:
    """The pairs of `LIST[:DATASET[:SCALE]]`."""
    listed, dataset, scale, *_ = [*name.split(":"), "", ""]
    stored_scale = float(scale) if scale else None
    source = SimpleNamespace(
        dataset_name=dataset, disparity_format="auto", disparity_scale=stored_scale, image_bits="auto"
    )
    samples = read_annotations(listed)
    return StereoDataset(samples, [source] * len(samples), [sample.left for sample in samples])


def sgbm(sample: dict) -> np.ndarray:
    return background_filled(sgbm_disparity(sample, float(sample["disparity"].max())))


def network(model: torch.nn.Module, iters: int | None = None) -> Matcher:
    """A model in eval mode, on a GPU if there is one."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = model.to(device)

    @torch.inference_mode()
    def match(sample: dict) -> np.ndarray:
        views = [sample[side][None].to(device) for side in ("left", "right")]
        return model(*views, iters)[0, 0].float().cpu().numpy()

    return match


def figures(sets: dict[str, StereoDataset], matchers: dict[str, Matcher]) -> list[dict]:
    """One row per set and matcher: COLUMNS, shares in 0..1."""
    rows = []
    for name, pairs in sets.items():
        for matcher, match in matchers.items():
            measured = [measure(pairs[index], match) for index in range(len(pairs))]
            means = {column: float(np.mean([row[column] for row in measured])) for column in COLUMNS}
            rows.append({"set": name.split(":")[0], "matcher": matcher, "images": len(pairs), **means})
    return rows


def measure(sample: dict, match: Matcher) -> dict[str, float]:
    match(sample)  # the first call of a size chooses kernels and allocates
    begin = time.perf_counter()
    disparity = match(sample)
    seconds = time.perf_counter() - begin
    return disparity_metrics(disparity, sample["disparity"][0], sample["valid"][0], np.inf) | {"seconds": seconds}


def show(rows: list[dict]) -> None:
    table = Table("set", "images", "matcher", "EPE px", "BP-1 %", "BP-2 %", "D1 %", "s")
    for row in rows:
        shares = (f"{100 * row[name]:.1f}" for name in ("bp1", "bp2", "d1"))
        table.add_row(
            row["set"], str(row["images"]), row["matcher"], f"{row['epe']:.2f}", *shares, f"{row['seconds']:.2f}"
        )
    Console(width=130).print(table)


if __name__ == "__main__":
    main()
