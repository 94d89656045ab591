"""Optimise a network for inference at one shape: rewrite it, compile it, and replay it as a CUDA graph."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stereo_core.errors import ModelError
from stereo_core.models.fast_foundation_stereo.model import FastFoundationStereo
from stereo_core.models.foundation_stereo.model import FoundationStereo, normalise, padding_to_multiple, unpad
from stereo_core.models.optimize.network import FastNetwork, WithoutViT, WithViT

MOST_VARIANTS = 64  # compiled variants of one function: one per level and shape

Predict = Callable[[Tensor, Tensor], Tensor]

__all__ = ["FastNetwork", "at_size", "eagerly", "make_network", "optimize_for_inference"]


def optimize_for_inference(
    model: nn.Module,
    height: int,
    width: int,
    batch: int = 1,
    iters: int | None = None,
    dtype: torch.dtype = torch.float16,
    *,
    compile: bool = True,
) -> Predict:
    """The same network, optimised for one shape, on its current device.

    Args:
        model: a FoundationStereo or a FastFoundationStereo; it is not changed: a copy in eval mode is optimised.
        height, width: of the images, px; any size.
        batch: pairs per call.
        iters: iterations; None: the model's `valid_iters`.
        dtype: of weights and features: float16, bfloat16 or float32.
        compile: also compile kernels with TorchInductor (needs a C compiler, and one or two minutes at first use).

    Returns:
        left, right (batch, 3, height, width), RGB, 0..255 -> disparity (batch, 1, height, width), float32, px. On a GPU
        the returned tensor is overwritten by the next call.

    Raises:
        ModelError: another network, or a quantised one.
    """
    network = make_network(model, dtype, compile=compile)
    return at_size(network, height, width, batch, model.config.valid_iters if iters is None else iters)


def make_network(model: nn.Module, dtype: torch.dtype, *, compile: bool = True) -> FastNetwork:
    """The rewritten network, which several shapes can share.

    Raises:
        ModelError: another network, or a quantised one.
    """
    rewritten = {FoundationStereo: WithViT, FastFoundationStereo: WithoutViT}.get(type(model))
    if rewritten is None or any(p.dtype not in _FLOATS for p in model.parameters()):
        raise ModelError(
            "this network cannot be optimised for inference: it is quantised, or neither FoundationStereo nor "
            "FastFoundationStereo; run the model as it is"
        )
    network = rewritten(model, dtype)
    if compile:
        network.compile()
    return network


_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def eagerly(network: FastNetwork, iters: int) -> Predict:
    """`network` without a CUDA graph: images (B, 3, H, W) of any size, RGB, 0..255 -> disparity (B, 1, H, W), px."""
    dtype = next(network.parameters()).dtype

    @torch.inference_mode()
    def run(left_B3HW: Tensor, right_B3HW: Tensor) -> Tensor:
        padding = padding_to_multiple(*left_B3HW.shape[-2:])
        padded = (F.pad(image, padding, mode="replicate") for image in (left_B3HW, right_B3HW))
        left, right = (normalise(image).to(dtype) for image in padded)
        return unpad(network(left, right, iters), padding)

    return run


def at_size(network: FastNetwork, height: int, width: int, batch: int, iters: int, *, has_run: bool = False) -> Predict:
    """`network` at one shape; see `optimize_for_inference`.

    Args:
        has_run: whether it has run at this shape in this thread before, so that all its kernels are ready.
    """
    run, shape = eagerly(network, iters), (batch, 3, height, width)
    device = next(network.parameters()).device
    call = _recorded(run, network, shape, device, has_run) if device.type == "cuda" else run

    def predict(left_B3HW: Tensor, right_B3HW: Tensor) -> Tensor:
        for image in (left_B3HW, right_B3HW):
            if tuple(image.shape) != shape:
                raise ValueError(f"images have shape {tuple(image.shape)}, but the network was optimised for {shape}")
        return call(left_B3HW, right_B3HW)

    return predict


def _recorded(
    run: Predict, network: FastNetwork, shape: tuple[int, ...], device: torch.device, has_run: bool
) -> Predict:
    """`run` as one CUDA graph with inputs and output at fixed addresses."""
    with torch.cuda.device(device), _settings(network.compiled):
        inputs = [torch.zeros(shape, device=device) for _ in range(2)]
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            network.side = None  # cuDNN times its kernels now: nothing else may run meanwhile
            if not has_run:
                run(*inputs)  # also compiles
            torch.cuda.synchronize()
            torch.cuda.empty_cache()
            network.side = torch.cuda.Stream()
            graph = torch.cuda.CUDAGraph()
            # a loader's threads may pin memory meanwhile
            with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
                output = run(*inputs)
            network.side = None

    def replay(left_B3HW: Tensor, right_B3HW: Tensor) -> Tensor:
        inputs[0].copy_(left_B3HW)
        inputs[1].copy_(right_B3HW)
        graph.replay()
        return output

    return replay


@contextmanager
def _settings(compiled: bool) -> Iterator[None]:
    """Allow a compiled variant of a function per level and shape. cuDNN benchmarks its kernels only when compiling,
    which takes longer anyway."""
    tf32 = torch.backends.cudnn.allow_tf32
    # Importing torch._dynamo takes seconds.
    variants = torch._dynamo.config.patch(recompile_limit=MOST_VARIANTS) if compiled else nullcontext()
    with (
        variants,
        torch.backends.cudnn.flags(enabled=True, benchmark=compiled, allow_tf32=tf32),
    ):
        yield
