"""The part of an engine that is the same for every backend: images in, disparity in their own pixels out."""

from __future__ import annotations

import abc
import logging
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from stereo_core.engines.fit import fit

LOG = logging.getLogger(__name__)

# ImageNet statistics of RGB in 0..1, as every published ONNX file of this network expects.
MEAN = np.array([0.485, 0.456, 0.406], np.float32)
STD = np.array([0.229, 0.224, 0.225], np.float32)


@dataclass(frozen=True)
class BuildSettings:
    """How to build an engine.

    Attributes:
        backend: auto, or a name of `stereo_core.engines.BACKENDS`.
        precision: fp32, fp16, bf16, int8 or fp8.
        min_batch, opt_batch, max_batch: the profile of a dynamic batch.
        heights, widths: (min, opt, max) px, the profile of an open height and width. None as opt: what the file was
            traced at; None as min or max: opt.
        workspace_gib: scratch memory in GiB; None: no limit.
        layers_precision: `<layer>:<precision>` pins; a layer is an ONNX node's name or an fnmatch pattern.
        timing_cache: file to read and update, or None.
        compute_capabilities: GPU generations to build for, as "8.6"; empty: the GPU of this machine.
        gpu_id: the GPU to build on.
        verify: compare the engine with its ONNX file where it can run here.
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
    """What builds and runs engines. A module of this folder gives them by `backend(name)`.

    Attributes:
        precisions: what it can build, of fp32, fp16, bf16, int8, fp8.
        suffix: the end of an engine's file name where the user gives none.
    """

    precisions: tuple[str, ...]
    suffix: str

    def why_not_here(self, settings: BuildSettings) -> str | None:
        """None where such engines can be built here, else the reason, for the user (library not installed, ...)."""

    def build(self, onnx: Path, out: Path, info: dict, settings: BuildSettings) -> dict:
        """Write the engine `out`; returns the side-car keys that the backend knows: backend_version and target.

        `info` is the side-car so far: what the ONNX file says, and the profiles.
        """

    def why_not_runnable(self, info: dict, device: Any = None) -> str | None:
        """None where an engine of this side-car can run on `device` (see `load`), else the reason, for the user."""

    def load(self, path: Path, info: dict, device: Any) -> Engine:
        """Open an engine. `device` is "cpu", "cuda", "cuda:N", a torch.device, or None for the best there is."""


class Engine(abc.ABC):
    """An exported network that runs without PyTorch.

    Attributes:
        info: the engine's side-car (INTERFACES "Files").
        latencies_ms: one entry a call of the runtime, in milliseconds; warm-up and image preparation do not count.
    """

    def __init__(self, info: dict):
        self.info = info
        self.latencies_ms: list[float] = []
        self._images_run = 0
        self._warm = False
        self._scaled_sizes: set[tuple[int, int]] = set()

    @abc.abstractmethod
    def run(self, left_B3HW: np.ndarray, right_B3HW: np.ndarray) -> np.ndarray:
        """Normalised float32 images of the engine's own size and batch -> disparity float32 (B, H, W) in px."""

    def infer(self, left: Any, right: Any, resize: str = "pad") -> Any:
        """Estimate the disparity of rectified pairs of any size and number.

        Args:
            left, right: RGB in 0..255, uint8 or float; NumPy (H, W, 3) or (B, H, W, 3), or torch (B, 3, H, W).
            resize: how images come to the engine's size: "pad" (default; larger ones are first scaled down with their
                aspect ratio kept), "stretch" or "none".

        Returns:
            float32 disparity in px of the images given: NumPy (H, W) or (B, H, W); torch (B, H, W) on left's device.

        Raises:
            ValueError: shapes or types are others, or left and right differ.
            UserError: `resize` is "none" and the images are not of the engine's size.
        """
        if _is_torch(left):
            return _infer_torch(self, left, right, resize)
        left_BHWC, right_BHWC = _checked(left), _checked(right)
        if left_BHWC.shape != right_BHWC.shape:
            raise ValueError(f"left is {left.shape}, right is {right.shape}: a rectified pair has one size")
        disparity_BHW = self._infer(left_BHWC, right_BHWC, resize)
        return disparity_BHW if left.ndim == 4 else disparity_BHW[0]

    def latency(self) -> dict:
        """Median and 95th percentile of the calls so far in ms, images a second; None before the first call."""
        calls = self.latencies_ms
        return {
            "latency_median_ms": statistics.median(calls) if calls else None,
            "latency_p95_ms": float(np.percentile(calls, 95)) if calls else None,
            "images_per_second": 1000 * self._images_run / sum(calls) if calls else None,
        }

    def _infer(self, left_BHWC: np.ndarray, right_BHWC: np.ndarray, resize: str) -> np.ndarray:
        place = fit(left_BHWC.shape[1:3], (self.info["input_height"], self.info["input_width"]), resize)
        self._note_scaling(place)
        most = self.info["max_batch"]
        parts = []
        for start in range(0, len(left_BHWC), most):
            left_B3HW = normalise(place.place(left_BHWC[start : start + most].astype(np.float32)))
            right_B3HW = normalise(place.place(right_BHWC[start : start + most].astype(np.float32)))
            parts.append(place.take_back(self._run_batch(left_B3HW, right_B3HW)))
        return np.concatenate(parts)

    def _run_batch(self, left_B3HW: np.ndarray, right_B3HW: np.ndarray) -> np.ndarray:
        """Run at most max_batch images; a batch below min_batch is filled up with its last image, dropped again."""
        count = len(left_B3HW)
        left_B3HW, right_B3HW = (_filled(x, self.info["min_batch"]) for x in (left_B3HW, right_B3HW))
        if not self._warm:
            self.run(left_B3HW, right_B3HW)
            self._warm = True
        start = time.perf_counter()
        disparity_BHW = self.run(left_B3HW, right_B3HW)
        self.latencies_ms.append(1000 * (time.perf_counter() - start))
        self._images_run += count
        return disparity_BHW[:count]

    def _note_scaling(self, place) -> None:
        if place.scaled != place.image and place.image not in self._scaled_sizes:
            self._scaled_sizes.add(place.image)
            LOG.info("images of %d x %d are scaled to %d x %d for the engine", *place.image, *place.scaled)


def normalise(images_BHWC: np.ndarray) -> np.ndarray:
    """float32 RGB (B, H, W, 3) in 0..255 -> ImageNet-normalised float32 (B, 3, H, W), contiguous."""
    return np.ascontiguousarray(((images_BHWC / np.float32(255) - MEAN) / STD).transpose(0, 3, 1, 2))


def _filled(images_B3HW: np.ndarray, least: int) -> np.ndarray:
    missing = max(0, least - len(images_B3HW))
    return np.concatenate([images_B3HW, np.repeat(images_B3HW[-1:], missing, axis=0)]) if missing else images_B3HW


def _checked(images: np.ndarray) -> np.ndarray:
    """NumPy (H, W, 3) or (B, H, W, 3) -> (B, H, W, 3)."""
    if not isinstance(images, np.ndarray) or images.ndim not in (3, 4) or images.shape[-1] != 3 or not len(images):
        raise ValueError(f"images are (H, W, 3) or (B, H, W, 3) arrays, not {getattr(images, 'shape', type(images))}")
    if images.dtype != np.uint8 and not np.issubdtype(images.dtype, np.floating):
        raise ValueError(f"images are uint8 or float in 0..255, not {images.dtype}")
    return images if images.ndim == 4 else images[None]


def _is_torch(images: Any) -> bool:
    return "torch" in sys.modules and isinstance(images, sys.modules["torch"].Tensor)


def _infer_torch(engine: Engine, left_B3HW: Any, right_B3HW: Any, resize: str) -> Any:
    import torch

    if left_B3HW.ndim != 4 or left_B3HW.shape != right_B3HW.shape or left_B3HW.shape[1] != 3:
        shapes = f"{tuple(left_B3HW.shape)} and {tuple(right_B3HW.shape)}"
        raise ValueError(f"torch images are (B, 3, H, W), left and right alike, not {shapes}")
    left, right = (x.detach().cpu().permute(0, 2, 3, 1).numpy() for x in (left_B3HW, right_B3HW))
    return torch.from_numpy(engine.infer(left, right, resize)).to(left_B3HW.device)
