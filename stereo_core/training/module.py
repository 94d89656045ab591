"""The training and validation step: what happens to one batch, and with which optimizer."""

from __future__ import annotations

import logging
from dataclasses import asdict

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.nn.functional import smooth_l1_loss
from torchmetrics import MeanMetric

from stereo_core.data.datasets import group_by_size
from stereo_core.errors import ModelError, SpecError
from stereo_core.metrics import METRICS, StereoMetrics, disparity_metrics
from stereo_core.training.losses import stereo_loss
from stereo_core.training.schedules import lr_factor

LOG = logging.getLogger(__name__)


class NonFiniteLossError(RuntimeError):
    """The loss became NaN or infinite: the run is lost from here on and stops."""


class StereoModule(pl.LightningModule):
    """A stereo network in training.

    Logged: `train_loss` (step and epoch), `lr`; after a validation `val_loss`, `val/loss` (the same: mean over images
    of the smooth-L1 loss of the final disparity over valid pixels, px), `val/epe`, `val/bp1`, ... and their `_pixel`
    twins (see `stereo_core.metrics`).

    Args:
        model: a network of `stereo_core.models`.
        spec: the experiment; `train.optim` and `dataset.max_disparity` (px, exclusive) count.
    """

    def __init__(self, model: nn.Module, spec) -> None:
        super().__init__()
        self.model = model
        self.optim = spec.train.optim
        self.max_disparity = spec.dataset.max_disparity
        self.metrics = StereoMetrics()
        self.val_loss = MeanMetric(nan_strategy="disable").set_dtype(torch.float64)

    def training_step(self, batch: dict, batch_index: int) -> Tensor:
        """Loss of one batch of stacked samples: left, right (B, 3, H, W) RGB 0..255, disparity, valid (B, 1, H, W)."""
        init, disparities = self.model(batch["left"], batch["right"])
        loss = stereo_loss(init, disparities, batch["disparity"], batch["valid"], self.max_disparity)
        if not torch.isfinite(loss):
            raise NonFiniteLossError(
                f"the loss is {loss.item()} at step {self.global_step} of epoch {self.current_epoch}, for the images "
                f"{', '.join(batch['path'])}; lower train.optim.lr, or look at these images and their ground truth"
            )
        self.log("train_loss", loss, on_step=True, on_epoch=True, prog_bar=True, batch_size=len(batch["left"]))
        self.log("lr", self.optimizers().param_groups[0]["lr"], on_step=True, on_epoch=False)
        return loss

    def validation_step(self, samples: list[dict], batch_index: int) -> None:
        """Add the samples, each of its own size, to the validation metrics."""
        for batch in group_by_size(samples):
            prediction_BHW = self.model(batch["left"], batch["right"])[:, 0].float()
            for prediction, gt, valid in zip(prediction_BHW, batch["disparity"], batch["valid"], strict=True):
                row = disparity_metrics(prediction, gt[0], valid[0], self.max_disparity)
                self.metrics.update([row])
                if row["pixels"]:
                    counts = valid[0] & (gt[0] > 0) & (gt[0] < self.max_disparity)
                    self.val_loss.update(smooth_l1_loss(prediction[counts].double(), gt[0][counts].double()))

    def on_validation_epoch_end(self) -> None:
        metrics = self.metrics.compute()
        if metrics["images"]:
            loss = self.val_loss.compute()
            self.log_dict({"val_loss": loss, "val/loss": loss})
            self.log_dict({f"val/{name}{s}": metrics[f"{name}{s}"] for s in ("", "_pixel") for name in METRICS})
        self.metrics.reset()
        self.val_loss.reset()

    def configure_optimizers(self) -> dict:
        optim = self.optim
        parameters = [p for p in self.parameters() if p.requires_grad]
        if optim.optimizer == "SGD":
            optimizer = torch.optim.SGD(
                parameters, lr=optim.lr, momentum=optim.momentum, weight_decay=optim.weight_decay
            )
        else:
            optimizer = torch.optim.AdamW(parameters, lr=optim.lr, weight_decay=optim.weight_decay)
        factor = lr_factor(optim, int(self.trainer.estimated_stepping_batches))
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint: dict) -> None:
        # What load_model can not tell from the weights alone.
        checkpoint["hyper_parameters"] = {"model": asdict(self.model.config)}
        # The network has dropout: without the generators' state a resumed run would go another way.
        checkpoint["rng"] = {"cpu": torch.get_rng_state(), "cuda": torch.cuda.get_rng_state_all()}

    def on_load_checkpoint(self, checkpoint: dict) -> None:
        """What speaks against going on from a checkpoint, said before its weights are taken over.

        Raises:
            SpecError: it has all epochs already.
            ModelError: its weights have other names, so that the optimizer's state, by number, may be of other weights.
        """
        if checkpoint["state_dict"].keys() != self.state_dict().keys():
            raise ModelError(
                f"{self.trainer.ckpt_path}: a training run of other software (its weights have other names), and its "
                "optimizer state does not fit; start from its weights with train.pretrained_model_path instead"
            )
        loops = checkpoint["loops"]["fit_loop"]
        epochs, batches = loops["epoch_progress"]["current"], loops["epoch_loop.batch_progress"]
        done = epochs["ready"] if batches["is_last_batch"] else epochs["processed"]
        if not batches["is_last_batch"]:
            LOG.warning(
                "%s was written after %d batches of epoch %d; the epoch is made full, but its order of samples "
                "starts anew, so the first ones come again and the last ones not at all",
                self.trainer.ckpt_path, batches["current"]["ready"], done,
            )  # fmt: skip
        if done >= self.trainer.max_epochs:
            raise SpecError(
                f"train.num_epochs: {self.trainer.max_epochs}, but the checkpoint to resume has {done} already"
            )
        rng = checkpoint.get("rng")
        if rng:
            torch.set_rng_state(rng["cpu"].cpu())
        if rng and len(rng["cuda"]) == torch.cuda.device_count():
            torch.cuda.set_rng_state_all([state.cpu() for state in rng["cuda"]])
