"""The part of an engine that all backends share: from images to disparity in px of these images."""

from __future__ import annotations

import abc
import contextlib
import logging
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

import stereo_core.engines.fit as fit_numpy
from stereo_core.data.pairs import checked_arrays, checked_tensors, is_torch
from stereo_core.engines.fit import Fit, fit
from stereo_core.engines.fit import normalise as normalise
from stereo_core.values import size_text

LOG = logging.getLogger(__name__)

SMALLEST = 32  # px; default minimum of a dynamic height or width: the network's multiple


@dataclass(frozen=True)
class BuildSettings:
    """How to build an engine.

    Attributes:
        backend: auto, or a name of `stereo_core.engines.BACKENDS`.
        precision: fp32, fp16, bf16, int8 or fp8.
        min_batch, opt_batch, max_batch: the profile of a dynamic batch.
        heights, widths: (min, opt, max) px, the profile of a dynamic height and width. opt None: the traced size; min
            or max None: opt; all None: from SMALLEST to the backend's reach.
        workspace_gib: scratch memory in GiB; None: no limit.
        layers_precision: `<layer>:<precision>`; a layer is an ONNX node's name or an fnmatch pattern.
        timing_cache: timing cache to read and update, or None.
        compute_capabilities: GPU generations to build for, as "8.6"; empty: the GPU of this machine.
        gpu_id: the GPU to build on.
        verify: compare the engine with its ONNX file if it can run here.
    """

    backend: str = "auto"
    precision: str = "fp32"
    min_batch: int = 1
    opt_batch: int = 1
    max_batch: int = 1
    heights: tuple[int | None, int | None, int | None] = (None, None, None)
    widths: tuple[int | None, int | None, int | None] = (None, None, None)
    workspace_gib: int | None = None
    layers_precision: tuple[str, ...] = ()
    timing_cache: Path | None = None
    compute_capabilities: tuple[str, ...] = ()
    gpu_id: int = 0
    verify: bool = True
    verbose: bool = False


class Backend(Protocol):
    """Builds and runs engines. The backend modules of this folder return one from `backend(name)`.

    Attributes:
        precisions: those it can build, out of fp32, fp16, bf16, int8, fp8.
        suffix: the default file suffix of an engine.
        reach: default maximum height and width of a dynamic file, as a multiple of the traced size.
    """

    precisions: tuple[str, ...]
    suffix: str
    reach: int

    def why_not_here(self, settings: BuildSettings) -> str | None:
        """None if such engines can be built here, else the reason, for the user (library not installed, ...)."""

    def build(self, onnx: Path, out: Path, info: dict[str, Any], settings: BuildSettings) -> dict[str, Any]:
        """Write the engine `out`; return the backend's side-car keys: backend_version and target.

        `info` is the side-car so far: the ONNX file's metadata and the profiles.
        """

    def why_not_runnable(self, info: dict[str, Any], device: Any = None) -> str | None:
        """None if an engine with this side-car can run on `device` (see `load`), else the reason, for the user."""

    def load(self, path: Path, info: dict[str, Any], device: Any) -> Engine:
        """Open an engine. `device` is "cpu", "cuda", "cuda:N", a torch.device, or None for the best one available."""


class Engine(abc.ABC):
    """An exported network that runs without its Python code.

    Attributes:
        info: the engine's side-car (INTERFACES "Files").
        device: where it runs and where `run_torch` expects its images: "cpu" or "cuda:N".
        provider: the execution provider, if the backend has several, else None.
        runtime: a text with library, version and device.
        latencies_ms: one entry per call of the runtime, in milliseconds, without image preparation. The first call of
            every shape does not count, because runtimes then choose their kernels. An engine of one height and width
            repeats that call, so that there is always a time; with many sizes this would double most calls.
    """

    device = "cpu"
    provider: str | None = None
    runtime = ""

    def __init__(self, info: dict[str, Any]):
        self.info = info
        self.latencies_ms: list[float] = []
        self._images_run = self._largest_batch = self._untimed = 0
        self._one_size = all(info[f"min_{side}"] == info[f"max_{side}"] for side in ("height", "width"))
        self._warm: set[tuple[int, ...]] = set()
        self._noted: set[tuple[int, int]] = set()

    @abc.abstractmethod
    def run(self, left_B3HW: np.ndarray, right_B3HW: np.ndarray) -> np.ndarray:
        """Normalised float32 images of the engine's own size and batch -> disparity float32 (B, H, W) in px."""

    def run_torch(self, left_B3HW: Any, right_B3HW: Any) -> Any:
        """`run` for tensors on `device`; the disparity is there too. This version copies through the host; backends
        that use GPU memory directly override it."""
        import torch

        return torch.from_numpy(self.run(left_B3HW.cpu().numpy(), right_B3HW.cpu().numpy())).to(self.device)

    def infer(self, left: Any, right: Any, resize: str = "pad") -> Any:
        """Estimate the disparity of rectified pairs of any size and number.

        Args:
            left, right: RGB in 0..255, uint8 or float; NumPy (H, W, 3) or (B, H, W, 3), grey (H, W) or (B, H, W, 1); or
                torch (B, 3, H, W), grey (B, 1, H, W). Tensors are prepared on the engine's own device.
            resize: how images are brought to the engine's size: "pad" (default; larger images are first scaled down
                with their aspect ratio kept), "stretch" or "none". If height and width are dynamic, the engine's size
                is the next multiple of 32 within its range.

        Returns:
            float32 disparity in px of the input images: NumPy (H, W) or (B, H, W); torch (B, H, W) on left's device.

        Raises:
            ValueError: a shape or type is unsupported, NumPy values are in 0..1, or left and right differ.
            UserError: `resize` is "none" and the images do not have the engine's size.
        """
        if is_torch(left):
            from stereo_core.engines import fit_torch

            left_BCHW, right_BCHW = (x.to(self.device) for x in checked_tensors(left, right))
            return self._infer(left_BCHW, right_BCHW, left.shape[-2:], resize, fit_torch, self.run_torch).to(
                left.device
            )
        left_BHWC, right_BHWC = checked_arrays(left, right)
        disparity_BHW = self._infer(left_BHWC, right_BHWC, left_BHWC.shape[1:3], resize, fit_numpy, self.run)
        return disparity_BHW if left.ndim == 4 else disparity_BHW[0]

    def frame(self, size: tuple[int, int], resize: str = "pad") -> tuple[int, int]:
        """The engine's (height, width) in px for images of a size: multiples of 32 in its range."""
        most = (self.info["max_height"], self.info["max_width"])
        if resize != "stretch":
            size = fit(size, most, "pad").scaled
        ranges = ((self.info["min_height"], most[0]), (self.info["min_width"], most[1]))
        return tuple(min(max(-(-s // 32) * 32, low), high) for s, (low, high) in zip(size, ranges, strict=True))

    @contextlib.contextmanager
    def as_one_call(self, images: int) -> Iterator[None]:
        """Count all calls in this context as one call with `images` images (for the tiles of a batch); they do not
        count if one of them was not timed."""
        first, untimed = len(self.latencies_ms), self._untimed
        before, largest = self._images_run, self._largest_batch
        yield
        timed = self._untimed == untimed
        self.latencies_ms[first:] = [sum(self.latencies_ms[first:])] if timed else []
        self._images_run = before + (images if timed else 0)
        self._largest_batch = max(largest, images) if timed else largest

    def latency(self) -> dict[str, Any]:
        """Median and 95th percentile in ms of the calls timed so far (see `latencies_ms`), the largest batch, and
        images per second; None before the first. A call's time is that of its whole batch."""
        return latency_of(self.latencies_ms, self._images_run, self._largest_batch)

    def _infer(self, left: Any, right: Any, size: tuple[int, int], resize: str, library: Any, run: Any) -> Any:
        """`library` is the module fit (for arrays) or fit_torch (for tensors)."""
        size = (size[0], size[1])
        place = fit(size, self.frame(size, resize), resize)
        self._note(place)
        most = self.info["max_batch"]
        parts = []
        for start in range(0, len(left), most):
            lefts, rights = (library.prepare(place, x[start : start + most]) for x in (left, right))
            parts.append(library.take_back(place, self._run_batch(lefts, rights, library, run)))
        return library.join(parts)

    def _run_batch(self, left_B3HW: Any, right_B3HW: Any, library: Any, run: Any) -> Any:
        """Run at most max_batch images; a batch below min_batch is filled up with copies of its last image, whose
        results are dropped."""
        count = len(left_B3HW)
        missing = max(0, self.info["min_batch"] - count)
        images = [library.join([x, *[x[-1:]] * missing]) if missing else x for x in (left_B3HW, right_B3HW)]
        if self._is_new(tuple(images[0].shape)):
            disparity_BHW = run(*images)
            if not self._one_size:
                self._untimed += 1
                return disparity_BHW[:count]
        start = time.perf_counter()
        disparity_BHW = run(*images)
        self.latencies_ms.append(1000 * (time.perf_counter() - start))
        self._images_run += count
        self._largest_batch = max(self._largest_batch, count)
        return disparity_BHW[:count]

    def _is_new(self, shape: tuple[int, ...]) -> bool:
        new = shape not in self._warm
        self._warm.add(shape)
        return new

    def _note(self, place: Fit) -> None:
        """Log one line for every image size that differs from the engine's."""
        if place.image == place.frame or place.image in self._noted:
            return
        self._noted.add(place.image)
        steps = f"scaled to {size_text(place.scaled)}" if place.scaled != place.image else ""
        steps += " and " if steps and place.scaled != place.frame else ""
        steps += f"padded to {size_text(place.frame)}" if place.scaled != place.frame else ""
        LOG.info("images of %s px are %s px for the engine", size_text(place.image), steps)


def latency_of(calls_ms: list[float], images: int, largest_batch: int) -> dict[str, Any]:
    """The figures of `Engine.latency`, from the time of each call, the number of images and the largest batch."""
    return {
        "latency_median_ms": statistics.median(calls_ms) if calls_ms else None,
        "latency_p95_ms": float(np.percentile(calls_ms, 95)) if calls_ms else None,
        "latency_batch": largest_batch or None,
        "images_per_second": 1000 * images / sum(calls_ms) if calls_ms else None,
    }
