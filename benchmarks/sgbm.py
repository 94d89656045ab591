"""OpenCV's StereoSGBM, what a user gets without a network: the baseline of the figures here."""

from __future__ import annotations

import math

import cv2
import numpy as np


def sgbm_disparity(left: np.ndarray, right: np.ndarray, max_disparity: float) -> np.ndarray:
    """float32 (H, W) px; 0 where the left-right check or the uniqueness leaves a hole. The search range is that of the
    ground truth, and a border of that width lets it see the left edge, which OpenCV would leave out."""
    bins = -(-math.ceil(max_disparity + 1) // 16) * 16
    views = [cv2.copyMakeBorder(view, 0, 0, bins, 0, cv2.BORDER_REPLICATE) for view in (left, right)]
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
    """Holes take the smaller of the two disparities that are next to them in their row: what is hidden is behind."""
    width = disparity.shape[1]
    column = np.arange(width)
    before = np.maximum.accumulate(np.where(disparity > 0, column, -1), axis=1)
    after = np.minimum.accumulate(np.where(disparity > 0, column, width)[:, ::-1], axis=1)[:, ::-1]
    padded = np.pad(disparity, ((0, 0), (0, 2)))
    padded[:, width:] = np.inf  # column -1 and column `width`: no neighbour on that side
    neighbours = [np.take_along_axis(padded, index, axis=1) for index in (before, after)]
    filled = np.minimum(*neighbours)
    return np.where(np.isfinite(filled), filled, 0).astype(np.float32)
