"""Start a GPU in a thread while the main thread reads the weights."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Thread

import torch
from torch import Tensor
from torch.nn import functional as F

from stereo_core.actions.predict.fast import keep_compiled
from stereo_core.actions.predict.precision import HALF
from stereo_core.models.compiler import triton
from stereo_core.models.optimize.depthwise import convolve_triton
from stereo_core.run.driver import init_driver

LOG = logging.getLogger(__name__)
# auto is fp16 on GPUs with tensor cores; on others these kernels are not needed, and do no harm
_TYPES = HALF | {"auto": torch.float16, "tf32": torch.float32, "fp32": torch.float32}


@contextmanager
def warmed_up(gpu: int, precision: str) -> Iterator[None]:
    """After the block, the GPU's context exists, and cuDNN's and cuBLAS's libraries and Triton are loaded.

    Errors are logged at DEBUG level only: the caller meets them itself when it uses the GPU.

    Args:
        gpu: its index; without a GPU nothing happens.
        precision: as in the spec.
    """
    if not torch.cuda.device_count():  # unlike is_available, it does not wait for CUDA
        yield
        return
    thread = Thread(target=_warm_up, args=(gpu, _TYPES[precision]), name="warm-up")
    thread.start()
    try:
        yield
    finally:
        thread.join()


def _warm_up(gpu: int, dtype: torch.dtype) -> None:
    try:
        init_driver()
        _first_kernels(torch.device("cuda", gpu), dtype)
    except Exception:
        LOG.debug("warming up the GPU failed", exc_info=True)


@torch.inference_mode()
def _first_kernels(device: torch.device, dtype: torch.dtype) -> None:
    """A convolution of an image, one of a volume, a matrix product, and a Triton kernel.

    Before its first kernel Triton hashes its own files, which takes 0.6 s.
    """

    def zeros(*shape: int) -> Tensor:
        layout = {4: torch.channels_last, 5: torch.channels_last_3d}.get(len(shape), torch.contiguous_format)
        return torch.zeros(shape, dtype=dtype, device=device).contiguous(memory_format=layout)

    F.conv2d(zeros(1, 32, 16, 16), zeros(32, 32, 3, 3), padding=1)
    F.conv3d(zeros(1, 32, 16, 16, 16), zeros(32, 32, 3, 3, 3), padding=1)
    F.linear(zeros(64, 32), zeros(32, 32))
    if dtype != torch.float32 and triton is not None:
        keep_compiled()
        convolve_triton(zeros(1, 64, 16, 16), zeros(3, 3, 64), zeros(64))
    torch.cuda.synchronize(device)
