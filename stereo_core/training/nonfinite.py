"""Training steps whose loss or gradient is NaN or infinite: what is done about them, and what is left of them."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.optim import Optimizer

from stereo_core.files import atomic_path
from stereo_core.spec.train import Train
from stereo_core.training.distribution import gathered, number_of_ranks, summed
from stereo_core.training.snapshots import Snapshot
from stereo_core.training.strategy import whole
from stereo_core.values import counted, json_ready

LOG = logging.getLogger(__name__)

# A bad image spoils one step an epoch. Ten in a row mean that the weights themselves are lost or the rate is too high.
MAX_SKIPPED_IN_A_ROW = 10
MAX_SKIPPED = 0.1  # share of an epoch's steps
FEW_SKIPPED = 3  # steps of an epoch that are no reason to stop, be it ever so short
MAX_WRITTEN = 10


class NonFiniteLossError(RuntimeError):
    """A loss, its gradient or a validation became NaN or infinite: the run is lost from here on and stops."""


class Step(NamedTuple):
    """A step: its place in the run, a batch, the batch's place in the epoch, its loss, the rate of the step, and how
    many of the samples have ground truth that counts."""

    number: int  # optimizer steps before it
    epoch: int
    batch: dict[str, Any]
    batch_index: int
    loss: Tensor
    lr: float
    teaching: Tensor


class OnItsWay:
    """A tensor that a device sends to the host in its turn: who asks waits for that, and for nothing begun since."""

    def __init__(self, tensor: Tensor) -> None:
        self._tensor = tensor.to("cpu", non_blocking=True)  # into locked memory, or it would wait
        self._sent = torch.cuda.Event() if tensor.is_cuda else None
        if self._sent:
            self._sent.record()

    def get(self) -> Tensor:
        if self._sent:
            self._sent.synchronize()
        return self._tensor


class Seen(NamedTuple):
    """What a look at a step has found; nobody has waited for it.

    Attributes:
        loss: of all ranks.
        total: of all ranks; finite where loss and gradients are.
        norms: of this rank's gradients, by their names; empty where they were not looked at.
    """

    step: Step
    loss: Tensor
    total: OnItsWay
    norms: dict[str, Tensor]


class NonFiniteGuard:
    """Ends a run, or leaves out a step, whose loss or gradient is not finite, on all ranks alike.

    To leave a step out, its gradients have to be known before the weights change: the host waits for the device there.
    A run that ends has no use for its weights, and does not wait: it reads of a step when the next one's forward pass
    is on its way (`settle`), or before anybody makes use of the weights.

    No Lightning callback: those hear nothing of what comes right after the optimizer's step.

    Args:
        module: the module in training, its network in `model`.
        settings: the spec's `train`: nonfinite, precision, accumulate.
        reports: the folder of what is left of such steps.
    """

    def __init__(self, module: pl.LightningModule, settings: Train, reports: Path) -> None:
        self.module, self.settings, self.reports = module, settings, reports
        self.skipped = self.skipped_in_epoch = self.skipped_in_a_row = 0  # optimizer steps
        self.spoilt = False  # the step in hand has had a loss or a gradient that is not finite
        self.written = 0  # steps, with their inputs
        self.trained: dict[str, Tensor] = {}
        self.seen: Seen | None = None  # of the last step, where it was not read yet
        self.statistics = Snapshot(())  # the network's buffers before the batch in hand

    def start(self) -> None:
        """Before the first batch, when everything is where it stays."""
        self.trained = {name: p for name, p in self.module.model.named_parameters() if p.requires_grad}
        if self.settings.nonfinite == "skip":
            self.statistics = Snapshot(self.module.model.buffers())

    def remember(self) -> None:
        """Before a batch: batch normalisation takes in what it brings, be it finite or not."""
        self.statistics.take()

    def look(self, step: Step) -> Tensor | None:
        """After the backward pass: the mean loss of all ranks; None where the step is left out.

        It looks at the loss alone with fp16, where scaled gradients may overflow (see `check_scale`), and in a step
        that an earlier batch has spoilt, whose gradients the sum still holds.

        All ranks see what happened on one of them, and go the same way.
        """
        loss = total = step.loss
        norms = self._norms() if self.settings.precision != "fp16" and not self.spoilt else {}
        if norms:
            total = loss + whole(torch.linalg.vector_norm(torch.stack(list(norms.values()))))
        loss_of_all, total = summed(torch.stack([loss, total])) / number_of_ranks()
        seen = Seen(step, loss_of_all, OnItsWay(total), norms)
        if self.settings.nonfinite == "fail":
            self.seen = seen
            return loss_of_all
        if torch.isfinite(seen.total.get()):
            return loss_of_all
        self.spoilt = True
        for message in self._messages(seen):
            LOG.warning("step skipped: %s", message)
        self.statistics.give_back()
        return None

    def settle(self) -> None:
        """Read what the last look found, unless that was done before.

        Raises:
            NonFiniteLossError: loss or gradients are NaN or infinite, and `train.nonfinite` is fail.
        """
        seen, self.seen = self.seen, None
        if seen is not None and not torch.isfinite(seen.total.get()):
            raise NonFiniteLossError("; ".join(self._messages(seen)))

    def _norms(self) -> dict[str, Tensor]:
        gradients = {name: p.grad for name, p in self.trained.items() if p.grad is not None}
        return dict(zip(gradients, torch._foreach_norm(list(gradients.values())), strict=True)) if gradients else {}

    def _messages(self, seen: Seen) -> list[str]:
        """Of all ranks on which it happened."""
        own = torch.isfinite(seen.loss) or not torch.isfinite(seen.step.loss)
        return gathered([self._report(seen.step, seen.norms)] if own else [])

    def drop(self, optimizer: Optimizer) -> None:
        """Before the step: without gradients an optimizer leaves weights and state alone."""
        if self.spoilt:
            optimizer.zero_grad(set_to_none=True)

    def check_scale(self, scale: float, before: float, step: Step) -> bool:
        """After the step: whether fp16's scaler left it out, which by design happens to the first ones.

        Args:
            scale, before: what the loss is multiplied by; it is halved after a step whose gradients overflow.

        Raises:
            NonFiniteLossError: no scale makes the gradients finite.
        """
        if scale < min(before, 1):
            raise NonFiniteLossError(
                f"however fp16 scales it, {self._report(step, self._norms())}; or set train.precision to bf16 or fp32, "
                "and resume from an earlier checkpoint"
            )
        return scale < before

    def count(self, batches: int) -> None:
        """After the step: count it if it was left out.

        Args:
            batches: of an epoch.

        Raises:
            NonFiniteLossError: too many steps in a row or of the epoch were.
        """
        self.skipped += self.spoilt
        self.skipped_in_epoch += self.spoilt
        self.skipped_in_a_row = self.skipped_in_a_row + 1 if self.spoilt else 0
        steps = math.ceil(batches / self.settings.accumulate)
        many = ""
        if self.skipped_in_a_row > MAX_SKIPPED_IN_A_ROW:
            many = f"{counted(self.skipped_in_a_row, 'step')} in a row"
        elif self.skipped_in_epoch > max(FEW_SKIPPED, MAX_SKIPPED * steps):
            many = f"{self.skipped_in_epoch} of this epoch's {counted(steps, 'step')}, more than {MAX_SKIPPED:.0%},"
        if many:
            raise NonFiniteLossError(
                f"{many} had a loss or gradient that is not finite, the last one step {self.module.global_step}; see "
                f"{self.reports}; lower train.optim.lr and resume from an earlier checkpoint"
            )

    def _report(self, step: Step, norms: dict[str, Tensor]) -> str:
        """Write down a step that is not finite; says what happened, and where it is written.

        Of the steps that are skipped only the first: a batch may be 100 MB, and they tell what there is to tell.
        """
        what = "the gradient is not finite" if torch.isfinite(step.loss) else f"the loss is {step.loss.item()}"
        see = ""
        if self.settings.nonfinite == "fail" or self.written < MAX_WRITTEN:
            see = f"see {self._write(step, norms)}; "
            self.written += 1
        return (
            f"{what} at step {step.number} of epoch {step.epoch}, for the images "
            f"{', '.join(step.batch['path'])}; {see}lower train.optim.lr, or look at these images and their ground "
            "truth"
        )

    def _write(self, step: Step, norms: dict[str, Tensor]) -> Path:
        name = f"epoch_{step.epoch:03d}_step_{step.number:05d}_batch_{step.batch_index:05d}"
        name += f"_rank_{self.module.global_rank}" if number_of_ranks() > 1 else ""
        facts = {"epoch": step.epoch, "step": step.number, "batch": step.batch_index, "loss": step.loss, "lr": step.lr}
        return write_step(self.reports, name, step.batch, facts, norms.items())


def write_step(
    folder: Path, name: str, batch: dict[str, Any], facts: dict[str, Any], gradients: Iterable[tuple[str, Tensor]]
) -> Path:
    """Write the step's inputs as `<name>.pth` (read by `torch.load(..., weights_only=True)`) and what is known of it as
    `<name>.json`: the facts, each input's range and share of finite values, the gradients that are not finite.

    Args:
        gradients: by name, or their norms.

    Returns:
        The path of the .json.
    """
    path = folder / f"{name}.json"
    inputs = {key: value.cpu() if isinstance(value, Tensor) else value for key, value in batch.items()}
    with atomic_path(path.with_suffix(".pth")) as temporary:
        torch.save(inputs, temporary)
    report = facts | {
        "index": inputs.get("index"),
        "path": inputs.get("path"),
        "inputs": {key: statistics(value) for key, value in inputs.items() if isinstance(value, Tensor)},
        "nonfinite_gradients": [key for key, value in gradients if not torch.isfinite(value).all()],
    }
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(json_ready(report), indent=2) + "\n", encoding="utf-8")
    return path


def statistics(values: Tensor) -> dict[str, Any]:
    """Shape, share of finite values (0..1), and least, mean and largest of those."""
    finite = values[torch.isfinite(values)].double()
    found = {"shape": list(values.shape), "finite": finite.numel() / max(1, values.numel())}
    if finite.numel():
        found |= {"min": finite.min(), "mean": finite.mean(), "max": finite.max()}
    return found
