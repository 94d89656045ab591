"""What of a spec lets a training go, and is hardly meant: said by train, doctor and automl."""

from __future__ import annotations

import torch

from stereo_core.spec.experiment import ExperimentSpec
from stereo_core.spec.train import Optim
from stereo_core.values import counted


def beyond_the_cost_volume(spec: ExperimentSpec, network: torch.nn.Module) -> str:
    """What is wrong with ground truth that counts and that the network can hardly find; empty where nothing is."""
    counts, found = spec.dataset.max_disparity, network.config.max_disparity
    if counts <= found:
        return ""
    return (
        f"dataset.max_disparity: ground truth up to {counts} px counts, and the network's cost volume ends at {found} "
        f"px: it is trained towards what it can hardly find; lower it to {found}, or raise model.max_disparity"
    )


def warm_up_without_end(optim: Optim, steps: int) -> str:
    """What is wrong with a warm-up that takes the whole run; empty where nothing is.

    Args:
        optim: the spec's `train.optim`.
        steps: optimizer steps of the whole run.
    """
    if optim.lr_scheduler == "OneCycleLR" or steps > optim.warmup_steps:  # that has a warm-up of its own
        return ""
    return (
        f"train.optim.warmup_steps: {counted(optim.warmup_steps, 'step')} of warm-up, and the run has {steps} in all: "
        f"the rate never comes to train.optim.lr; lower it below {steps}, or train longer"
    )
