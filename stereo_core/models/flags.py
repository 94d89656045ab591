"""PyTorch's process-wide switches."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch.backends import cudnn
from torch.utils import deterministic


@contextlib.contextmanager
def kept() -> Iterator[None]:
    """Restore PyTorch's process-wide switches afterwards: cuDNN, TF32, deterministic kernels and the number of
    threads."""
    chosen = cudnn.benchmark, cudnn.deterministic, cudnn.allow_tf32
    products, threads = torch.get_float32_matmul_precision(), torch.get_num_threads()
    filled = deterministic.fill_uninitialized_memory
    mode = _deterministic()
    try:
        yield
    finally:
        cudnn.benchmark, cudnn.deterministic, cudnn.allow_tf32 = chosen
        torch.set_float32_matmul_precision(products)
        if _deterministic() != mode:  # calling it imports torch's compiler, so only if needed
            torch.use_deterministic_algorithms(mode[0], warn_only=mode[1])
        deterministic.fill_uninitialized_memory = filled
        if torch.get_num_threads() != threads:
            torch.set_num_threads(threads)


def _deterministic() -> tuple[bool, bool]:
    return torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
