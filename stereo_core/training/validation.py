"""A validation: one row per image, and the metrics over all rows."""

from __future__ import annotations

import logging
import math
from typing import Any

from torch import Tensor
from torch.nn.functional import smooth_l1_loss

from stereo_core.errors import DataError
from stereo_core.metrics import METRICS, StereoMetrics, disparity_metrics
from stereo_core.training.distribution import gathered
from stereo_core.training.nonfinite import NonFiniteLossError

LOG = logging.getLogger(__name__)

WRONG_CODING = "check dataset_name, disparity_format, the masks and dataset.max_disparity"


class Validation:
    """The rows of the current validation.

    Args:
        max_disparity: px, exclusive.
    """

    def __init__(self, max_disparity: float) -> None:
        self.max_disparity = max_disparity
        self.rows: list[dict[str, Any]] = []  # rows of this rank
        self.told_of_empty = False

    def add(self, batch: dict[str, Any], prediction_BHW: Tensor) -> None:
        """Add a row for each sample of a batch: the metrics and the smooth-L1 loss (px) over its valid pixels."""
        images = zip(batch["index"].tolist(), batch["path"], prediction_BHW, batch["disparity"], batch["valid"],
                     strict=True)  # fmt: skip
        for index, path, prediction, gt, valid in images:
            row = disparity_metrics(prediction, gt[0], valid[0], self.max_disparity)
            counts = valid[0] & (gt[0] > 0) & (gt[0] < self.max_disparity)
            loss = smooth_l1_loss(prediction[counts].double(), gt[0][counts].double())
            self.rows.append(row | {"index": index, "path": path, "loss": loss.item()})

    def figures(self, aloud: bool) -> tuple[float, dict[str, float]]:
        """The mean loss over the images, and `val/epe`, `val/bp1`, ..., of the rows of all ranks; the rows are removed.

        The rows are summed in the data set's order, so that the result is the same on any number of ranks.

        Args:
            aloud: whether this rank warns (once) about images without ground truth.

        Raises:
            NonFiniteLossError: the network's disparity is NaN or infinite.
            DataError: no image has valid ground truth.
        """
        rows = sorted(gathered(self.rows), key=lambda row: row["index"])
        self.rows.clear()
        _check_finite(rows)
        self._check_ground_truth([row["path"] for row in rows if not row["pixels"]], len(rows), aloud)
        over_images = StereoMetrics()
        over_images.update(rows)
        metrics = over_images.compute()
        losses = [row["loss"] for row in rows if row["pixels"]]
        named = {f"val/{name}{s}": metrics[f"{name}{s}"] for s in ("", "_pixel") for name in METRICS}
        return sum(losses) / len(losses), named

    def _check_ground_truth(self, empty: list[str], images: int, aloud: bool) -> None:
        if len(empty) == images:
            raise DataError(
                f"dataset.val_dataset: none of the images ({images}) has valid ground truth (visible in the mask, 0 < "
                f"disparity < dataset.max_disparity); {WRONG_CODING}"
            )
        if empty and aloud and not self.told_of_empty:
            LOG.warning("validation images without valid ground truth: %d of %d; they are ignored; the first one is %s",
                        len(empty), images, empty[0])  # fmt: skip
            self.told_of_empty = True


def _check_finite(rows: list[dict[str, Any]]) -> None:
    lost = [row["path"] for row in rows if row["pixels"] and not math.isfinite(row["epe"])]
    if lost:
        raise NonFiniteLossError(
            f"the disparity of {len(lost)} of {len(rows)} validation images is not finite (the first one is "
            f"{lost[0]}), "
            "so the weights or the running statistics are lost; lower train.optim.lr and resume from an earlier "
            "checkpoint, or start from other weights"
        )
