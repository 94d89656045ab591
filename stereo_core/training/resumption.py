"""Resume a run: check that the checkpoint fits, and find the batch and epoch to continue from."""

from __future__ import annotations

import logging
from typing import Any

import pytorch_lightning as pl

from stereo_core.errors import ModelError
from stereo_core.models.files import SETTINGS
from stereo_core.spec.train import Train
from stereo_core.training.checkpoints import progress_of, seed_of, settle_counters
from stereo_core.training.distribution import number_of_ranks
from stereo_core.training.optimizers import name_of_saved

LOG = logging.getLogger(__name__)


class Resumption:
    """The position of a resumed run in its epoch.

    Args:
        settings: the spec's `train`.
    """

    def __init__(self, settings: Train) -> None:
        self.settings = settings
        self.batches_done = 0  # batches of the current epoch that are done
        self.epoch_of: dict[str, int] = {}  # how that epoch was split into batches

    def save(self, checkpoint: dict[str, Any], trainer: pl.Trainer) -> None:
        checkpoint["epoch_of"] = self._epoch_of(trainer)

    def load(self, checkpoint: dict[str, Any], module: pl.LightningModule) -> None:
        """Restore what Lightning does not.

        Raises:
            ModelError: the weights have other names, so that the optimizer's numbered state may belong to other
                weights; or other weights are trained, or the optimizer differs.
        """
        path = module.trainer.ckpt_path
        if checkpoint["state_dict"].keys() != module.state_dict().keys():
            raise ModelError(
                f"{path}: other software wrote this training state (its weights have other names), so it cannot be "
                "resumed; start from its weights with train.pretrained_model_path instead"
            )
        was = name_of_saved(checkpoint["optimizer_states"][0])
        if was != self.settings.optim.optimizer:
            raise ModelError(
                f"{path}: the run used {was}, but train.optim.optimizer is {self.settings.optim.optimizer}; "
                "set it back, or start from its weights with train.pretrained_model_path"
            )
        now = getattr(module.model.config, "train_vit", None)
        was = checkpoint.get(SETTINGS, {}).get("model", {}).get("train_vit", now)
        if was != now:
            raise ModelError(
                f"{path}: the run had model.stereo_backbone.train_vit={str(was).lower()}, this one has "
                f"{str(now).lower()}; set it back, or start from its weights with train.pretrained_model_path"
            )
        settle_counters(checkpoint)
        self.batches_done, self.epoch_of = progress_of(checkpoint).batches, checkpoint.get("epoch_of", {})
        seed = seed_of(checkpoint)
        if seed not in (None, self.settings.seed):
            LOG.warning("train.seed is now %s (was %s): samples and dropout differ from the resumed step on",
                        self.settings.seed, seed)  # fmt: skip

    def begin(self, trainer: pl.Trainer) -> None:
        """Let the loader continue where the run stopped.

        Raises:
            ModelError: the run stopped within an epoch that was split into other batches.
        """
        if not self.batches_done:
            return
        now = self._epoch_of(trainer)
        changed = [f"{name} {was}, now {now[name]}" for name, was in self.epoch_of.items() if was != now[name]]
        if changed:
            raise ModelError(
                f"{trainer.ckpt_path}: the checkpoint was written within an epoch, whose remaining samples would "
                "change "
                f"({'; '.join(changed)}); set the old values, or resume from the end of an epoch"
            )
        loader = trainer.train_dataloader
        loader.sampler.start = self.batches_done * loader.batch_size

    def _epoch_of(self, trainer: pl.Trainer) -> dict[str, int]:
        """The values that determine which samples are in which batch and step of an epoch."""
        loader = trainer.train_dataloader
        return {"processes": number_of_ranks(), "samples": len(loader.dataset), "batch_size": loader.batch_size,
                "accumulate": self.settings.accumulate}  # fmt: skip
