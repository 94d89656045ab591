"""The training and validation step of one batch."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.trainer.states import TrainerFn
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.func import functional_call
from torch.nn.utils import clip_grad_norm_, clip_grad_value_
from torch.optim import Optimizer

from stereo_core.data.datasets import group_by_size
from stereo_core.data.loaders import StereoLoaders
from stereo_core.spec import results_dir
from stereo_core.spec.experiment import ExperimentSpec
from stereo_core.training.averages import Averages
from stereo_core.training.checkpoints import Progress
from stereo_core.training.cuda_graph import CapturedLoss, captures
from stereo_core.training.distribution import copy_from_first, gathered, summed
from stereo_core.training.doubts import warm_up_without_end
from stereo_core.training.losses import stereo_loss
from stereo_core.training.nonfinite import NonFiniteGuard, Step
from stereo_core.training.optimizers import apply_rates, optimizer_of, rates_of, set_one_cycle_momentum
from stereo_core.training.resumption import Resumption
from stereo_core.training.schedules import lr_factor
from stereo_core.training.teaching import GroundTruthCounts
from stereo_core.training.validation import Validation

LOG = logging.getLogger(__name__)


class StereoDataModule(StereoLoaders, pl.LightningDataModule):
    """The loaders as a Lightning data module."""


class StereoModule(pl.LightningModule):
    """A stereo network in training.

    It logs `train_loss` (step and epoch), `lr`; after a validation `val_loss`, `val/loss` (the same value: mean over
    images of the smooth-L1 loss of the final disparity over valid pixels, px), `val/epe`, `val/bp1`, ... and their
    `_pixel` variants (see `stereo_core.metrics`).

    A run that is stopped after any optimizer step and resumed gives the same result as an uninterrupted one: samples
    depend on (seed, epoch, index), their order on (seed, epoch), dropout on (seed, epoch, batch, rank), and a
    checkpoint holds the rest.

    Args:
        model: a network of `stereo_core.models`.
        spec: the experiment; `train` and `dataset.max_disparity` (px, exclusive) are used.
    """

    def __init__(self, model: nn.Module, spec: ExperimentSpec) -> None:
        super().__init__()
        self.model = model
        self.settings, self.optim = spec.train, spec.train.optim
        self.max_disparity = spec.dataset.max_disparity
        self.guard = NonFiniteGuard(self, self.settings, Path(results_dir(spec, "train")) / "nonfinite")
        self.averages = Averages(model, self.settings.ema_decay)
        self.resumption = Resumption(self.settings)
        self.validation = Validation(self.max_disparity)
        self.validation_bytes = 0  # memory that the validation before training needed on a GPU, besides the weights
        self.validated: Progress | None = None  # of a checkpoint whose validation the resumed run repeats
        self.sources = spec.dataset.train_dataset.data_sources
        self.shifted = spec.dataset.train_dataset.augmentation.hshift_prob > 0
        self.loss_of: Callable[..., tuple[Tensor, Tensor]] = self.loss
        self.whole_epoch = False  # whether `teaching` saw all of the epoch; False if an earlier process began it
        self.told_of_sources: set[str] = set()
        self.replaced = torch.zeros((), dtype=torch.int64)  # number of replaced samples (dataset.on_error: skip)

    def kpi(self) -> dict[str, int]:
        """Counts over all ranks for the KPI; empty if they are zero."""
        counts = {"skipped_steps": self.guard.skipped, "skipped_samples": self._replaced_everywhere()}
        return {name: count for name, count in counts.items() if count}

    def _replaced_everywhere(self) -> int:
        return sum(gathered([int(self.replaced)]))

    # Training

    def on_train_start(self) -> None:
        """Start, or resume the state that Lightning does not restore; see Resumption.begin."""
        self.teaching = self._teaching()
        apply_rates(self.rates, self.optimizers(), self.lr_schedulers())
        self.resumption.begin(self.trainer)
        self.averages.start(self.device)
        self.guard.start()
        if captures(self.settings, self.device.type == "cuda", self.trainer.world_size):
            self.loss_of = CapturedLoss(self.loss, self.parameters(), self.validation_bytes)

    def on_train_epoch_start(self) -> None:
        self.guard.skipped_in_epoch = 0
        self.teaching, self.whole_epoch = self._teaching(), True

    def _teaching(self) -> GroundTruthCounts:
        return GroundTruthCounts(self.sources, self.max_disparity, self.device, self.shifted)

    def on_train_epoch_end(self) -> None:
        """See GroundTruthCounts.check."""
        self.guard.settle()
        if self.whole_epoch:
            self.teaching.check(self.current_epoch, self.told_of_sources, self.trainer.is_global_zero)

    def on_train_batch_start(self, batch: dict[str, Any], batch_index: int) -> None:
        place = (self.settings.seed, self.current_epoch, batch_index, self.global_rank)
        pl.seed_everything(_seed_of(place), verbose=False)
        self.guard.remember()

    def training_step(self, batch: dict[str, Any], batch_index: int) -> Tensor:
        """Loss of one batch of stacked samples: left, right (B, 3, H, W) RGB 0..255, disparity, valid (B, 1, H, W)."""
        loss, self.prediction_B1HW = self.loss_of(*(batch[key] for key in ("left", "right", "disparity", "valid")))
        self.guard.settle()  # read here: now the device is busy while the host waits
        lr, teaching = self.optimizers().param_groups[0]["lr"], self.teaching.add(batch)
        self.step_in_hand = Step(self.global_step, self.current_epoch, batch, batch_index, loss.detach(), lr, teaching)
        if "skipped" in batch:
            self.replaced = self.replaced.to(self.device) + batch["skipped"].sum()
        return loss

    def loss(self, left_B3HW: Tensor, right_B3HW: Tensor, gt_B1HW: Tensor, valid_B1HW: Tensor) -> tuple[Tensor, Tensor]:
        """The loss, and the last disparity (B, 1, H, W) in px without its gradient, for the panels."""
        init, disparities = self.model(left_B3HW, right_B3HW)
        return stereo_loss(init, disparities, gt_B1HW, valid_B1HW, self.max_disparity), disparities[-1].detach()

    def on_after_backward(self) -> None:
        """Check loss and gradients; see NonFiniteGuard.check."""
        step = self.step_in_hand
        # Logging a number, or a progress bar value, would synchronise with the GPU in every step.
        self.log("lr", torch.tensor(step.lr), on_step=True, on_epoch=False)
        loss = self.guard.check(step)
        if loss is not None:
            # The epoch's mean counts only samples with ground truth; a tensor, again to avoid a synchronisation.
            teaching = summed(step.teaching)
            self.log("train_loss", loss, on_step=True, on_epoch=True, batch_size=teaching)

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """The gradient is the mean over the step's batches: Lightning divides an epoch's last sum, of fewer batches, by
        `train.accumulate` all the same."""
        batches = (self.step_in_hand.batch_index + 1) % self.settings.accumulate
        for parameter in self.parameters() if batches else ():
            if parameter.grad is not None:
                parameter.grad.mul_(self.settings.accumulate / batches)
        if self.optim.lr_scheduler == "OneCycleLR":
            set_one_cycle_momentum(optimizer, self.global_step, int(self.trainer.estimated_stepping_batches))

    def configure_gradient_clipping(
        self, optimizer: Optimizer, gradient_clip_val: Any = None, gradient_clip_algorithm: Any = None
    ) -> None:
        """Clip the gradients; Lightning does not do so for a fused optimizer, whatever the precision."""
        self.guard.drop(optimizer)
        if gradient_clip_val:
            clip = clip_grad_value_ if gradient_clip_algorithm == "value" else clip_grad_norm_
            clip([p for group in optimizer.param_groups for p in group["params"]], gradient_clip_val)

    def optimizer_step(self, *args: Any, **options: Any) -> None:
        """One step; the averages ignore a step that was spoilt or that fp16's scaler skipped.

        Raises:
            NonFiniteLossError: see NonFiniteGuard.check_scale and count.
        """
        scale = self._scale()
        super().optimizer_step(*args, **options)
        left_out = self.guard.check_scale(self._scale(), scale, self.step_in_hand)
        self.guard.count(self.trainer.num_training_batches)
        if not (self.guard.spoilt or left_out):
            self.averages.update()
        self.guard.spoilt = False

    def on_train_end(self) -> None:
        self.guard.end()

    def _scale(self) -> float:
        """The loss scale of fp16; it is halved after each step whose gradients overflow."""
        scaler = getattr(self.trainer.precision_plugin, "scaler", None)
        return scaler.get_scale() if scaler else 1.0

    # Validation

    def on_validation_start(self) -> None:
        """Copy the first rank's running statistics, which the checkpoint holds: without SyncBatchNorm the ranks
        differ."""
        self.guard.settle()
        copy_from_first([*self.model.buffers(), *self.averages.values.values()])
        if isinstance(self.model, FSDPModule):
            self.model.unshard()
        if self._validates_alone_on_gpu:
            torch.cuda.reset_peak_memory_stats(self.device)

    def on_validation_end(self) -> None:
        if self._validates_alone_on_gpu:
            held = torch.cuda.memory_allocated(self.device)
            self.validation_bytes = torch.cuda.max_memory_allocated(self.device) - held
        if isinstance(self.model, FSDPModule):
            self.model.reshard()

    @property
    def _validates_alone_on_gpu(self) -> bool:
        """Before training, whose own peak a reset would lose."""
        return self.device.type == "cuda" and self.trainer.state.fn == TrainerFn.VALIDATING

    def validation_step(self, samples: list[dict[str, Any]], batch_index: int) -> dict[int, Tensor]:
        """Add the samples, each of its own size, to the validation metrics; uses the averaged weights if there are any.

        Returns:
            The disparity (H, W) of each sample in px, by its `index`.
        """
        predictions: dict[int, Tensor] = {}
        for batch in group_by_size(samples):
            pair, averages = (batch["left"], batch["right"]), self.averages.values
            with torch.compiler.set_stance("force_eager"):  # compiled parts would be recompiled for every size
                # tie_weights is for one weight in two modules; for a module with two names it would ignore the
                # averages.
                prediction_BHW = functional_call(self.model, averages, pair, tie_weights=False)[:, 0].float()
            predictions.update(zip(batch["index"].tolist(), prediction_BHW, strict=True))
            self.validation.add(batch, prediction_BHW)
        return predictions

    def on_validation_epoch_end(self) -> None:
        """Log the metrics of all rows; see Validation.figures for its errors."""
        mean, metrics = self.validation.figures(aloud=self.trainer.is_global_zero)
        loss = torch.tensor(mean, dtype=torch.float64)
        self.log_dict({"val_loss": loss, "val/loss": loss})
        steps = self.validated.steps if self.validated else self.trainer.global_step
        self.log("step", float(steps))  # the step for Lightning's loggers; its own count differs at an epoch's end
        self.log_dict(metrics)

    # Optimizer and checkpoints

    def configure_optimizers(self) -> dict[str, Any]:
        optimizer = optimizer_of(self.named_parameters(), self.settings)
        self.rates = rates_of(optimizer, self.optim)
        steps = int(self.trainer.estimated_stepping_batches)
        doubt = warm_up_without_end(self.optim, steps)
        if doubt and self.trainer.is_global_zero:
            LOG.warning("%s", doubt)
        factor = lr_factor(self.optim, steps)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.guard.settle()  # do not save the weights of a lost run
        # Settings that load_model cannot derive from the weights.
        checkpoint["hyper_parameters"] = {"model": asdict(self.model.config)}
        # All generators are reseeded for every batch from this seed and the batch's position in the run.
        checkpoint["rng"] = {"seed": self.settings.seed}
        checkpoint["skipped"] = [self.guard.skipped, self.guard.skipped_in_a_row, self._replaced_everywhere()]
        checkpoint["skipped_in_epoch"] = self.guard.skipped_in_epoch
        self.resumption.save(checkpoint, self.trainer)
        self.averages.save(checkpoint)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore what Lightning does not; see Resumption.load."""
        self.resumption.load(checkpoint, self)
        self.guard.skipped, self.guard.skipped_in_a_row, replaced = checkpoint.get("skipped", (0, 0, 0))
        self.guard.skipped_in_epoch = checkpoint.get("skipped_in_epoch", 0)
        self.replaced = torch.tensor(replaced if self.global_rank == 0 else 0)
        self.averages.load(checkpoint)


def _seed_of(place: tuple[int, ...]) -> int:
    """A seed (32 bits) derived from a tuple of numbers."""
    return int(np.random.SeedSequence(place).generate_state(1)[0])
