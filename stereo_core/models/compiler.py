"""Triton, where kernels can be made with it: it and TorchInductor need a C compiler at run time."""

from __future__ import annotations

import os
import shutil

COMPILER = next((name for name in (os.environ.get("CC"), "cc", "gcc", "clang") if name and shutil.which(name)), None)

try:
    import triton
    import triton.language as tl
except ImportError:  # a CPU build of PyTorch comes without
    triton = tl = None

if COMPILER is None:
    triton = None  # the kernels' plain twins are taken

__all__ = ["COMPILER", "tl", "triton"]
