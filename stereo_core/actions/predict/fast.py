"""Run a checkpoint on a GPU in half precision: directly at first, by a CUDA graph for sizes that occur again."""

from __future__ import annotations

import logging
import os
import time
from collections import Counter, OrderedDict
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import pad

from stereo_core.models.compiler import COMPILER
from stereo_core.models.foundation_stereo.model import StereoNetwork, padding_to_multiple, unpad
from stereo_core.models.optimize import at_size, eagerly, make_network
from stereo_core.storage import cache_folder

LOG = logging.getLogger(__name__)

Predict = Callable[[Tensor, Tensor], Tensor]
GRAPHS = 4  # sizes with a kept graph; each holds the memory of a pass
PAUSE = 16  # direct calls of a size whose graph was dropped, before it gets another: sizes may alternate
COMPILE_AFTER = (
    4000  # calls of one size after which compiling pays off (it takes two minutes, and saves 25 ms per call)
)


class FastPredict:
    """left, right (B, 3, H, W), RGB, 0..255, any sizes -> disparity (B, 1, H, W), px, float32.

    The first call of a size runs the rewritten network directly, the second records a CUDA graph, later ones replay the
    graph. Sizes that are padded to the same size share a graph. GRAPHS sizes keep theirs.

    Args:
        model: a FoundationStereo or a FastFoundationStereo on a GPU.
        dtype: float16 or bfloat16.
        compile: "on" compiles each size at its first call, "auto" only sizes that occur very often.
    """

    def __init__(self, model: StereoNetwork, dtype: torch.dtype, compile: str):
        if compile != "off" and COMPILER is None:
            LOG.log(
                logging.WARNING if compile == "on" else logging.INFO,
                "compile: %s has no effect because there is no C compiler on the PATH; install gcc and Python's "
                "headers",
                compile,
            )
            compile = "off"
        keep_compiled()
        self.model, self.dtype, self.compile = model, dtype, compile
        self.network = make_network(model, dtype, compile=False)
        self.eager = eagerly(self.network, model.config.valid_iters)
        self.seen: Counter[tuple[int, ...]] = Counter()
        self.ready: OrderedDict[tuple[int, ...], Predict] = OrderedDict()

    def __call__(self, left_B3HW: Tensor, right_B3HW: Tensor) -> Tensor:
        padding = padding_to_multiple(*left_B3HW.shape[-2:])
        left, right = (pad(image, padding, mode="replicate") for image in (left_B3HW, right_B3HW))
        with torch.cuda.device_of(left):  # type: ignore[no-untyped-call] # Triton launches on the current device
            return unpad(
                self._of(left.shape)(left, right), padding
            ).clone()  # copy: the next replay overwrites the result

    def _of(self, shape: torch.Size) -> Predict:
        """The best available function for images of `shape`."""
        size = (shape[0], *shape[-2:])
        self.seen[size] += 1
        often = self.compile == "auto" and self.seen[size] == COMPILE_AFTER
        if size in self.ready and not often:
            self.ready.move_to_end(size)
            return self.ready[size]
        if self.seen[size] < (1 if self.compile == "on" else 2):
            return self.eager
        self.ready[size] = self._made(size, often or self.compile == "on")
        while len(self.ready) > GRAPHS:
            dropped, _ = self.ready.popitem(last=False)
            self.seen[dropped] = 1 - PAUSE
        return self.ready[size]

    def _made(self, size: tuple[int, ...], compile: bool) -> Predict:
        batch, height, width = size
        what = f"{width} x {height} px, batch {batch}"
        if compile:
            LOG.info("compiling for %s; this takes about two minutes unless it is cached", what)
        began = time.perf_counter()
        network = make_network(self.model, self.dtype) if compile else self.network
        try:
            iters = self.model.config.valid_iters
            predict = at_size(network, height, width, batch, iters, has_run=not compile)  # `eager` came before
        except torch.OutOfMemoryError:
            LOG.warning(
                "not enough memory for a CUDA graph of %s: each call launches its kernels one by one (slower)", what
            )
            return self.eager
        LOG.info(
            "%s: %s in %.1f s",
            what,
            "compiled and recorded as a CUDA graph" if compile else "recorded as a CUDA graph",
            _since(began),
        )
        return predict


def _since(began: float) -> float:
    return time.perf_counter() - began


def keep_compiled() -> None:
    """Keep kernels that are compiled from now on in our cache folder, so that the next run finds them."""
    for variable, name in (("TORCHINDUCTOR_CACHE_DIR", "inductor"), ("TRITON_CACHE_DIR", "triton")):
        os.environ.setdefault(variable, str(cache_folder() / name))
