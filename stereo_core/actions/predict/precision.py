"""Choose the precision of a checkpoint's network, and the fastest way to run it."""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch
from torch import Tensor

from stereo_core.errors import ModelError, SpecError
from stereo_core.models.foundation_stereo.model import StereoNetwork

LOG = logging.getLogger(__name__)

Predict = Callable[[Tensor, Tensor], Tensor]
HALF = {"fp16": torch.float16, "bf16": torch.bfloat16}
TENSOR_CORES = (7, 0)  # compute capability of the first GPUs with tensor cores


def resolved(precision: str, model: StereoNetwork, device: str, verb: str) -> str:
    """The precision to use: fp32, tf32, fp16 or bf16.

    Raises:
        SpecError: another type than float32 is set on a CPU.
    """
    if device == "cpu":
        if precision in ("tf32", *HALF):
            raise SpecError(f"{verb}.precision: {precision} needs a GPU, but this machine has none; set auto or fp32")
        return "fp32"
    if precision != "auto":
        return precision
    if model.config.mixed_precision or torch.cuda.get_device_capability(device) >= TENSOR_CORES:
        return "fp16"
    return "fp32"


def network_call(model: StereoNetwork, precision: str, compile: str, *, hierarchical: bool = False) -> Predict:
    """left, right (B, 3, H, W), RGB, 0..255 -> disparity (B, 1, H, W) px, in `precision`. Sets PyTorch's TF32 switches.

    Args:
        model: on its device.
        precision: see `resolved`.
        compile: auto, on or off.
        hierarchical: predict in two passes, which always run eagerly.
    """
    tf32 = precision == "tf32"
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = tf32  # exact float32 as in engines
    eager = model.hierarchical if hierarchical else model
    if compile == "on" and (hierarchical or precision not in HALF):
        why = "hierarchical, whose passes are not compiled" if hierarchical else f"precision {precision}"
        LOG.warning("compile: on has no effect with %s; only fp16 and bf16 are compiled", why)
    if precision not in HALF:
        return eager
    if not hierarchical:
        from stereo_core.actions.predict.fast import FastPredict  # imports torch's compiler, which a CPU does not need

        try:
            return _finite(FastPredict(model, HALF[precision], compile), eager, precision)
        except ModelError as error:
            LOG.info("running eagerly: %s", error)
    return _finite(_autocast(eager, HALF[precision]), eager, precision)


def _autocast(eager: Predict, dtype: torch.dtype) -> Predict:
    def predict(left_B3HW: Tensor, right_B3HW: Tensor) -> Tensor:
        with torch.autocast("cuda", dtype):
            return eager(left_B3HW, right_B3HW)

    return predict


def _finite(half: Predict, eager: Predict, precision: str) -> Predict:
    """Recompute a result that is not finite in half precision in float32."""

    def predict(left_B3HW: Tensor, right_B3HW: Tensor) -> Tensor:
        disparity_B1HW = half(left_B3HW, right_B3HW)
        if disparity_B1HW.isfinite().all():
            return disparity_B1HW
        LOG.warning("a disparity is not finite in %s; recomputing it in fp32", precision)
        return eager(left_B3HW, right_B3HW)

    return predict
