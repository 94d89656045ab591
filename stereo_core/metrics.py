"""Disparity metrics: per image, and over a data set, exact in any batching, order and number of ranks.

Over the valid pixels of one image (mask, 0 < gt < max_disparity), with error = |prediction - gt|:
    epe          mean error (end-point error), px
    bp1 bp2 bp3  share of pixels with an error above 1, 2, 3 px (bad-pixel rate), 0..1
    d1           share of pixels with an error above 3 px and above 5 % of the ground truth (KITTI's D1), 0..1
    rmse         root of the mean squared error, px
Over a data set each metric has two versions: the mean over images (`epe`, as TAO and the Middlebury tables report it)
    and the mean
over all valid pixels (`epe_pixel`; `rmse_pixel` is the root of that mean).
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

METRICS = ("epe", "bp1", "bp2", "bp3", "d1", "rmse")


def disparity_metrics(
    prediction_HW: Tensor | np.ndarray,
    gt_HW: Tensor | np.ndarray,
    valid_HW: Tensor | np.ndarray,
    max_disparity: float,
) -> dict[str, float]:
    """Metrics of one image, summed in float64.

    Args:
        prediction_HW, gt_HW: disparity in px, any real type, on one device.
        valid_HW: bool, valid pixels; pixels outside 0 < gt < max_disparity are excluded as well.
        max_disparity: px, exclusive.

    Returns:
        epe, bp1, bp2, bp3, d1, rmse and `pixels`, the number of valid pixels. Without valid pixels the metrics are NaN.
        If the prediction is not finite at a valid pixel, they are NaN with `pixels` above 0: comparisons with NaN are
        all false and would hide a broken prediction.
    """
    prediction, gt = torch.as_tensor(prediction_HW).double(), torch.as_tensor(gt_HW).double()
    counts = torch.as_tensor(valid_HW).bool() & (gt > 0) & (gt < max_disparity)
    gt = gt[counts]
    error = (prediction[counts] - gt).abs()
    means = torch.stack(
        [
            error.mean(),
            *((error > threshold).double().mean() for threshold in (1, 2, 3)),
            ((error > 3) & (error > 0.05 * gt)).double().mean(),
            error.square().mean().sqrt(),
        ]
    )
    # NaN if any error is NaN or infinite, 0 otherwise.
    means = means + (error - error).sum()
    return {**dict(zip(METRICS, means.tolist(), strict=True)), "pixels": error.numel()}


class StereoMetrics:
    """Metrics over a data set, from the rows that `disparity_metrics` returns.

    It keeps float64 sums, so the result does not depend on the batches; several ranks gather their rows first. Images
    without a valid pixel are left out of the means and counted in `empty`.
    """

    def __init__(self) -> None:
        self.image_sums, self.pixel_sums = torch.zeros(2, len(METRICS), dtype=torch.float64)
        self.counts = torch.zeros(3, dtype=torch.float64)  # images, pixels, empty images

    def update(self, rows: Iterable[dict[str, float]]) -> None:
        """Add images, one row of `disparity_metrics` each."""
        for row in rows:
            pixels = row["pixels"]
            if pixels == 0:
                self.counts = self.counts + self.counts.new_tensor([0, 0, 1])
                continue
            values = self.image_sums.new_tensor([row[name] for name in METRICS])
            self.image_sums = self.image_sums + values
            self.pixel_sums = self.pixel_sums + _square_rmse(values) * pixels
            self.counts = self.counts + self.counts.new_tensor([1, pixels, 0])

    def compute(self) -> dict[str, float]:
        """`epe`, ..., `epe_pixel`, ..., and the counts `images`, `pixels`, `empty`. NaN if nothing was valid."""
        images, pixels, empty = self.counts.tolist()
        macro = self.image_sums / images
        micro = self.pixel_sums / pixels
        micro[METRICS.index("rmse")] = micro[METRICS.index("rmse")].sqrt()
        return {
            **dict(zip(METRICS, macro.tolist(), strict=True)),
            **{f"{name}_pixel": value for name, value in zip(METRICS, micro.tolist(), strict=True)},
            "images": int(images),
            "pixels": int(pixels),
            "empty": int(empty),
        }


def _square_rmse(values: Tensor) -> Tensor:
    values = values.clone()
    values[METRICS.index("rmse")] **= 2
    return values
