"""The optimizer of a training: its groups, their learning rates, and how a resumed run sets them."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any

from torch import nn
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from stereo_core.spec.train import Optim, Train
from stereo_core.training.schedules import one_cycle_momentum

LOG = logging.getLogger(__name__)

BACKBONE = "model.feature."  # EdgeNeXt, the layers that join it with the ViT, and the ViT if it is trained

Rates = list[dict[str, Any]]
"""The spec's values for each group: lr, weight_decay and, unless the schedule sets it, the momentum."""


def optimizer_of(parameters: Iterable[tuple[str, nn.Parameter]], settings: Train) -> Optimizer:
    """The optimizer of the spec's `train`, with two groups: the network, and the backbone with its own rate.

    On GPUs AdamW is fused (one kernel for many weights), except with fp16, where a fused step would unscale the
    gradients only after the clipping.
    """
    optim = settings.optim
    trained = [(name, p) for name, p in parameters if p.requires_grad]
    groups = [
        {"params": [p for name, p in trained if not name.startswith(BACKBONE)], "lr": optim.lr},
        {
            "params": [p for name, p in trained if name.startswith(BACKBONE)],
            "lr": optim.lr * settings.backbone_lr_factor,
        },
    ]
    if optim.optimizer == "SGD":
        return SGD(groups, momentum=optim.momentum, weight_decay=optim.weight_decay)
    fused = settings.precision != "fp16" and all(p.is_cuda for _, p in trained)
    optimizer = AdamW(groups, weight_decay=optim.weight_decay, fused=fused or None)
    optimizer.register_load_state_dict_pre_hook(_with_own_kernels)
    return optimizer


def rates_of(optimizer: Optimizer, optim: Optim) -> Rates:
    """The values of a new optimizer, before any schedule or checkpoint changes them."""
    names = ("lr", "weight_decay", *(("momentum", "betas") if optim.lr_scheduler != "OneCycleLR" else ()))
    return [{name: group[name] for name in names if name in group} for group in optimizer.param_groups]


def _with_own_kernels(optimizer: Optimizer, saved: dict[str, Any]) -> dict[str, Any]:
    """A saved state with this run's choice of kernels, because it may come from another device or precision."""
    own = [{name: group[name] for name in ("fused", "foreach")} for group in optimizer.param_groups]
    return saved | {"param_groups": [group | o for group, o in zip(saved["param_groups"], own, strict=True)]}


def apply_rates(rates: Rates, optimizer: Optimizer, scheduler: LambdaLR) -> None:
    """Apply the spec's rates to a resumed run, whose optimizer has loaded those of the checkpoint."""
    for number, (group, wanted) in enumerate(zip(optimizer.param_groups, rates, strict=True)):
        for name, value in wanted.items():
            was = group["initial_lr" if name == "lr" else name]
            if was != value:
                LOG.warning("%s of the %s is now %s (was %s): the new value applies from the resumed step",
                            name, ("network", "backbone")[number], value, was)  # fmt: skip
        factor = scheduler.lr_lambdas[number](scheduler.last_epoch)
        group.update(wanted | {"initial_lr": wanted["lr"], "lr": wanted["lr"] * factor})
    scheduler.base_lrs = [wanted["lr"] for wanted in rates]


def set_one_cycle_momentum(optimizer: Optimizer, step: int, total_steps: int) -> None:
    """Set the momentum of SGD, or the first beta of AdamW."""
    momentum = one_cycle_momentum(step, total_steps)
    for group in optimizer.param_groups:
        group.update({"betas": (momentum, group["betas"][1])} if "betas" in group else {"momentum": momentum})


def name_of_saved(state: dict[str, Any]) -> str:
    """The optimizer of a saved state, named as in `train.optim.optimizer`."""
    return "AdamW" if "betas" in state["param_groups"][0] else "SGD"
