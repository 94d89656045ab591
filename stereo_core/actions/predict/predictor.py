"""Shared by evaluate and inference: one predict function for checkpoints and engines, and the loop over a data set."""

from __future__ import annotations

import json
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate, pad

from stereo_core.actions.predict.precision import HALF, network_call, resolved
from stereo_core.actions.predict.tiles import tiled
from stereo_core.actions.predict.warm_up import warmed_up
from stereo_core.data.datasets import group_by_size
from stereo_core.engines import load_engine
from stereo_core.engines.base import Engine, latency_of
from stereo_core.errors import SpecError
from stereo_core.files import atomic_path
from stereo_core.models import channels_last, from_spec, network_facts
from stereo_core.overlap import ahead
from stereo_core.progress import bars
from stereo_core.run.memory import announced
from stereo_core.spec.experiment import ExperimentSpec
from stereo_core.spec.fields import Section
from stereo_core.values import size_text

LOG = logging.getLogger(__name__)

Predict = Callable[[Tensor, Tensor], Tensor]
"""left, right (B, 3, H, W) RGB 0..255 -> disparity (B, H, W) in px of the input images."""


@dataclass(frozen=True)
class Predictor:
    """A loaded network.

    Attributes:
        predict: see Predict.
        device: the device of its inputs.
        settings: description of the network and how it runs, for reports.
        figures: latency and throughput of the calls so far; for engines also GPU memory.
    """

    predict: Predict
    device: str = "cpu"
    settings: dict[str, Any] = field(default_factory=dict)
    figures: Callable[[], dict[str, Any]] = dict


def load_predictor(spec: ExperimentSpec, verb: str, gpu: int) -> Predictor:
    """Load the model of `<verb>.checkpoint` or `<verb>.trt_engine`, whichever is set.

    Args:
        verb: "evaluate", "inference", or "predict": inference's section, but no message names its keys.
        gpu: index of the GPU to use, if there is one.

    Raises:
        SpecError: a key requires something that an engine does not support.
        ModelError: the file cannot be used.
    """
    if _section(spec, verb).trt_engine:
        return _engine_predictor(spec, verb, gpu)
    with warmed_up(gpu, _section(spec, verb).precision):
        return _checkpoint_predictor(spec, verb, gpu)


def _section(spec: ExperimentSpec, verb: str) -> Any:
    return getattr(spec, "inference" if verb == "predict" else verb)


def _checkpoint_predictor(spec: ExperimentSpec, verb: str, gpu: int) -> Predictor:
    section = _section(spec, verb)
    model = from_spec(spec, section.checkpoint).eval()
    device = f"cuda:{gpu}" if torch.cuda.is_available() else "cpu"  # waits for CUDA, so after the weights are read
    model = model.to(device)
    if device != "cpu":
        channels_last(model, dims=(3,))  # for 2-D convolutions in float32 it needs more memory and saves no time
    hierarchical = verb == "inference" and section.hierarchical
    precision = resolved(section.precision, model, device, verb)
    LOG.info("precision: %s (requested: %s)", precision, section.precision)
    model.config = replace(
        model.config, mixed_precision=False
    )  # `precision` controls it, and a recomputation is in float32
    call = network_call(model, precision, section.compile, hierarchical=hierarchical)
    predict: Predict = announced(lambda left, right: call(left, right)[:, 0], model, verb, half=precision in HALF)
    resize = section.resize if verb == "evaluate" else "none"
    resized: dict[str, Any] = {"resize": resize}
    if resize != "none":
        height, width = resized["size"] = spec.dataset.test_dataset.augmentation.crop_size
        predict = _RESIZES[resize](predict, (height, width))
        if resize == "stretch":
            mend = "set evaluate.resize to none"
            predict = _warned_of_scaling(predict, (height, width), verb, "the crop_size of", mend)
    height, width = spec.dataset.infer_dataset.augmentation.crop_size
    predict, tiles = _with_tiles(spec, verb, predict, (height, width), model.config.max_disparity)
    settings = {
        "checkpoint": section.checkpoint,
        **resized,
        "hierarchical": hierarchical,
        "precision": precision,
        **tiles,
        **network_facts(model.config),
        "device": device,
    }
    timed = _Timed(predict, device)
    return Predictor(timed, device, settings, timed.figures)


class _Timed:
    """A Predict that times each call of a checkpoint's network, including resizing and tiles.

    The first call of every shape is not counted; on a GPU neither is the second, which may record a CUDA graph.
    """

    def __init__(self, predict: Predict, device: str):
        self.predict, self.device = predict, device
        self.seen: Counter[torch.Size] = Counter()
        self.calls_ms: list[float] = []
        self.images = self.largest_batch = 0

    def __call__(self, left_B3HW: Tensor, right_B3HW: Tensor) -> Tensor:
        self._wait()
        start = time.perf_counter()
        disparity_BHW = self.predict(left_B3HW, right_B3HW)
        self._wait()
        self.seen[left_B3HW.shape] += 1
        if self.seen[left_B3HW.shape] > (1 if self.device == "cpu" else 2):
            self.calls_ms.append(1000 * (time.perf_counter() - start))
            self.images += len(left_B3HW)
            self.largest_batch = max(self.largest_batch, len(left_B3HW))
        return disparity_BHW

    def figures(self) -> dict[str, Any]:
        return latency_of(self.calls_ms, self.images, self.largest_batch)

    def _wait(self) -> None:
        if self.device != "cpu":
            torch.cuda.synchronize(self.device)


def _engine_predictor(spec: ExperimentSpec, verb: str, gpu: int) -> Predictor:
    section = _section(spec, verb)
    if verb == "inference" and section.hierarchical:
        raise SpecError("inference.hierarchical: engines do not support it; use a checkpoint, or set it to false")
    free = _free_gpu_bytes(gpu)
    engine = load_engine(section.trt_engine, engine_device(section, gpu))
    resize = section.resize if verb == "evaluate" else "pad"
    size = (engine.info["max_height"], engine.info["max_width"])
    split = "test_dataset" if verb == "evaluate" else "infer_dataset"
    augmentation = getattr(spec.dataset, split).augmentation
    if "crop_size" in augmentation.model_fields_set and tuple(augmentation.crop_size) != size:
        LOG.warning(
            "dataset.%s.augmentation.crop_size is %s ([height, width]), but the engine's own size %s is used; remove "
            "the key, or build an engine of this size",
            *(split, list(augmentation.crop_size), list(size)),
        )
    infer: Predict = lambda left, right: engine.infer(left, right, resize=resize)  # noqa: E731
    tiled_infer, tiles = _with_tiles(spec, verb, infer, size, engine.info["max_disparity"])
    mend = "build an engine of at least their size, or one with dynamic height and width (export.dynamic_hw)"
    mend += ", or set inference.tile" if verb == "inference" else ""
    whole = _warned_of_scaling(infer, size, verb, "the engine's maximum of", mend)
    predict = _timed_whole(tiled_infer, engine) if tiles else whole
    _warn_of_other_settings(spec, engine)
    settings = {"engine": section.trt_engine, "resize": resize, **tiles, **engine.info}
    settings |= {"device": engine.device, "provider": engine.provider}

    def figures() -> dict[str, Any]:
        used = free - _free_gpu_bytes(gpu) if engine.device != "cpu" else None
        return engine.latency() | {"device_memory_bytes": used}

    return Predictor(predict, engine.device, settings, figures)


def _with_tiles(
    spec: ExperimentSpec, verb: str, predict: Predict, size: tuple[int, int], max_disparity: int | None
) -> tuple[Predict, dict[str, Any]]:
    """(predict, in tiles of `size` if `inference.tile` is set; the settings for the report)."""
    if verb != "inference" or not spec.inference.tile:
        return predict, {}
    rows, columns = spec.inference.tile_overlap
    if columns < (max_disparity or 0):
        LOG.warning(
            "inference.tile_overlap is %d columns, but the network finds disparities up to %d px: where a disparity "
            "exceeds the overlap, the left part of a tile does not contain its match; set the second number to at "
            "least %d",
            *(columns, max_disparity, max_disparity),
        )
    return tiled(predict, size, (rows, columns)), {"tile": list(size), "tile_overlap": [rows, columns]}


def _timed_whole(predict: Predict, engine: Engine) -> Predict:
    """Predict in tiles, with times counted per whole image."""

    def run(left_B3HW: Tensor, right_B3HW: Tensor) -> Tensor:
        with engine.as_one_call(len(left_B3HW)):
            return predict(left_B3HW, right_B3HW)

    return run


def _warn_of_other_settings(spec: ExperimentSpec, engine: Engine) -> None:
    """Warn of settings of the network that the user wrote and the engine does not have."""
    for name in ("max_disparity", "valid_iters"):
        asked, has = getattr(spec.model, name), engine.info.get(name)
        if name in spec.model.model_fields_set and has not in (None, asked):
            LOG.warning(
                "model.%s is %s, but the engine was exported with %s, which counts; to change it export the "
                "checkpoint and build the engine again",
                *(name, asked, has),
            )


def _warned_of_scaling(predict: Predict, size: tuple[int, int], verb: str, limit: str, mend: str) -> Predict:
    """A Predict that warns once if images are scaled down to `size`; `limit` says what that is."""
    lost = "details are lost"
    if verb == "evaluate":
        lost += ", and EPE and D1 are not comparable with those of another size"
    warned = False

    def run(left_B3HW: Tensor, right_B3HW: Tensor) -> Tensor:
        nonlocal warned
        height, width = left_B3HW.shape[-2:]
        if not warned and (height > size[0] or width > size[1]):
            warned = True
            LOG.warning(
                "images of %s px exceed %s %s px and are scaled down: %s; %s",
                *(size_text((height, width)), limit, size_text(size), lost, mend),
            )
        return predict(left_B3HW, right_B3HW)

    return run


def engine_device(section: Section, gpu: int) -> str | None:
    """The requested device; None if the spec sets none, which means a GPU if a usable one exists.

    If the user set gpu_ids to [0] and there is a GPU, an engine that cannot use it is an error.
    """
    is_requested = gpu or ("gpu_ids" in section.model_fields_set and torch.cuda.is_available())
    return f"cuda:{gpu}" if is_requested else None


def _free_gpu_bytes(gpu: int) -> int:
    """Free memory of a GPU according to its driver, which includes all libraries' use; 0 without a GPU."""
    return torch.cuda.mem_get_info(gpu)[0] if gpu < torch.cuda.device_count() else 0


def stretched(predict: Predict, size: tuple[int, int]) -> Predict:
    """Predict at exactly `size` (height, width), ignoring the aspect ratio; the disparity is in px of the images."""

    def run(left_B3HW: Tensor, right_B3HW: Tensor) -> Tensor:
        height, width = left_B3HW.shape[-2:]
        images = [interpolate(x, size, mode="bilinear", antialias=True) for x in (left_B3HW, right_B3HW)]
        disparity_B1HW = interpolate(predict(*images)[:, None], (height, width), mode="bilinear")
        return disparity_B1HW[:, 0] * (width / size[1])

    return run


def padded(predict: Predict, size: tuple[int, int]) -> Predict:
    """Predict with images padded up to `size` (height, width) by replication; a longer side is not changed."""

    def run(left_B3HW: Tensor, right_B3HW: Tensor) -> Tensor:
        height, width = left_B3HW.shape[-2:]
        more_rows, more_columns = max(0, size[0] - height), max(0, size[1] - width)
        top, left = more_rows // 2, more_columns // 2
        borders = (left, more_columns - left, top, more_rows - top)
        images = [pad(x, borders, mode="replicate") for x in (left_B3HW, right_B3HW)]
        return predict(*images)[:, top : top + height, left : left + width]

    return run


_RESIZES = {"stretch": stretched, "pad": padded}


@torch.inference_mode()
def predictions(
    predictor: Predictor, batches: Iterable[list[dict[str, Any]]], total: int, pinned: bool = True
) -> Iterator[tuple[dict[str, Any], np.ndarray]]:
    """(sample, disparity) for every sample, in order; the next batches are read during a computation (see `ahead`).

    Args:
        batches: lists of samples of any sizes (see `stereo_core.data.datasets`).
        total: number of batches, for the progress bar.
        pinned: whether images on their way to a GPU are copied to pinned memory.

    Yields:
        the sample and its disparity, float32 NumPy (H, W) in px.

    Raises:
        FloatingPointError: a prediction is NaN or infinite somewhere; the message names the image.
    """
    stacked = ahead(_stacked(batches, predictor.device if pinned else "cpu"))
    with bars() as progress:
        for samples, groups in progress.track(stacked, total, description="predicting"):
            yield from _predicted(predictor, samples, groups)


def _predicted(
    predictor: Predictor, samples: list[dict[str, Any]], groups: list[tuple[Any, ...]]
) -> Iterator[tuple[dict[str, Any], np.ndarray]]:
    found: dict[int, np.ndarray] = {}
    for indices, *images in groups:
        disparity_BHW = predictor.predict(*(image.to(predictor.device, non_blocking=True) for image in images))
        found |= dict(zip(indices, disparity_BHW.float().cpu().numpy(), strict=True))
    for sample in samples:
        disparity_HW = found.pop(sample["index"])
        if not np.isfinite(disparity_HW).all():
            raise FloatingPointError(
                f"{sample['path']}: the predicted disparity contains NaN or infinity; the weights may be damaged: use "
                "another checkpoint or engine"
            )
        yield sample, disparity_HW


def _stacked(
    batches: Iterable[list[dict[str, Any]]], device: str
) -> Iterator[tuple[list[dict[str, Any]], list[tuple[Any, ...]]]]:
    """Each batch with, per image size, the samples' `index` and all left and right images; in pinned memory for a
    GPU."""
    for samples in batches:
        groups = []
        for batch in group_by_size(samples):
            left, right = batch["left"], batch["right"]
            if device != "cpu":
                with torch.cuda.device(device):  # this thread would otherwise use the first GPU
                    left, right = left.pin_memory(), right.pin_memory()
            groups.append((batch["index"].tolist(), left, right))
        yield samples, groups


def tell_of_earlier_results(folder: Path) -> None:
    """Log if the folder holds the results of an earlier run, whose files may stay beside the new ones."""
    if (folder / "results.json").exists():
        LOG.info("%s holds an earlier run's results: files of the same names are replaced, others stay", folder)


def known(figures: dict[str, Any]) -> dict[str, Any]:
    """The figures that could be measured, for status.json."""
    return {name: value for name, value in figures.items() if value is not None}


def write_results(folder: Path, results: dict[str, Any]) -> None:
    """results.json."""
    with atomic_path(folder / "results.json") as temporary:
        temporary.write_text(json.dumps(results, indent=4) + "\n", encoding="utf-8")
