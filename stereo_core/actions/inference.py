"""inference: disparity maps, depth and point clouds for pairs with or without ground truth."""

from __future__ import annotations

import logging
import math
import posixpath
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from stereo_core.actions.predict.predictor import (
    known,
    load_predictor,
    predictions,
    tell_of_earlier_results,
    write_results,
)
from stereo_core.data import shards
from stereo_core.data.annotations import Sample
from stereo_core.data.calibration import Calibration, SizedCalibration, calibration_beside, read_calibration
from stereo_core.data.codecs import write_disparity_png16, write_pfm
from stereo_core.data.depth import depth_from_disparity, seen_by_both, write_depth_png, write_point_cloud
from stereo_core.data.images import write_png
from stereo_core.data.loaders import StereoLoaders
from stereo_core.errors import DataError, SpecError
from stereo_core.files import flat_names
from stereo_core.models.flags import kept
from stereo_core.overlap import mapped
from stereo_core.report.pictures import colour_disparity, labelled, scale_of
from stereo_core.report.viewer import FEWER_PIXELS, Chosen, view
from stereo_core.report.views import FILE, write_views
from stereo_core.run.outcome import Outcome
from stereo_core.run.status import StatusLog
from stereo_core.spec import results_dir
from stereo_core.spec.experiment import ExperimentSpec
from stereo_core.spec.predict import BESIDE, Inference
from stereo_core.training.distribution import single_gpu
from stereo_core.values import TRIFLE, counted

LOG = logging.getLogger(__name__)
KINDS = {
    "disparity_png16": "save_png16",
    "disparity_pfm": "save_raw_pfm",
    "predicted_depth": "save_color",
    "depth": "save_depth",
    "cloud": "save_point_cloud",
}
"""Folder (see `write_files`) -> key of `inference` that enables it."""
PLAUSIBLE = (0.05, 1000.0)  # m; median depth of an image


@dataclass
class OutOfRange:
    """Counts of values that a file cannot hold: such pixels, images with any, all images, and all pixels with a value
    above 0."""

    pixels: int = 0
    images: int = 0
    of_images: int = 0
    known: int = 0
    nearest: float = math.inf  # the smallest value above 0
    lowest: float = math.inf  # the smallest of all values
    denied: int = 0  # pixels with a disparity that have no depth, because disparity + doffs is not above 0
    odd: list[float] = field(default_factory=list)  # medians of images that are hardly a camera's, see PLAUSIBLE

    def add(self, pixels: int, values_HW: np.ndarray) -> None:
        positive = values_HW[values_HW > 0]
        self.pixels += pixels
        self.images += bool(pixels)
        self.of_images += 1
        self.known += positive.size
        self.nearest = min(self.nearest, float(positive.min(initial=math.inf)))
        self.lowest = min(self.lowest, float(values_HW.min()))

    def __iadd__(self, other: OutOfRange) -> OutOfRange:
        self.pixels += other.pixels
        self.images += other.images
        self.of_images += other.of_images
        self.known += other.known
        self.nearest = min(self.nearest, other.nearest)
        self.lowest = min(self.lowest, other.lowest)
        self.denied += other.denied
        self.odd += other.odd
        return self

    def share_of(self, pixels: int) -> str:
        """Of all images' pixels: "3 of 640 pixels (in 1 of 2 images)"."""
        images = f" (in {self.images} of {self.of_images} images)" if self.of_images > 1 else ""
        return f"{self.pixels} of {pixels} pixels{images}"


Clipped = defaultdict[str, OutOfRange]
"""By kind: disparity (at or below 0), disparity_png16 and depth."""


@kept()
def run(spec: ExperimentSpec, status: StatusLog) -> Outcome:
    """Write the files that `inference.save_*` enable, named by the left image's `rel` (INTERFACES "Files").

    disparity_png16/<rel>.png: px * 256, 0 = invalid. disparity_pfm/<rel>.pfm: px. predicted_depth/<name>.png: disparity
    in turbo with a colour scale, see `scale_of`. depth/<rel>.png: millimetres. cloud/<rel>.ply: metres, left camera,
    without points beyond `cloud_max_depth` or hidden from the right camera.
    views.json: the first pairs, for the pages.
    results.json: `images`, latency and throughput, for engines GPU memory, `warnings` (sentences), and `settings`.

    Raises:
        SpecError: depth or point clouds are requested without a camera calibration; or a GPU that does not exist.
        DataError: a pair cannot be read, or its calibration is impossible.
        FloatingPointError: a prediction is not finite.
    """
    settings = spec.inference
    gpu = single_gpu(settings, "inference", torch.cuda.device_count())
    folder = results_dir(spec, "inference")
    data = StereoLoaders(spec)
    data.setup("predict")
    tell_of_earlier_results(folder)
    _warn_of_earlier_kinds(folder, settings)
    loader = data.predict_dataloader()
    cameras = (
        Cameras(spec, data.datasets["infer"].samples) if settings.save_depth or settings.save_point_cloud else None
    )
    status.running(
        f"Loading {'engine' if settings.trt_engine else 'checkpoint'}: {settings.trt_engine or settings.checkpoint}"
    )
    with loader.started() as batches:
        predictor = load_predictor(spec, "inference", gpu)
    count, clipped, chosen = 0, Clipped(OutOfRange), Chosen()
    found = predictions(predictor, batches, len(loader), spec.dataset.infer_dataset.pin_memory)
    pairs = _named(found, flat_names(data.datasets["infer"].rels), cameras)
    for of_pair in mapped(partial(_write, settings, folder, chosen), pairs):
        count += 1
        for kind, values in of_pair.items():
            clipped[kind] += values
    write_views(folder / FILE, chosen.views)
    warnings, trifles = format_losses(clipped, settings)
    for text in warnings:
        LOG.warning("%s", text)
    figures = predictor.figures()
    notes = {"images": count, "warnings": status.warnings, "settings": predictor.settings}
    write_results(folder, figures | notes)
    return Outcome(
        "; note: ".join([f"Inference finished successfully: {counted(count, 'pair')} in {folder}", *trifles]),
        kpi=known(figures),
        artifacts={"disparity": folder},
    )


def _warn_of_earlier_kinds(folder: Path, settings: Inference) -> None:
    """Warn of files of an earlier run, of a kind that this one does not write: they lie beside this run's files."""
    for kind, key in KINDS.items():
        if not getattr(settings, key) and (folder / kind).is_dir():
            LOG.warning(
                "%s is not of this run, because inference.%s is off; remove it, or choose another results_dir",
                *(folder / kind, key),
            )


def _named(
    pairs: Iterator[tuple[dict[str, Any], np.ndarray]], flat: Sequence[str], cameras: Cameras | None
) -> Iterator[tuple[Any, ...]]:
    """The sample and the other arguments of `write_files` for each pair; `flat` has its name at its index."""
    for sample, disparity_HW in pairs:
        camera = cameras.of(sample["path"], disparity_HW.shape) if cameras else None
        yield sample["rel"], flat[sample["index"]], sample, disparity_HW, camera


def _write(settings: Inference, folder: Path, chosen: Chosen, named: tuple[Any, ...]) -> Clipped:
    """Write the files of one pair and offer it to the pages; return counts of values that the formats cannot hold."""
    rel, name, sample, disparity_HW, camera = named
    left_HW3 = sample["left"].permute(1, 2, 0).numpy().round().astype(np.uint8)
    clipped = Clipped(OutOfRange)
    write_files(settings, folder, rel, name, left_HW3, disparity_HW, camera, clipped)
    make = partial(view, sample["rel"], left_HW3, disparity_HW, path=str(sample["path"]), camera=camera,
                   most_pixels=FEWER_PIXELS)  # fmt: skip
    chosen.offer(sample["index"], math.nan, make)
    return clipped


class Cameras:
    """The camera of each image, from `inference.calibration`, else from `dataset.baseline` and `dataset.focal_x`.

    Each doubt about a camera is logged once as a warning.

    Args:
        samples: the pairs; with calibration=auto the files beside their left images are read immediately.

    Raises:
        SpecError: no camera is given; the schema's defaults of baseline and focal_x do not count.
        DataError: a calibration cannot be used, or with auto an image has none beside it.
    """

    def __init__(self, spec: ExperimentSpec, samples: Sequence[Sample]) -> None:
        self._doubts: set[str] = set()
        if spec.inference.calibration == BESIDE:
            beside: dict[str, Calibration] = {}
            for sample in samples:
                folder = _folder(sample.left)
                beside[folder] = beside.get(folder) or calibration_beside(sample.left)
            self._camera_of: Callable[[str], Calibration] = lambda path: beside[_folder(path)]
        else:
            camera = _camera_of_all(spec, samples[0].left if samples else "")
            self._camera_of = lambda path: camera

    def of(self, path: str, size: tuple[int, int]) -> SizedCalibration:
        """The camera of a left image of size (height, width); DataError if it cannot belong to such an image."""
        try:
            camera = self._camera_of(path).of_size(*size)
        except DataError as error:
            raise DataError(f"{path}: {error}") from error
        for doubt in camera.doubts():
            if doubt not in self._doubts:
                LOG.warning("%s", doubt)
        self._doubts.update(camera.doubts())
        return camera


def _folder(image: str) -> str:
    return posixpath.dirname(shards.loose(image))


def _camera_of_all(spec: ExperimentSpec, left: str) -> Calibration:
    if spec.inference.calibration:
        return read_calibration(spec.inference.calibration, left)
    if {"baseline", "focal_x"} <= spec.dataset.model_fields_set:
        source = "dataset.baseline, dataset.focal_x"
        return Calibration(spec.dataset.focal_x, spec.dataset.baseline, source=source)
    raise SpecError(
        "inference.save_depth and inference.save_point_cloud need a camera; set inference.calibration to a calib.txt "
        "or K.txt, or to auto for the file beside each image, or set both dataset.baseline (metres) and "
        "dataset.focal_x (px) to your camera's values (their defaults are not used)"
    )


def format_losses(clipped: Clipped, settings: Inference) -> tuple[list[str], list[str]]:
    """What the files cannot hold: warnings, and notes about less than TRIFLE of the pixels."""
    mend = "set inference.save_raw_pfm for PFM files, which have no limit"
    exact = "the PFM files hold the exact values" if settings.save_raw_pfm else mend
    disparity, depth, below = clipped["disparity_png16"], clipped["depth"], clipped["disparity"]
    warnings: list[str] = []
    notes: list[str] = []

    def tell(pixels: int, of: int, text: str) -> None:
        (notes if pixels < TRIFLE * of else warnings).append(text)

    if below.pixels:
        kept = "PFM files hold the predicted values" if settings.save_raw_pfm else mend
        pixels = below.pixels + below.known
        tell(
            below.pixels,
            pixels,
            f"disparity: {below.share_of(pixels)} are predicted at or below 0 px (down to "
            f"{below.lowest:.4g} px), where a network has no match; they count as unknown: 0 in PNG files, no depth, "
            f"no point; {kept}",
        )
    if disparity.pixels:
        tell(
            disparity.pixels,
            disparity.known,
            f"disparity_png16: {disparity.share_of(disparity.known)} exceed 255.996 px, the largest value of the "
            f"format, and are clipped to it; {exact}",
        )
    if depth.pixels:
        check = f"; the nearest pixel is at {depth.nearest:.4g} m: check focal length and baseline"
        tell(
            depth.pixels,
            depth.known,
            f"depth: {depth.share_of(depth.known)} do not fit in 16-bit millimetres (0.001 to 65.535 m) and are stored "
            f"as 0 (unknown){check * (depth.pixels == depth.known)}",
        )
    if depth.odd:
        low, high = (f"{end(depth.odd):.3g}" for end in (min, max))
        warnings.append(
            f"depth: the median depth of {counted(len(depth.odd), 'image')} is {low}{f' to {high}' * (low != high)} m; "
            f"scenes mostly lie between {PLAUSIBLE[0]:g} and {PLAUSIBLE[1]:g} m: check focal length and baseline, and "
            "their units"
        )
    if depth.denied:
        tell(
            depth.denied,
            depth.denied + depth.known,
            f"depth: {depth.denied} pixels have no depth, because their disparity + doffs is not above 0; "
            f"{depth.known} have one. Check doffs in the calibration file",
        )
    return warnings, notes


def _median(depth_HW: np.ndarray) -> list[float]:
    """The median of the depths above 0, if there are any."""
    known = depth_HW[depth_HW > 0]
    return [float(np.median(known))] if known.size else []


def write_files(
    settings: Inference,
    folder: Path,
    rel: str,
    name: str,
    left_HW3: np.ndarray,
    disparity_HW: np.ndarray,
    camera: SizedCalibration | None,
    clipped: Clipped,
) -> None:
    """Write the files of one pair: `<rel>` with its suffix, and `<name>.png` in colours. `clipped` counts values out
    of range."""
    clipped["disparity"].add(int((disparity_HW <= 0).sum()), disparity_HW)
    if settings.save_png16:
        too_large = write_disparity_png16(folder / "disparity_png16" / f"{rel}.png", disparity_HW)
        clipped["disparity_png16"].add(too_large, disparity_HW)
    if settings.save_raw_pfm:
        write_pfm(folder / "disparity_pfm" / f"{rel}.pfm", disparity_HW)
    if settings.save_color:
        scale = scale_of(disparity_HW)
        picture = labelled(colour_disparity(disparity_HW, scale), "disparity", scale)
        write_png(folder / "predicted_depth" / f"{name}.png", picture)
    if camera is None:
        return
    depth_HW = depth_from_disparity(disparity_HW, camera.focal, camera.baseline, camera.doffs)
    clipped["depth"].denied += int(((disparity_HW > 0) & (depth_HW <= 0)).sum())
    clipped["depth"].odd += [m for m in _median(depth_HW) if not PLAUSIBLE[0] <= m <= PLAUSIBLE[1]]
    if settings.save_depth:
        clipped["depth"].add(write_depth_png(folder / "depth" / f"{rel}.png", depth_HW), depth_HW)
    if settings.save_point_cloud:
        far = camera.farthest if settings.cloud_max_depth is None else settings.cloud_max_depth
        shown_HW = (depth_HW <= far) & seen_by_both(disparity_HW)
        write_point_cloud(folder / "cloud" / f"{rel}.ply", np.where(shown_HW, depth_HW, 0), left_HW3, camera)
