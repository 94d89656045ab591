"""Recompute the running statistics of a network's batch normalisations on scenes of the synthetic stream.

python benchmarks/renew_statistics.py IN [IN ...] OUT [--batches 14] [--start 50000]
    For sound weights whose running statistics are not finite (a single batch that overflows causes that), and for the
    mean of several weights, whose statistics are none of theirs. Each statistic becomes the mean over batches of two
    scenes of 320x640 px. OUT is in half precision.
"""

from __future__ import annotations

import argparse
import copy
import itertools

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from stereo_core.data.synthetic.stream import Stream
from stereo_core.models import load_model
from stereo_core.models.checkpoints import save_checkpoint

MOMENTUM = 0.1  # PyTorch's default
ITERATIONS = 3
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sources", nargs="+")
    parser.add_argument("target")
    parser.add_argument("--batches", type=int, default=14)
    parser.add_argument("--start", type=int, default=50000, help="number of the first scene (seed 1)")
    args = parser.parse_args()
    model = mean_of([load_model(source).float() for source in args.sources]).to(DEVICE).train()
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the mean over all batches
    scenes = Stream(320, 640, (6.0, 190.0), 1, appearance=1.0).batches(2, DEVICE, args.start)
    with torch.no_grad():
        for number, batch in enumerate(itertools.islice(scenes, args.batches), 1):
            model(batch["left"], batch["right"], ITERATIONS)
            print(f"batch {number} of {args.batches}", flush=True)
    for norm in norms:
        norm.momentum = MOMENTUM
    save_checkpoint(copy.deepcopy(model).half().eval().cpu(), args.target)


def mean_of(models: list[nn.Module]) -> nn.Module:
    """The first model with the mean of all weights."""
    with torch.no_grad():
        for parameters in zip(*(model.parameters() for model in models), strict=True):
            parameters[0].copy_(torch.stack(parameters).mean(0))
    return models[0]


if __name__ == "__main__":
    main()
