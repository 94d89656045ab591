"""Triton, if it can compile kernels here: Triton and TorchInductor need a C compiler at run time."""

from __future__ import annotations

import os
import shutil

COMPILER = next((name for name in (os.environ.get("CC"), "cc", "gcc", "clang") if name and shutil.which(name)), None)

try:
    import triton
    import triton.language as tl
except ImportError:  # CPU builds of PyTorch have no Triton
    triton = tl = None

if COMPILER is None:
    triton = None  # the PyTorch versions of the kernels are used

__all__ = ["COMPILER", "tl", "triton"]
