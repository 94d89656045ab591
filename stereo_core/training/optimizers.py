"""The optimizer of a training: its groups, their rates, and what of them holds when a run goes on."""

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

BACKBONE = "model.feature."  # EdgeNeXt, what ties it to the ViT, and the ViT where it is trained

Rates = list[dict[str, Any]]
"""What the spec wants of each group: lr, weight_decay and, unless the schedule sets it, the momentum."""


def optimizer_of(parameters: Iterable[tuple[str, nn.Parameter]], settings: Train) -> Optimizer:
    """The optimizer of the spec's `train`, with two groups: the network, and the backbone with a rate of its own.

    On GPUs AdamW's step is one kernel for many weights, but with fp16, where it would hide from the clipping what the
    gradients were scaled by.
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
    """What a new optimizer has, before any schedule or checkpoint changes it."""
    names = ("lr", "weight_decay", *(("momentum", "betas") if optim.lr_scheduler != "OneCycleLR" else ()))
    return [{name: group[name] for name in names if name in group} for group in optimizer.param_groups]


def _with_own_kernels(optimizer: Optimizer, saved: dict[str, Any]) -> dict[str, Any]:
    """A saved state, which may be of another device or precision, without its say in how this run computes."""
    own = [{name: group[name] for name in ("fused", "foreach")} for group in optimizer.param_groups]
    return saved | {"param_groups": [group | o for group, o in zip(saved["param_groups"], own, strict=True)]}


def apply_rates(rates: Rates, optimizer: Optimizer, scheduler: LambdaLR) -> None:
    """Let the spec's rates hold where a resumed run's optimizer has brought those that it was stopped with."""
    for number, (group, wanted) in enumerate(zip(optimizer.param_groups, rates, strict=True)):
        for name, value in wanted.items():
            was = group["initial_lr" if name == "lr" else name]
            if was != value:
                LOG.warning("%s of the %s is %s and was %s: the new value holds from here",
                            name, ("network", "backbone")[number], value, was)  # fmt: skip
        factor = scheduler.lr_lambdas[number](scheduler.last_epoch)
        group.update(wanted | {"initial_lr": wanted["lr"], "lr": wanted["lr"] * factor})
    scheduler.base_lrs = [wanted["lr"] for wanted in rates]


def set_one_cycle_momentum(optimizer: Optimizer, step: int, total_steps: int) -> None:
    """Of SGD its momentum, of AdamW the first beta."""
    momentum = one_cycle_momentum(step, total_steps)
    for group in optimizer.param_groups:
        group.update({"betas": (momentum, group["betas"][1])} if "betas" in group else {"momentum": momentum})


def name_of_saved(state: dict[str, Any]) -> str:
    """The optimizer that a saved state is of, as `train.optim.optimizer` names it."""
    return "AdamW" if "betas" in state["param_groups"][0] else "SGD"
