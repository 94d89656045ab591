"""Settings that are valid but probably unintended; train, doctor and automl warn about them."""

from __future__ import annotations

import torch

from stereo_core.spec.experiment import ExperimentSpec
from stereo_core.spec.train import Optim
from stereo_core.values import counted


def beyond_the_cost_volume(spec: ExperimentSpec, network: torch.nn.Module) -> str:
    """A warning if valid ground truth exceeds the range of the cost volume; else an empty string."""
    counts, found = spec.dataset.max_disparity, network.config.max_disparity
    if counts <= found:
        return ""
    return (
        f"dataset.max_disparity: ground truth up to {counts} px is used, but the network's cost volume ends at {found} "
        f"px, so it can hardly learn larger disparities; lower it to {found}, or raise model.max_disparity"
    )


def warm_up_without_end(optim: Optim, steps: int) -> str:
    """A warning if the warm-up takes the whole run; else an empty string.

    Args:
        optim: the spec's `train.optim`.
        steps: optimizer steps of the whole run.
    """
    if optim.lr_scheduler == "OneCycleLR" or steps > optim.warmup_steps:  # OneCycleLR has its own warm-up
        return ""
    mend = f"lower it below {steps}" if steps > 1 else "set it to 0"
    return (
        f"train.optim.warmup_steps: the warm-up takes {counted(optim.warmup_steps, 'step')}, but the run has only "
        f"{steps}, so the rate never reaches train.optim.lr; {mend}, or train longer"
    )
