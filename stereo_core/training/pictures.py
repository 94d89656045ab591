"""Pictures of a training run: disparity panels in the loggers, panels of the last validation also as a file, and files
of augmented samples before the start."""

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
from stereo_core.metrics import disparity_metrics
from stereo_core.report.figures import sentence
from stereo_core.report.pictures import panel, sample_panel, stacked
from stereo_core.report.viewer import FEWER_PIXELS, view
from stereo_core.report.views import VALIDATION, View, write_views
from stereo_core.spec.experiment import ExperimentSpec

LOG = logging.getLogger(__name__)

SAMPLES = 8  # training samples that are written as files
VALIDATED = 4  # images shown per validation
WIDTH = 320  # px; width of one picture of a panel in the loggers


class Pictures(pl.Callback):
    """Panels in the loggers (`train/images`, `val/images`; W&B's are TAO's `train/vis`, `val/vis`): left image,
    ground truth, prediction, error.

    The colours of disparities follow the pair's ground truth (see `scale_of`) and errors run from 0 to 8 px, so that
    panels of one pair can be compared. Training shows the batch's first pair and the step's own prediction; a
    validation always shows the same first images. Only the first rank draws.

    Args:
        spec: the experiment; train.vis_step_interval, train.dataloader_visualize and dataset.max_disparity are used.
        folder: the run's results; augmented samples go to `dataloader` in it, the last validation to `validation.png`
            and, for the page, to `validation.json`.
    """

    def __init__(self, spec: ExperimentSpec, folder: Path) -> None:
        self.interval, self.maximum = spec.train.vis_step_interval, spec.dataset.max_disparity
        self.samples_folder = folder / "dataloader" if spec.train.dataloader_visualize else None
        self.folder = folder
        self.validated: list[np.ndarray] = []
        self.views: list[View] = []

    def setup(self, trainer: pl.Trainer, module: pl.LightningModule, stage: str) -> None:
        if self.samples_folder and trainer.is_global_zero:
            trainer.datamodule.setup("fit")
            write_samples(trainer.datamodule.datasets["train"], self.samples_folder)
            self.samples_folder = None

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self.step = trainer.global_step

    def on_train_batch_end(
        self, trainer: pl.Trainer, module: Any, outputs: Any, batch: dict[str, Any], batch_index: int
    ) -> None:
        stepped, self.step = trainer.global_step != self.step, trainer.global_step
        due = trainer.fast_dev_run or (stepped and trainer.global_step % self.interval == 0)
        if due and trainer.is_global_zero:
            first = {name: batch[name][0] for name in ("left", "disparity", "valid")}
            self._log(trainer, "train", self._panel(first, module.prediction_B1HW[0, 0]))

    def on_validation_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self.validated, self.views = [], []

    def on_validation_batch_end(
        self, trainer: pl.Trainer, module: Any, outputs: dict[str, Any], batch: list[Any], *_: Any, **__: Any
    ) -> None:
        if trainer.is_global_zero:
            for sample in batch[: VALIDATED - len(self.validated)]:
                self.validated.append(self._panel(sample, outputs[sample["index"]]))
                self.views.append(self._view(sample, outputs[sample["index"]]))

    def on_validation_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        if self.validated:
            picture = stacked(self.validated)
            self._log(trainer, "val", picture)
            if not trainer.fast_dev_run:
                write_png(self.folder / "validation.png", picture)
                write_views(self.folder / VALIDATION, self.views)

    def _panel(self, sample: dict[str, Tensor], prediction_HW: Tensor) -> np.ndarray:
        truth_HW = self._truth(sample)
        height, width = truth_HW.shape
        size = (WIDTH, max(1, round(height * WIDTH / width)))
        left_HW3 = cv2.resize(_image(sample["left"]), size, interpolation=cv2.INTER_AREA)
        prediction_HW, truth_HW = (
            cv2.resize(px, size, interpolation=cv2.INTER_NEAREST)
            for px in (prediction_HW.float().cpu().numpy(), truth_HW)
        )
        return panel(left_HW3, prediction_HW, truth_HW, truth_HW > 0)

    def _view(self, sample: dict[str, Any], prediction_HW: Tensor) -> View:
        prediction_HW = prediction_HW.float().cpu().numpy()
        truth_HW = self._truth(sample)
        facts = sentence(disparity_metrics(prediction_HW, truth_HW, truth_HW > 0, self.maximum))
        return view(sample["rel"], _image(sample["left"]), prediction_HW, path=str(sample["path"]),
                    truth_HW=truth_HW, most_pixels=FEWER_PIXELS, facts=facts)  # fmt: skip

    def _truth(self, sample: dict[str, Tensor]) -> np.ndarray:
        """Ground truth in px, 0 where it is not valid."""
        gt_HW = sample["disparity"][0].cpu().numpy()
        return np.where(sample["valid"][0].cpu().numpy() & (gt_HW > 0) & (gt_HW < self.maximum), gt_HW, 0)

    @staticmethod
    def _log(trainer: pl.Trainer, split: str, picture_HW3: np.ndarray) -> None:
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.experiment.add_image(f"{split}/images", picture_HW3, trainer.global_step, dataformats="HWC")
            elif isinstance(logger, WandbLogger):
                logger.log_image(f"{split}/vis", [picture_HW3], step=trainer.global_step)


def write_samples(dataset: Any, folder: Path) -> None:
    """Write samples spread over a data set, augmented as in the first epoch, drawn by `sample_panel`.

    Args:
        dataset: a StereoDataset.
        folder: where the files `<index>_<name>.png` are written.

    Raises:
        DataError: a pair cannot be read.
    """
    indices = range(0, len(dataset), math.ceil(len(dataset) / SAMPLES))
    for index in indices:
        sample = dataset[index, 0]
        disparity_HW, valid_HW = sample["disparity"][0].numpy(), sample["valid"][0].numpy()
        picture = sample_panel(_image(sample["left"]), _image(sample["right"]), disparity_HW, valid_HW)
        write_png(folder / f"{index:06d}_{Path(sample['rel']).name}.png", picture)
    LOG.info("wrote %d augmented training samples to %s", len(indices), folder)


def _image(image_3HW: Tensor) -> np.ndarray:
    """RGB 0..255 as uint8 (H, W, 3)."""
    return image_3HW.permute(1, 2, 0).cpu().numpy().round().clip(0, 255).astype(np.uint8)
