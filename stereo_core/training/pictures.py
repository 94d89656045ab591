"""What a training run shows: disparity panels in its loggers, those of its last validation as a file too, and augmented
samples as files before it starts."""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytorch_lightning as pl
from pytorch_lightning.loggers import TensorBoardLogger, WandbLogger
from torch import Tensor

from stereo_core.data.images import write_png
from stereo_core.report.pictures import panel, sample_panel

LOG = logging.getLogger(__name__)

SAMPLES = 8  # of the training data, as files
VALIDATED = 4  # images of a validation
WIDTH = 320  # px of one picture of a panel in the loggers


class Pictures(pl.Callback):
    """Panels in the loggers (`train/images`, `val/images`; W&B's are TAO's `train/vis`, `val/vis`): left image, ground
    truth, prediction, error.

    In every panel disparities are coloured from 0 to `dataset.max_disparity` px, errors from 0 to 8 px, so that panels
    of different steps can be compared. Training shows the batch's first pair and the step's own prediction; a
    validation shows its first images, the same ones each time. Only the first rank draws.

    Args:
        spec: the experiment; train.vis_step_interval, train.dataloader_visualize and dataset.max_disparity count.
        folder: the run's results; augmented samples go to `dataloader` in it, the last validation to `validation.png`.
    """

    def __init__(self, spec, folder: Path) -> None:
        self.interval, self.maximum = spec.train.vis_step_interval, spec.dataset.max_disparity
        self.samples_folder = folder / "dataloader" if spec.train.dataloader_visualize else None
        self.file = folder / "validation.png"
        self.validated: list[np.ndarray] = []

    def setup(self, trainer: pl.Trainer, module: pl.LightningModule, stage: str) -> None:
        if self.samples_folder and trainer.is_global_zero:
            trainer.datamodule.setup("fit")
            write_samples(trainer.datamodule.datasets["train"], self.samples_folder, self.maximum)
            self.samples_folder = None

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self.step = trainer.global_step

    def on_train_batch_end(self, trainer: pl.Trainer, module: Any, outputs: Any, batch: dict, batch_index: int) -> None:
        stepped, self.step = trainer.global_step != self.step, trainer.global_step
        due = trainer.fast_dev_run or (stepped and trainer.global_step % self.interval == 0)
        if due and trainer.is_global_zero:
            first = {name: batch[name][0] for name in ("left", "disparity", "valid")}
            self._log(trainer, "train", self._panel(first, module.prediction_B1HW[0, 0]))

    def on_validation_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self.validated = []

    def on_validation_batch_end(
        self, trainer: pl.Trainer, module: Any, outputs: dict, batch: list, *_: Any, **__: Any
    ) -> None:
        if trainer.is_global_zero:
            for sample in batch[: VALIDATED - len(self.validated)]:
                self.validated.append(self._panel(sample, outputs[sample["index"]]))

    def on_validation_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        if self.validated:
            picture = np.vstack(self.validated)
            self._log(trainer, "val", picture)
            if not trainer.fast_dev_run:
                write_png(self.file, picture)

    def _panel(self, sample: dict[str, Tensor], prediction_HW: Tensor) -> np.ndarray:
        gt_HW = sample["disparity"][0].cpu().numpy()
        counts_HW = sample["valid"][0].cpu().numpy() & (gt_HW > 0) & (gt_HW < self.maximum)
        picture = panel(_image(sample["left"]), prediction_HW.float().cpu().numpy(), gt_HW, counts_HW, self.maximum)
        height = max(1, round(len(picture) * 4 * WIDTH / picture.shape[1]))
        return cv2.resize(picture, (4 * WIDTH, height), interpolation=cv2.INTER_AREA)

    @staticmethod
    def _log(trainer: pl.Trainer, split: str, picture_HW3: np.ndarray) -> None:
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.experiment.add_image(f"{split}/images", picture_HW3, trainer.global_step, dataformats="HWC")
            elif isinstance(logger, WandbLogger):
                logger.log_image(f"{split}/vis", [picture_HW3], step=trainer.global_step)


def write_samples(dataset: Any, folder: Path, maximum: float) -> None:
    """Write samples from all over a data set, augmented as in the first epoch, as `sample_panel` shows them.

    Args:
        dataset: a StereoDataset.
        folder: where `<index>_<name>.png` go.
        maximum: px, the end of the colour scale.

    Raises:
        DataError: a pair can not be read.
    """
    indices = range(0, len(dataset), math.ceil(len(dataset) / SAMPLES))
    for index in indices:
        sample = dataset[index, 0]
        disparity_HW, valid_HW = sample["disparity"][0].numpy(), sample["valid"][0].numpy()
        picture = sample_panel(_image(sample["left"]), _image(sample["right"]), disparity_HW, valid_HW, maximum)
        write_png(folder / f"{index:06d}_{Path(sample['rel']).name}.png", picture)
    LOG.info("%d augmented training samples are shown in %s", len(indices), folder)


def _image(image_3HW: Tensor) -> np.ndarray:
    """RGB 0..255 as uint8 (H, W, 3)."""
    return image_3HW.permute(1, 2, 0).cpu().numpy().round().clip(0, 255).astype(np.uint8)
