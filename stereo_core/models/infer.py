"""Run a network on pairs from NumPy or torch, with the same inputs as `Engine.infer`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stereo_core.data.pairs import check_range, checked_arrays, checked_tensors, is_torch

Predict = Callable[[Tensor, Tensor], Tensor]
"""left, right (B, 3, H, W) RGB 0..255 -> disparity (B, H, W) px."""


def infer(predict: Predict, device: Any, left: Any, right: Any) -> Any:
    """Estimate the disparity of rectified pairs of any size and number.

    Args:
        predict: see Predict; its inputs are float32 on `device`.
        left, right: 0..255, uint8 or float; NumPy (H, W, 3) or (B, H, W, 3), grey (H, W) or (B, H, W, 1); or torch
            (B, 3, H, W), grey (B, 1, H, W).

    Returns:
        float32 disparity in px of the input images: NumPy (H, W) or (B, H, W); torch (B, H, W) on left's device.

    Raises:
        ValueError: a shape or type is unsupported, the values are in 0..1, or left and right differ.
    """
    if is_torch(left):
        images = checked_tensors(left, right)
        if left.device.type == "cpu":  # on a GPU the host would have to wait for the values
            check_range("left", images[0])
            check_range("right", images[1])
        return _run(predict, device, *images).to(left.device)
    images = (torch.from_numpy(np.ascontiguousarray(x)).permute(0, 3, 1, 2) for x in checked_arrays(left, right))
    disparity_BHW = _run(predict, device, *images).cpu().numpy()
    return disparity_BHW if left.ndim == 4 else disparity_BHW[0]


def _run(predict: Predict, device: Any, left_B3HW: Tensor, right_B3HW: Tensor) -> Tensor:
    with torch.inference_mode():
        disparity_BHW = predict(*(x.to(device, torch.float32) for x in (left_B3HW, right_B3HW)))
    return disparity_BHW.float().clone()  # a copy, because inference-mode tensors cannot be used in autograd


class Infers:
    """`infer` for a network that returns (B, 1, H, W) in eval mode."""

    def infer(self, left: Any, right: Any) -> Any:
        """Estimate the disparity of rectified pairs; see `stereo_core.models.infer.infer` for shapes and types.

        Runs in eval mode with the weights' device and type, then restores the network's mode.
        """
        weight, training = next(self.parameters()), self.training
        self.eval()
        try:
            call: Predict = lambda left, right: self(left.to(weight.dtype), right.to(weight.dtype))[:, 0]  # noqa: E731
            return infer(call, weight.device, left, right)
        finally:
            self.train(training)
