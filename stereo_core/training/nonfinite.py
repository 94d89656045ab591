"""Handling and reports of training steps whose loss or gradient is NaN or infinite."""

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

from stereo_core.errors import ExplainedError
from stereo_core.files import atomic_path
from stereo_core.models.files import write_torch
from stereo_core.spec.train import Train
from stereo_core.training.distribution import gathered, number_of_ranks, summed
from stereo_core.training.snapshots import Snapshot
from stereo_core.training.strategy import whole
from stereo_core.values import counted, json_ready

LOG = logging.getLogger(__name__)

# A bad image spoils one step per epoch. Ten in a row mean that the weights are lost or the rate is too high.
MAX_SKIPPED_IN_A_ROW = 10
MAX_SKIPPED = 0.1  # share of an epoch's steps
FEW_SKIPPED = 3  # skipped steps that are tolerated in any epoch, however short
MAX_WRITTEN = 10


class NonFiniteLossError(ExplainedError):
    """The loss, its gradient or a validation is NaN or infinite: the run is lost and stops."""


class Step(NamedTuple):
    """A step: its number in the run, a batch, the batch's position in the epoch, its loss, its learning rate, and the
    number of samples with valid ground truth."""

    number: int  # number of optimizer steps before it
    epoch: int
    batch: dict[str, Any]
    batch_index: int
    loss: Tensor
    lr: float
    teaching: Tensor


class PendingCopy:
    """An asynchronous copy of a tensor to the host: `get` waits for this copy only, not for later work."""

    def __init__(self, tensor: Tensor) -> None:
        self._tensor = tensor.to("cpu", non_blocking=True)  # into pinned memory, otherwise it would wait
        self._sent = torch.cuda.Event() if tensor.is_cuda else None
        if self._sent:
            self._sent.record()

    def get(self) -> Tensor:
        if self._sent:
            self._sent.synchronize()
        return self._tensor


class CheckResult(NamedTuple):
    """The result of checking a step, still pending on the device.

    Attributes:
        loss: of all ranks.
        total: of all ranks; finite if loss and gradients are.
        norms: of this rank's gradients, by name; empty if they were not checked.
    """

    step: Step
    loss: Tensor
    total: PendingCopy
    norms: dict[str, Tensor]


class NonFiniteGuard:
    """Stops a run or skips a step, on all ranks alike, if the loss or a gradient is not finite.

    To skip a step, the host must wait for its gradients before the weights change. A run that will stop does not need
    its weights, so it does not wait: it reads the result while the next step's forward pass is running (`settle`), or
    before the weights are used.

    It is not a Lightning callback, because there is no hook right after the optimizer's step.

    Args:
        module: the module in training; `module.model` is the network.
        settings: the spec's `train`: nonfinite, precision, accumulate.
        reports: the folder for reports on such steps.
    """

    def __init__(self, module: pl.LightningModule, settings: Train, reports: Path) -> None:
        self.module, self.settings, self.reports = module, settings, reports
        self.skipped = self.skipped_in_epoch = self.skipped_in_a_row = 0  # optimizer steps
        self.spoilt = False  # the current step has had a non-finite loss or gradient
        self.written = 0  # number of reported steps
        self.trained: dict[str, Tensor] = {}
        self.pending: CheckResult | None = None  # result of the last step, if not read yet
        self.statistics = Snapshot(())  # the network's buffers before the current batch

    def start(self) -> None:
        """Call before the first batch, when all tensors are on their final device."""
        self.trained = {name: p for name, p in self.module.model.named_parameters() if p.requires_grad}
        if self.settings.nonfinite == "skip":
            self.statistics = Snapshot(self.module.model.buffers())

    def remember(self) -> None:
        """Call before a batch: save the buffers, because batch normalisation also takes in non-finite values."""
        self.statistics.take()

    def check(self, step: Step) -> Tensor | None:
        """Call after the backward pass. Return the mean loss of all ranks; None if the step is skipped.

        It checks only the loss with fp16, where scaled gradients may overflow (see `check_scale`), and in a step that
        an earlier batch has spoilt, because the accumulated gradients still contain that batch.

        All ranks get the same result and act alike.
        """
        loss = total = step.loss
        norms = self._norms() if self.settings.precision != "fp16" and not self.spoilt else {}
        if norms:
            total = loss + whole(torch.linalg.vector_norm(torch.stack(list(norms.values()))))
        loss_of_all, total = summed(torch.stack([loss, total])) / number_of_ranks()
        result = CheckResult(step, loss_of_all, PendingCopy(total), norms)
        if self.settings.nonfinite == "fail":
            self.pending = result
            return loss_of_all
        if torch.isfinite(result.total.get()):
            return loss_of_all
        self.spoilt = True
        for message in self._messages(result):
            LOG.warning("skipped a step: %s", message)
        self.statistics.restore()
        return None

    def settle(self) -> None:
        """Read the result of the last check, unless it was read before.

        Raises:
            NonFiniteLossError: loss or gradients are NaN or infinite, and `train.nonfinite` is fail.
        """
        result, self.pending = self.pending, None
        if result is not None and not torch.isfinite(result.total.get()):
            raise NonFiniteLossError("; ".join(self._messages(result)))

    def _norms(self) -> dict[str, Tensor]:
        gradients = {name: p.grad for name, p in self.trained.items() if p.grad is not None}
        return dict(zip(gradients, torch._foreach_norm(list(gradients.values())), strict=True)) if gradients else {}

    def _messages(self, result: CheckResult) -> list[str]:
        """The messages of all affected ranks."""
        own = torch.isfinite(result.loss) or not torch.isfinite(result.step.loss)
        return gathered([self._report(result.step, result.norms)] if own else [])

    def drop(self, optimizer: Optimizer) -> None:
        """Call before the step: drop the gradients, so that the optimizer changes neither weights nor state."""
        if self.spoilt:
            optimizer.zero_grad(set_to_none=True)

    def check_scale(self, scale: float, before: float, step: Step) -> bool:
        """Call after the step. Return whether fp16's scaler skipped it, which is normal for the first steps.

        Args:
            scale, before: the loss scale after and before the step; it is halved after a step whose gradients overflow.

        Raises:
            NonFiniteLossError: even the smallest scale gives non-finite gradients.
        """
        if scale < min(before, 1):
            raise NonFiniteLossError(
                f"with every fp16 loss scale, {self._report(step, self._norms())}; or set train.precision to bf16 or "
                "fp32, and resume from an earlier checkpoint"
            )
        return scale < before

    def count(self, batches: int) -> None:
        """Call after the step: count it if it was skipped.

        Args:
            batches: number of batches in an epoch.

        Raises:
            NonFiniteLossError: too many steps in a row or in the epoch were skipped.
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
                f"{many} had a non-finite loss or gradient; the last one is step {self.module.global_step}, see "
                f"{self.reports}; lower train.optim.lr and resume from an earlier checkpoint"
            )

    def end(self) -> None:
        """Call after the last step.

        Raises:
            NonFiniteLossError: all steps of the run were skipped, in epochs too short for the limits of `count`.
        """
        if self.skipped and self.skipped == self.module.global_step:
            raise NonFiniteLossError(
                f"each step of the run ({self.skipped}) had a non-finite loss or gradient and was skipped, so the "
                f"checkpoints hold the weights that the run began with; see {self.reports}; check those weights and "
                "the images, or lower train.optim.lr"
            )

    def _report(self, step: Step, norms: dict[str, Tensor]) -> str:
        """Write a report on a non-finite step; return a text about what happened and where the report is.

        Only the first skipped steps are written, because a batch may have 100 MB and more would add nothing.
        """
        what = "the gradient is not finite" if torch.isfinite(step.loss) else f"the loss is {step.loss.item()}"
        see = ""
        if self.settings.nonfinite == "fail" or self.written < MAX_WRITTEN:
            see = f"see {self._write(step, norms)}; "
            self.written += 1
        return (
            f"{what} at step {step.number} of epoch {step.epoch + 1} for the images "
            f"{', '.join(step.batch['path'])}; {see}lower train.optim.lr, or check these images and their ground "
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
    """Write the step's inputs as `<name>.pth` (read by `torch.load(..., weights_only=True)`) and a report as
    `<name>.json`: the facts, each input's range and share of finite values, and the non-finite gradients.

    Args:
        gradients: the gradients or their norms, by name.

    Returns:
        The path of the .json.
    """
    path = folder / f"{name}.json"
    inputs = {key: value.cpu() if isinstance(value, Tensor) else value for key, value in batch.items()}
    with atomic_path(path.with_suffix(".pth")) as temporary:
        write_torch(inputs, temporary)
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
    """Shape, share of finite values (0..1), and their minimum, mean and maximum."""
    finite = values[torch.isfinite(values)].double()
    found = {"shape": list(values.shape), "finite": finite.numel() / max(1, values.numel())}
    if finite.numel():
        found |= {"min": finite.min(), "mean": finite.mean(), "max": finite.max()}
    return found
