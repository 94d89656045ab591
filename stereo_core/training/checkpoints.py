"""Checkpoint files of a training run: written whole or not at all, read without unpickling code."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytorch_lightning as pl
import torch
from pytorch_lightning.plugins.io import TorchCheckpointIO
from pytorch_lightning.utilities.exceptions import SIGTERMException

from stereo_core.errors import ModelError
from stereo_core.files import atomic_path
from stereo_core.models.files import HARMLESS

LATEST = "dn_model_latest.pth"


class AtomicCheckpointIO(TorchCheckpointIO):
    """Lightning's checkpoint files through a temporary name, and `weights_only` on the way back."""

    def save_checkpoint(self, checkpoint: dict, path: str | Path, storage_options: object = None) -> None:
        try:
            with atomic_path(path) as temporary:
                torch.save(checkpoint, temporary)
        except (OSError, RuntimeError) as error:
            free = shutil.disk_usage(Path(path).parent).free / 2**20
            raise OSError(
                f"{path}: the checkpoint could not be written ({free:.0f} MiB are free there): {error}; "
                "checkpoints written before it are intact"
            ) from error

    def load_checkpoint(self, path: str | Path, map_location: object = "cpu", **_) -> dict:
        with torch.serialization.safe_globals(HARMLESS):
            checkpoint = torch.load(path, map_location=map_location, weights_only=True)
        if not isinstance(checkpoint, dict) or not {"loops", "optimizer_states"} <= checkpoint.keys():
            raise ModelError(
                f"{path}: holds weights but no state of a training run, so there is nothing to resume; "
                "give it as train.pretrained_model_path"
            )
        return checkpoint


class Checkpoints(pl.callbacks.Checkpoint):
    """Writes `model_epoch_EEE_step_SSSSS.pth` (0-based epoch) and points `dn_model_latest.pth` at the newest.

    Args:
        folder: where they go.
        interval, unit: every so many "epoch"s (after their validation) or "step"s; the end of training always counts.
    """

    def __init__(self, folder: Path, interval: int, unit: str) -> None:
        self.folder, self.interval, self.unit = folder, interval, unit
        self.latest: Path | None = None
        self.saved_step = 0  # of `latest`, or where the run started

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self.saved_step = trainer.global_step

    def on_train_batch_end(self, trainer: pl.Trainer, *_) -> None:
        if self.unit == "step" and trainer.global_step % self.interval == 0:
            self.save(trainer)

    def on_train_epoch_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        done = trainer.current_epoch + 1
        # After this hook Lightning raises a SIGTERMException, but then the epoch's number has moved on already.
        last = done == trainer.max_epochs or trainer.received_sigterm
        if (self.unit == "epoch" and done % self.interval == 0) or last:
            self.save(trainer)

    def on_exception(self, trainer: pl.Trainer, module: pl.LightningModule, exception: BaseException) -> None:
        # Lightning raises it between two steps; any other exception may have left a step half done.
        if isinstance(exception, SIGTERMException):
            self.save(trainer)

    def save(self, trainer: pl.Trainer) -> None:
        """Write the state of now; nothing where no step was made since the last time, or on a dry run."""
        if trainer.global_step == self.saved_step or trainer.fast_dev_run:
            return
        path = self.folder / f"model_epoch_{trainer.current_epoch:03d}_step_{trainer.global_step:05d}.pth"
        trainer.save_checkpoint(path)
        if trainer.is_global_zero:
            _point(self.folder / LATEST, path)
        self.latest, self.saved_step = path, trainer.global_step


def _point(link: Path, target: Path) -> None:
    """Make `link` a relative symbolic link to `target`, in one step for whoever reads it."""
    temporary = link.with_name(f".{link.name}.{os.getpid()}")
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(target.name)
    os.replace(temporary, link)
