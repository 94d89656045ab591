"""OpenCV's StereoSGBM on a data set, as the baseline for a trained network."""

from __future__ import annotations

import math

import cv2
import numpy as np
import torch

from stereo_core.data.datasets import StereoDataset
from stereo_core.metrics import StereoMetrics, disparity_metrics


def figures(data: StereoDataset, limit: float, visible: StereoDataset | None = None) -> dict[str, float]:
    """`epe` (px) and `d1` (share) with holes filled; `epe_visible` and `d1_visible` over the masks of `visible`;
    `epe_own` over the pixels where it finds a disparity, and their share `own_share`.

    Args:
        limit: px, exclusive; larger ground truth is ignored.
        visible: the same pairs with their masks.
    """
    max_disparity = max(float(data[i]["disparity"].max()) for i in range(len(data)))
    found = [sgbm_disparity(data[i], max_disparity) for i in range(len(data))]
    filled = [background_filled(disparity) for disparity in found]
    over_all, own = totals(data, filled, limit), totals(data, found, limit, own=True)
    share = float(np.mean([(disparity > 0).mean() for disparity in found]))
    result = {"epe": over_all["epe"], "d1": over_all["d1"], "epe_own": own["epe"], "own_share": share}
    if visible is not None:
        seen = totals(visible, filled, limit)
        result |= {"epe_visible": seen["epe"], "d1_visible": seen["d1"]}
    return {name: round(value, 4) for name, value in result.items()}


def sgbm_disparity(sample: dict, max_disparity: float) -> np.ndarray:
    """float32 (H, W) px; 0 where the left-right check or the uniqueness check leaves a hole. The search range is that
    of the ground truth; a border of this width adds the left edge, which OpenCV would skip."""
    bins = -(-math.ceil(max_disparity + 1) // 16) * 16
    views = [np.ascontiguousarray(sample[side].permute(1, 2, 0).numpy().astype(np.uint8)) for side in ("left", "right")]
    views = [cv2.copyMakeBorder(view, 0, 0, bins, 0, cv2.BORDER_REPLICATE) for view in views]
    matcher = cv2.StereoSGBM.create(
        minDisparity=0,
        numDisparities=bins,
        blockSize=5,
        P1=8 * 3 * 5**2,
        P2=32 * 3 * 5**2,
        disp12MaxDiff=1,
        uniquenessRatio=5,
        mode=cv2.STEREO_SGBM_MODE_HH,
    )
    disparity = matcher.compute(*views)[:, bins:].astype(np.float32) / 16
    return np.maximum(disparity, 0)


def background_filled(disparity: np.ndarray) -> np.ndarray:
    """Fill holes with the smaller of the neighbouring disparities in their row: hidden pixels are in the background."""
    width = disparity.shape[1]
    column = np.arange(width)
    before = np.maximum.accumulate(np.where(disparity > 0, column, -1), axis=1)
    after = np.minimum.accumulate(np.where(disparity > 0, column, width)[:, ::-1], axis=1)[:, ::-1]
    padded = np.pad(disparity, ((0, 0), (0, 2)))
    padded[:, width:] = np.inf  # columns -1 and `width` mean no neighbour on that side
    neighbours = [np.take_along_axis(padded, index, axis=1) for index in (before, after)]
    filled = np.minimum(*neighbours)
    return np.where(np.isfinite(filled), filled, 0).astype(np.float32)


def totals(data: StereoDataset, predictions: list[np.ndarray], limit: float, own: bool = False) -> dict[str, float]:
    metrics = StereoMetrics()
    for index, prediction in enumerate(predictions):
        gt, valid = data[index]["disparity"][0], data[index]["valid"][0]
        counts = valid & torch.from_numpy(prediction > 0) if own else valid
        metrics.update([disparity_metrics(prediction, gt, counts, limit)])
    return metrics.compute()
