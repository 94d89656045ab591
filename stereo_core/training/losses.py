"""The training loss of FoundationStereo, as in NVIDIA TAO."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from stereo_core.models.foundation_stereo.layers import at_least_float32
from stereo_core.training.distribution import number_of_ranks, summed


def stereo_loss(
    init_B1hw: Tensor,
    disparities: list[Tensor],
    gt_B1HW: Tensor,
    valid_B1HW: Tensor,
    max_disparity: float,
    gamma: float = 0.9,
) -> Tensor:
    """Smooth L1 of the start disparity plus weighted L1 of every iteration (after RAFT-Stereo, Lipson et al. 2021).

        loss = smooth_l1(init, gt / 4) + sum_i g ** (n - 1 - i) * mean |disparity_i - gt|,   g = gamma ** (15 / (n - 1))

    Means run over the valid pixels: `valid` and |gt| < max_disparity and gt finite. For the first term gt and mask are
    taken at every fourth pixel. With a single iteration (n = 1) its weight is 1. Where no pixel is valid a term is 0,
    with zero gradients, so that one empty crop does not end a training run.

    Among several ranks a pixel weighs the same wherever it is: the mean of the ranks' losses, and so that of their
    gradients, is the one of all their images in a single batch.

    Args:
        init_B1hw: start disparity in quarter-resolution px, h = H / 4, w = W / 4.
        disparities: n disparities (B, 1, H, W) in px, first iteration first.
        gt_B1HW: ground truth in px; may hold anything, also NaN, where it is not valid.
        valid_B1HW: bool.
        max_disparity: px; pixels at or above it do not count.
        gamma: weight of an iteration relative to the next, for 16 iterations.

    Returns:
        Scalar in px, float32 or wider.

    Raises:
        ValueError: no disparities, or shapes that do not fit.
    """
    if not disparities:
        raise ValueError("no disparities: the loss needs at least one iteration")
    if gt_B1HW.shape != disparities[0].shape or valid_B1HW.shape != gt_B1HW.shape:
        shapes = ", ".join(str(tuple(x.shape)) for x in (disparities[0], gt_B1HW, valid_B1HW))
        raise ValueError(f"disparity, ground truth and mask must have one shape (B, 1, H, W); they have {shapes}")
    valid_B1HW = valid_B1HW.bool() & (gt_B1HW.abs() < max_disparity)
    init_B1hw = at_least_float32(init_B1hw)
    gt_B1HW = torch.where(valid_B1HW, gt_B1HW, 0).to(init_B1hw.dtype)
    n = len(disparities)
    weight = gamma ** (15 / (n - 1)) if n > 1 else 1.0
    start = F.smooth_l1_loss(init_B1hw, gt_B1HW[..., ::4, ::4] / 4, reduction="none")
    coarse_B1hw = valid_B1HW[..., ::4, ::4]
    pixels = summed(torch.stack([coarse_B1hw.sum(), valid_B1HW.sum()])).clamp(min=1)
    loss = masked_mean(start, coarse_B1hw, pixels[0])
    for i, disparity in enumerate(disparities):
        error = (at_least_float32(disparity) - gt_B1HW).abs()
        loss = loss + weight ** (n - 1 - i) * masked_mean(error, valid_B1HW, pixels[1])
    return loss * number_of_ranks()


def masked_mean(values: Tensor, mask: Tensor, pixels: Tensor) -> Tensor:
    """Sum over the mask by a number of pixels. Values outside of it, NaN too, have no part in it."""
    return torch.where(mask, values, 0).sum() / pixels
