"""The training and validation step: what happens to one batch, and with which optimizer."""

from __future__ import annotations

import logging
import math
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.func import functional_call
from torch.nn.functional import smooth_l1_loss

from stereo_core.data.datasets import group_by_size
from stereo_core.data.loaders import StereoLoaders
from stereo_core.errors import DataError, ModelError
from stereo_core.metrics import METRICS, StereoMetrics, disparity_metrics
from stereo_core.models.files import AVERAGES
from stereo_core.spec import results_dir
from stereo_core.training.checkpoints import Progress, progress_of, settle_counters
from stereo_core.training.distribution import gathered, number_of_ranks, summed, taken_from_first
from stereo_core.training.losses import stereo_loss
from stereo_core.training.nonfinite import NonFiniteLossError, write_step
from stereo_core.training.schedules import lr_factor, one_cycle_momentum
from stereo_core.training.strategy import whole

LOG = logging.getLogger(__name__)

# A bad image spoils one step an epoch. Ten in a row mean that the weights themselves are lost or the rate is too high.
MAX_SKIPPED_IN_A_ROW = 10
MAX_SKIPPED = 0.1  # share of an epoch's steps
FEW_SKIPPED = 3  # steps of an epoch that are no reason to stop, be it ever so short
MAX_WRITTEN = 10
_CODING = "check dataset_name, disparity_format, the masks and dataset.max_disparity"
BACKBONE = "model.feature."  # EdgeNeXt and what ties it to the ViT; the ViT itself is not trained


class StereoDataModule(StereoLoaders, pl.LightningDataModule):
    """The loaders, as Lightning wants them."""


class StereoModule(pl.LightningModule):
    """A stereo network in training.

    Logged: `train_loss` (step and epoch), `lr`; after a validation `val_loss`, `val/loss` (the same: mean over images
    of the smooth-L1 loss of the final disparity over valid pixels, px), `val/epe`, `val/bp1`, ... and their `_pixel`
    twins (see `stereo_core.metrics`).

    A run stopped after any optimizer step and resumed goes the same way as one that was not: samples depend on (seed,
    epoch, index), their order on (seed, epoch), dropout on (seed, epoch, batch, rank), and a checkpoint holds the rest.

    Args:
        model: a network of `stereo_core.models`.
        spec: the experiment; `train` and `dataset.max_disparity` (px, exclusive) count.
    """

    def __init__(self, model: nn.Module, spec) -> None:
        super().__init__()
        self.model = model
        self.settings, self.optim = spec.train, spec.train.optim
        self.max_disparity = spec.dataset.max_disparity
        self.rows: list[dict] = []  # of the validation in hand, one an image of this rank
        self.reports = Path(results_dir(spec, "train")) / "nonfinite"
        self.validated: Progress | None = None  # of a checkpoint whose validation a resumed run makes up for
        self.batches_done = 0  # of the epoch that a resumed run stands in
        self.epoch_of: dict[str, int] = {}  # how that epoch was cut into batches
        self.averages: dict[str, Tensor] = {}  # of the network's weights and statistics, by their names
        self.skipped = self.skipped_in_epoch = self.skipped_in_a_row = 0  # optimizer steps
        self.pixels: Tensor | None = None  # that counted in this epoch; None where another process began it
        self.told_of_empty = False  # validation images
        self.replaced = torch.zeros((), dtype=torch.int64)  # samples (dataset.on_error: skip)
        self.spoilt = False  # the step in hand has had a loss or a gradient that is not finite
        self.written = 0  # steps, with their inputs

    def kpi(self) -> dict[str, int]:
        """What there is to count, over all ranks; empty where there is nothing."""
        counts = {"skipped_steps": self.skipped, "skipped_samples": self._replaced_everywhere()}
        return {name: count for name, count in counts.items() if count}

    def _replaced_everywhere(self) -> int:
        return sum(gathered([int(self.replaced)]))

    # Training

    def on_train_start(self) -> None:
        """Begin, or go on with what Lightning does not take over.

        Raises:
            ModelError: the run stopped within an epoch that was cut into other batches.
        """
        self._apply_rates()
        if self.batches_done:
            self._check_epoch()
            loader = self.trainer.train_dataloader
            loader.sampler.start = self.batches_done * loader.batch_size
        if self.settings.ema_decay is not None and not self.averages:
            self.averages = {name: value.detach().clone() for name, value in self._averaged()}
        self.averages = {name: value.to(self.device) for name, value in self.averages.items()}

    def _apply_rates(self) -> None:
        """Let the spec's rates hold where a resumed run's optimizer has brought those that it was stopped with."""
        optimizer, scheduler = self.optimizers(), self.lr_schedulers()
        for number, (group, wanted) in enumerate(zip(optimizer.param_groups, self.rates, strict=True)):
            for name, value in wanted.items():
                was = group["initial_lr" if name == "lr" else name]
                if was != value:
                    LOG.warning("%s of the %s is %s and was %s: the new value holds from here",
                                name, ("network", "backbone")[number], value, was)  # fmt: skip
            factor = scheduler.lr_lambdas[number](scheduler.last_epoch)
            group.update(wanted | {"initial_lr": wanted["lr"], "lr": wanted["lr"] * factor})
        scheduler.base_lrs = [wanted["lr"] for wanted in self.rates]

    def _check_epoch(self) -> None:
        now = self._epoch_of()
        changed = [f"{name} {was}, now {now[name]}" for name, was in self.epoch_of.items() if was != now[name]]
        if changed:
            raise ModelError(
                f"{self.trainer.ckpt_path}: was written within an epoch ({'; '.join(changed)}), and what is left of it "
                "would be other samples; set them back, or resume from an epoch's end"
            )

    def _epoch_of(self) -> dict[str, int]:
        """What says which samples are in which batch and step of an epoch."""
        loader = self.trainer.train_dataloader
        return {"processes": number_of_ranks(), "samples": len(loader.dataset), "batch_size": loader.batch_size,
                "accumulate": self.settings.accumulate}  # fmt: skip

    def on_train_epoch_start(self) -> None:
        self.skipped_in_epoch = 0
        self.pixels = torch.zeros((), dtype=torch.int64, device=self.device)

    def on_train_epoch_end(self) -> None:
        """DataError where the epoch has taught nothing."""
        if self.pixels is not None and not summed(self.pixels):
            raise DataError(
                f"dataset.train_dataset: not one pixel of epoch {self.current_epoch} has ground truth that counts "
                f"(mask, 0 < disparity < dataset.max_disparity), so nothing was learnt; {_CODING}"
            )

    def on_train_batch_start(self, batch: dict, batch_index: int) -> None:
        place = (self.settings.seed, self.current_epoch, batch_index, self.global_rank)
        pl.seed_everything(_seed_of(place), verbose=False)
        if self.settings.nonfinite == "skip":
            self.statistics = [buffer.clone() for buffer in self.model.buffers()]

    def training_step(self, batch: dict, batch_index: int) -> Tensor:
        """Loss of one batch of stacked samples: left, right (B, 3, H, W) RGB 0..255, disparity, valid (B, 1, H, W)."""
        init, disparities = self.model(batch["left"], batch["right"])
        loss = stereo_loss(init, disparities, batch["disparity"], batch["valid"], self.max_disparity)
        self.step_in_hand = batch, batch_index, loss.detach()
        self.prediction_B1HW = disparities[-1].detach()  # for pictures
        if self.pixels is not None:
            self.pixels += (batch["valid"] & (batch["disparity"].abs() < self.max_disparity)).sum()
        if "skipped" in batch:
            self.replaced = self.replaced.to(self.device) + batch["skipped"].sum()
        return loss

    def on_after_backward(self) -> None:
        """Look at loss and gradients.

        At the loss alone with fp16, where scaled gradients may overflow (see optimizer_step), and in a step that an
        earlier batch has spoilt, whose gradients the sum still holds.

        All ranks see what happened on one of them, and go the same way.

        Raises:
            NonFiniteLossError: one is NaN or infinite, and `train.nonfinite` is fail.
        """
        batch, batch_index, loss = self.step_in_hand
        total = loss
        if self.settings.precision != "fp16" and not self.spoilt:
            gradients = [p.grad for p in self.parameters() if p.grad is not None]
            total = loss + whole(torch.nn.utils.get_total_norm(gradients))
        lr = self.optimizers().param_groups[0]["lr"]
        self.log("lr", lr, on_step=True, on_epoch=False)
        loss_of_all, total = summed(torch.stack([loss, total])) / number_of_ranks()
        if torch.isfinite(total):
            size = len(batch["left"])
            self.log("train_loss", loss_of_all, on_step=True, on_epoch=True, prog_bar=True, batch_size=size)
            return
        self.spoilt = True
        own = torch.isfinite(loss_of_all) or not torch.isfinite(loss)
        messages = gathered([self._report(batch, batch_index, loss, lr)] if own else [])
        if self.settings.nonfinite == "fail":
            raise NonFiniteLossError("; ".join(messages))
        for message in messages:
            LOG.warning("step skipped: %s", message)
        for buffer, before in zip(self.model.buffers(), self.statistics, strict=True):
            buffer.copy_(before)  # batch normalisation has taken in what is not finite

    def _report(self, batch: dict, batch_index: int, loss: Tensor, lr: float) -> str:
        """Write down a step that is not finite; says what happened, and where it is written.

        Of the steps that are skipped only the first: a batch may be 100 MB, and they tell what there is to tell.
        """
        what = "the gradient is not finite" if torch.isfinite(loss) else f"the loss is {loss.item()}"
        name = f"epoch_{self.current_epoch:03d}_step_{self.global_step:05d}_batch_{batch_index:05d}"
        name += f"_rank_{self.global_rank}" if number_of_ranks() > 1 else ""
        place = {"epoch": self.current_epoch, "step": self.global_step, "batch": batch_index}
        gradients = ((name, p.grad) for name, p in self.model.named_parameters() if p.grad is not None)
        see = ""
        if self.settings.nonfinite == "fail" or self.written < MAX_WRITTEN:
            see = f"see {write_step(self.reports, name, batch, place | {'loss': loss, 'lr': lr}, gradients)}; "
            self.written += 1
        return (
            f"{what} at step {self.global_step} of epoch {self.current_epoch}, for the images "
            f"{', '.join(batch['path'])}; {see}lower train.optim.lr, or look at these images and their ground truth"
        )

    def configure_gradient_clipping(self, optimizer, gradient_clip_val=None, gradient_clip_algorithm=None) -> None:
        """Clip; a spoilt step loses its gradients, and without them an optimizer leaves weights and state alone."""
        if self.spoilt:
            optimizer.zero_grad(set_to_none=True)
        self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        if self.optim.lr_scheduler == "OneCycleLR":
            momentum = one_cycle_momentum(self.global_step, int(self.trainer.estimated_stepping_batches))
            for group in optimizer.param_groups:
                group.update({"betas": (momentum, group["betas"][1])} if "betas" in group else {"momentum": momentum})

    def optimizer_step(self, *args, **options) -> None:
        """One step; no average is made of one that was spoilt or that the scaler left out.

        Raises:
            NonFiniteLossError: too many steps in a row or of the epoch were not finite, or with fp16 no scale makes
                gradients finite.
        """
        scale = self._scale()
        super().optimizer_step(*args, **options)
        left_out = self._scale() < scale  # fp16 overflowed; by design the first steps do
        if left_out and self._scale() < 1:
            report = self._report(*self.step_in_hand, self.optimizers().param_groups[0]["lr"])
            raise NonFiniteLossError(
                f"however fp16 scales it, {report}; or set train.precision to bf16 or fp32, and resume from an earlier "
                "checkpoint"
            )
        self._count_skipped()
        if self.averages and not (self.spoilt or left_out):
            self._average()
        self.spoilt = False

    def _count_skipped(self) -> None:
        self.skipped += self.spoilt
        self.skipped_in_epoch += self.spoilt
        self.skipped_in_a_row = self.skipped_in_a_row + 1 if self.spoilt else 0
        steps = math.ceil(self.trainer.num_training_batches / self.settings.accumulate)
        many = ""
        if self.skipped_in_a_row > MAX_SKIPPED_IN_A_ROW:
            many = f"{self.skipped_in_a_row} steps in a row"
        elif self.skipped_in_epoch > max(FEW_SKIPPED, MAX_SKIPPED * steps):
            many = f"{self.skipped_in_epoch} of this epoch's {steps} steps, more than {MAX_SKIPPED:.0%},"
        if many:
            raise NonFiniteLossError(
                f"{many} had a loss or gradient that is not finite, the last one step {self.global_step}; see "
                f"{self.reports}; lower train.optim.lr and resume from an earlier checkpoint"
            )

    def _scale(self) -> float:
        """What fp16 multiplies the loss by; halved after each step whose gradients overflow."""
        scaler = getattr(self.trainer.precision_plugin, "scaler", None)
        return scaler.get_scale() if scaler else 1.0

    def _averaged(self) -> list[tuple[str, Tensor]]:
        """What is averaged: trained weights and running statistics."""
        trained = [(name, p) for name, p in self.model.named_parameters() if p.requires_grad]
        return trained + [(name, b) for name, b in self.model.named_buffers() if b.is_floating_point()]

    @torch.no_grad()
    def _average(self) -> None:
        for name, value in self._averaged():
            self.averages[name].lerp_(value, 1 - self.settings.ema_decay)

    # Validation

    def on_validation_start(self) -> None:
        """Without SyncBatchNorm each rank has running statistics of its own; the checkpoint has the first's."""
        taken_from_first([*self.model.buffers(), *self.averages.values()])
        if isinstance(self.model, FSDPModule):
            self.model.unshard()

    def on_validation_end(self) -> None:
        if isinstance(self.model, FSDPModule):
            self.model.reshard()

    def validation_step(self, samples: list[dict], batch_index: int) -> dict[int, Tensor]:
        """Add the samples, each of its own size, to the validation metrics, seen with the averaged weights if any.

        Returns:
            The disparity (H, W) of each sample in px, by its `index`.
        """
        predictions = {}
        for batch in group_by_size(samples):
            pair = (batch["left"], batch["right"])
            with torch.compiler.set_stance("force_eager"):  # compiled parts would be compiled anew for every size
                # Ties are for one weight in two modules; in a module of two names they would leave the averages behind.
                prediction_BHW = functional_call(self.model, self.averages, pair, tie_weights=False)[:, 0].float()
            indices = batch["index"].tolist()
            predictions.update(zip(indices, prediction_BHW, strict=True))
            images = zip(indices, batch["path"], prediction_BHW, batch["disparity"], batch["valid"], strict=True)
            for index, path, prediction, gt, valid in images:
                row = disparity_metrics(prediction, gt[0], valid[0], self.max_disparity)
                counts = valid[0] & (gt[0] > 0) & (gt[0] < self.max_disparity)
                loss = smooth_l1_loss(prediction[counts].double(), gt[0][counts].double())
                self.rows.append(row | {"index": index, "path": path, "loss": loss.item()})
        return predictions

    def on_validation_epoch_end(self) -> None:
        """The rows of all ranks in the data set's order, so that every sum is the same on any number of them.

        Raises:
            NonFiniteLossError: the network's disparity is NaN or infinite, at whatever loss it trains.
            DataError: no image has ground truth that counts.
        """
        rows = sorted(gathered(self.rows), key=lambda row: row["index"])
        self.rows.clear()
        lost = [row["path"] for row in rows if row["pixels"] and not math.isfinite(row["epe"])]
        if lost:
            raise NonFiniteLossError(
                f"the disparity of {len(lost)} of {len(rows)} validation images is not finite, the first one "
                f"{lost[0]}: the weights or the running statistics are lost; lower train.optim.lr and resume from an "
                "earlier checkpoint, or start from other weights"
            )
        over_images = StereoMetrics(sync_on_compute=False)
        over_images.update(rows)
        metrics = over_images.compute()
        self._check_ground_truth([row["path"] for row in rows if not row["pixels"]], len(rows))
        losses = [row["loss"] for row in rows if row["pixels"]]
        loss = torch.tensor(sum(losses) / len(losses), dtype=torch.float64)
        self.log_dict({"val_loss": loss, "val/loss": loss})
        steps = self.validated.steps if self.validated else self.trainer.global_step
        self.log("step", float(steps))  # where Lightning puts the figures; its own count is another at an epoch's end
        self.log_dict({f"val/{name}{s}": metrics[f"{name}{s}"] for s in ("", "_pixel") for name in METRICS})

    def _check_ground_truth(self, empty: list[str], images: int) -> None:
        """Some images without a pixel that counts are told once; DataError where all are."""
        if len(empty) == images:
            raise DataError(
                f"dataset.val_dataset: none of the {images} images has a valid ground-truth pixel (mask, 0 < disparity "
                f"< dataset.max_disparity); {_CODING}"
            )
        if empty and not self.told_of_empty and self.trainer.is_global_zero:
            LOG.warning("%d of %d validation images have no valid ground-truth pixel and count nowhere, the first one "
                        "%s", len(empty), images, empty[0])  # fmt: skip
            self.told_of_empty = True

    # Optimizer and checkpoints

    def configure_optimizers(self) -> dict:
        optim = self.optim
        trained = [(name, p) for name, p in self.named_parameters() if p.requires_grad]
        groups = [
            {"params": [p for name, p in trained if not name.startswith(BACKBONE)], "lr": optim.lr},
            {
                "params": [p for name, p in trained if name.startswith(BACKBONE)],
                "lr": optim.lr * self.settings.backbone_lr_factor,
            },
        ]
        if optim.optimizer == "SGD":
            optimizer = torch.optim.SGD(groups, momentum=optim.momentum, weight_decay=optim.weight_decay)
        else:
            optimizer = torch.optim.AdamW(groups, weight_decay=optim.weight_decay)
        names = ("lr", "weight_decay", *(("momentum", "betas") if optim.lr_scheduler != "OneCycleLR" else ()))
        self.rates = [{name: group[name] for name in names if name in group} for group in optimizer.param_groups]
        factor = lr_factor(optim, int(self.trainer.estimated_stepping_batches))
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint: dict) -> None:
        # What load_model can not tell from the weights alone.
        checkpoint["hyper_parameters"] = {"model": asdict(self.model.config)}
        # All generators are seeded anew for every batch from this seed and the batch's place in the run.
        checkpoint["rng"] = {"seed": self.settings.seed}
        checkpoint["skipped"] = [self.skipped, self.skipped_in_a_row, self._replaced_everywhere()]
        checkpoint["skipped_in_epoch"] = self.skipped_in_epoch
        checkpoint["epoch_of"] = self._epoch_of()
        if self.averages:
            average = {id(value): self.averages[name] for name, value in self._averaged()}
            both = (self.model.named_parameters, self.model.named_buffers)
            names = [pair for named in both for pair in named(remove_duplicate=False)]  # a shared weight has two names
            checkpoint[AVERAGES] = {f"model.{name}": average[id(v)] for name, v in names if id(v) in average}

    def on_load_checkpoint(self, checkpoint: dict) -> None:
        """Take over what Lightning does not.

        Raises:
            ModelError: its weights have other names, so that the optimizer's state, by number, may be of other weights;
                or it is of another optimizer.
        """
        if checkpoint["state_dict"].keys() != self.state_dict().keys():
            raise ModelError(
                f"{self.trainer.ckpt_path}: a training run of other software (its weights have other names), and its "
                "optimizer state does not fit; start from its weights with train.pretrained_model_path instead"
            )
        was = "AdamW" if "betas" in checkpoint["optimizer_states"][0]["param_groups"][0] else "SGD"
        if was != self.optim.optimizer:
            raise ModelError(
                f"{self.trainer.ckpt_path}: was trained by {was}, and train.optim.optimizer is {self.optim.optimizer}; "
                "set it back, or start from its weights with train.pretrained_model_path"
            )
        settle_counters(checkpoint)
        self.batches_done, self.epoch_of = progress_of(checkpoint).batches, checkpoint.get("epoch_of", {})
        seed = checkpoint.get("rng", {}).get("seed")
        if seed not in (None, self.settings.seed):
            LOG.warning("train.seed is %s and was %s: samples and dropout go another way from here",
                        self.settings.seed, seed)  # fmt: skip
        self.skipped, self.skipped_in_a_row, replaced = checkpoint.get("skipped", (0, 0, 0))
        self.skipped_in_epoch = checkpoint.get("skipped_in_epoch", 0)
        self.replaced = torch.tensor(replaced if self.global_rank == 0 else 0)
        averages = checkpoint.get(AVERAGES)
        if averages and self.settings.ema_decay is not None:
            self.averages = {name: averages[f"model.{name}"] for name, _ in self._averaged()}


def _seed_of(place: tuple[int, ...]) -> int:
    """A seed (32 bits) that follows from a tuple of numbers."""
    return int(np.random.SeedSequence(place).generate_state(1)[0])
