"""Where a resumed run goes on: what a checkpoint must agree in, and from which batch of which epoch."""

from __future__ import annotations

import logging

import pytorch_lightning as pl

from stereo_core.errors import ModelError
from stereo_core.training.checkpoints import progress_of, seed_of, settle_counters
from stereo_core.training.distribution import number_of_ranks
from stereo_core.training.optimizers import name_of_saved

LOG = logging.getLogger(__name__)


class Resumption:
    """The place of a resumed run in its epoch.

    Args:
        settings: the spec's `train`.
    """

    def __init__(self, settings) -> None:
        self.settings = settings
        self.batches_done = 0  # of the epoch that the run stands in
        self.epoch_of: dict[str, int] = {}  # how that epoch was cut into batches

    def save(self, checkpoint: dict, trainer: pl.Trainer) -> None:
        checkpoint["epoch_of"] = self._epoch_of(trainer)

    def load(self, checkpoint: dict, module: pl.LightningModule) -> None:
        """Take over what Lightning does not.

        Raises:
            ModelError: its weights have other names, so that the optimizer's state, by number, may be of other weights;
                or it is of another optimizer.
        """
        path = module.trainer.ckpt_path
        if checkpoint["state_dict"].keys() != module.state_dict().keys():
            raise ModelError(
                f"{path}: a training run of other software (its weights have other names), and its optimizer state "
                "does not fit; start from its weights with train.pretrained_model_path instead"
            )
        was = name_of_saved(checkpoint["optimizer_states"][0])
        if was != self.settings.optim.optimizer:
            raise ModelError(
                f"{path}: was trained by {was}, and train.optim.optimizer is {self.settings.optim.optimizer}; "
                "set it back, or start from its weights with train.pretrained_model_path"
            )
        settle_counters(checkpoint)
        self.batches_done, self.epoch_of = progress_of(checkpoint).batches, checkpoint.get("epoch_of", {})
        seed = seed_of(checkpoint)
        if seed not in (None, self.settings.seed):
            LOG.warning("train.seed is %s and was %s: samples and dropout go another way from here",
                        self.settings.seed, seed)  # fmt: skip

    def begin(self, trainer: pl.Trainer) -> None:
        """Let the loader begin where the run stopped.

        Raises:
            ModelError: the run stopped within an epoch that was cut into other batches.
        """
        if not self.batches_done:
            return
        now = self._epoch_of(trainer)
        changed = [f"{name} {was}, now {now[name]}" for name, was in self.epoch_of.items() if was != now[name]]
        if changed:
            raise ModelError(
                f"{trainer.ckpt_path}: was written within an epoch ({'; '.join(changed)}), and what is left of it "
                "would be other samples; set them back, or resume from an epoch's end"
            )
        loader = trainer.train_dataloader
        loader.sampler.start = self.batches_done * loader.batch_size

    def _epoch_of(self, trainer: pl.Trainer) -> dict[str, int]:
        """What says which samples are in which batch and step of an epoch."""
        loader = trainer.train_dataloader
        return {"processes": number_of_ranks(), "samples": len(loader.dataset), "batch_size": loader.batch_size,
                "accumulate": self.settings.accumulate}  # fmt: skip
