"""doctor's checks of the data: every file exists, and a few samples of each list contain what a training needs."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from stereo_core import storage
from stereo_core.actions.doctor.case import SPLITS, Case
from stereo_core.data import shards
from stereo_core.data.annotations import COLUMNS, Sample, read_annotations
from stereo_core.data.augmentation import Pair
from stereo_core.data.datasets import image_bits, read_pair, spread
from stereo_core.data.doubts import Doubts, look
from stereo_core.data.scenes import scene_samples
from stereo_core.errors import DataError
from stereo_core.progress import bars
from stereo_core.report.findings import Finding, ok, problem, warning
from stereo_core.spec.dataset import DataSource
from stereo_core.training.doubts import warm_up_without_end
from stereo_core.values import counted, size_text

SAMPLES = 6  # samples checked per list, spread over it
THREADS = 16  # concurrent requests: network file systems have a high latency, but serve many at once
NAMED = 3  # faulty files that are listed


def files(case: Case) -> Iterator[Finding]:
    """Every line has ground truth, and every file of a list exists, is not empty and is readable."""
    for split in SPLITS:
        for index, source in enumerate(case.section(split).data_sources):
            where = f"dataset.{split}_dataset.data_sources[{index}]"
            if source.drawn:
                case.pairs.setdefault(split, []).extend((sample, None) for sample in scene_samples(source))
                yield ok(f"{where}: {counted(source.pairs_per_epoch, 'scene')} per epoch, drawn on demand")
                continue
            try:
                listed = read_annotations(source.data_file, source.data_root)
            except DataError as error:
                yield problem(str(error))
                continue
            bare = [sample for sample in listed if sample.disparity is None]
            if bare:
                yield problem(
                    f"{where}: {len(bare)} of {len(listed)} lines have no ground truth; the first is {bare[0].where}",
                    "write 'left right disparity [mask]', which training needs",
                )
            faults = find_faults(sorted({path for sample in listed for path in _paths(sample)}))
            whole = [s for s in listed if s.disparity is not None and faults.keys().isdisjoint(_paths(s))]
            case.pairs.setdefault(split, []).extend((sample, source) for sample in whole)
            if faults:
                named = "; ".join(f"{path}: {what}" for path, what in list(faults.items())[:NAMED])
                yield problem(
                    f"{where}: {counted(len(faults), 'file')} of {source.data_file} cannot be used: {named}",
                    "correct the lines or the files, or set data_root of the data source",
                )
            elif not bare:
                yield ok(f"{where}: {counted(len(listed), 'pair')}, all files exist")


def _paths(sample: Sample) -> list[str]:
    return [path for column in COLUMNS if (path := getattr(sample, column)) is not None]


def find_faults(paths: Sequence[str]) -> dict[str, str]:
    """The fault of each file that cannot be read; no file is opened."""
    faults: dict[str, str] = {}
    parts = [paths[first : first + 1000] for first in range(0, len(paths), 1000)]
    with ThreadPoolExecutor(THREADS) as pool, bars() as progress:
        found = pool.map(lambda part: [(path, _fault(path)) for path in part], parts)
        for part in progress.track(found, len(parts), description="thousands of files"):
            faults |= {path: fault for path, fault in part if fault}
    return faults


def _fault(path: str) -> str:
    if packed := shards.parts(path):
        return shards.fault(*packed)
    if storage.is_uri(path):
        try:
            return "" if storage.look(path).size else "the object is empty"
        except (DataError, storage.StorageError) as error:
            return str(error)
    try:
        status = os.stat(path)
    except OSError as error:
        return error.strerror or str(error)
    if not stat.S_ISREG(status.st_mode):
        return "not a file"
    if not status.st_size:
        return "the file is empty"
    return "" if os.access(path, os.R_OK) else "Permission denied"


def pairs(case: Case) -> Iterator[Finding]:
    """There are enough pairs for a batch on every device, and pairs for validation."""
    count, batch, world = len(case.pairs.get("train", [])), case.section("train").batch_size, case.ranks.world
    devices = f" on {world} devices" if world > 1 else ""
    if count < batch * world:
        yield problem(
            f"{counted(count, 'training pair')}, but batches of {batch}{devices} need {batch * world}",
            "lower dataset.train_dataset.batch_size or add pairs",
        )
    else:
        total = case.steps * case.spec.train.num_epochs
        pairs, steps = counted(count, "training pair"), counted(case.steps, "step")
        yield ok(f"{pairs}, batches of {batch}{devices}: {steps} per epoch, {total} in total")
        if doubt := warm_up_without_end(case.spec.train.optim, total):
            yield warning(*doubt.split("; ", 1))
    if not case.section("val").data_sources:
        yield warning(
            "there is no validation data, so the result is the last checkpoint, not the best one",
            "set dataset.val_dataset.data_sources",
        )


def samples(case: Case) -> Iterator[Finding]:
    """Some samples of each list can be decoded, and their disparities fit their images."""
    for split in SPLITS:
        for index, source in enumerate(case.section(split).data_sources):
            where = f"dataset.{split}_dataset.data_sources[{index}]"
            listed = [sample for sample, of in case.pairs.get(split, []) if of is source]
            if doubt := image_bits(listed, source)[1]:
                yield warning(*f"{where}: {doubt}".split("; ", 1))
            yield from _samples(case, split, where, spread(listed, SAMPLES), source)


def _samples(case: Case, split: str, where: str, chosen: list[Sample], source: DataSource) -> Iterator[Finding]:
    figures, looks = [], []
    for sample in chosen:
        try:
            pair = read_pair(sample, source)
            looks.append(look(sample.where, pair))
            figures.append(figures_of(pair, case.spec.dataset.max_disparity))
        except DataError as error:
            skipped = split == "train" and case.spec.dataset.on_error == "skip"
            yield (warning if skipped else problem)(f"{sample.where}: {error}")
    if not figures:
        return
    sizes = [one.size for one in figures]
    largest = tuple(max(side) for side in zip(*sizes, case.largest.get(split, (0, 0)), strict=True))
    case.largest[split] = largest
    faults = list(_doubts(where, figures, Doubts(looks), case))
    yield from faults
    if not faults:
        low, middle, high = (round(float(f([one.range[i] for one in figures])), 1) for i, f in enumerate(_OVER_SAMPLES))
        valid = np.mean([one.valid for one in figures])
        yield ok(
            f"{where}: {counted(len(figures), 'sample')} decoded, up to {size_text(largest)} px, disparity {low} to "
            f"{high} px (median {middle}), {valid:.0%} of the pixels valid"
        )


_OVER_SAMPLES: tuple[Callable[[Sequence[float]], Any], ...] = (min, np.median, max)


@dataclass(frozen=True)
class SampleFigures:
    """Properties of a sample.

    Attributes:
        size: height and width in px.
        valid: share of the pixels with ground truth.
        range: smallest, median and largest valid disparity in px; zeros if none is valid.
        above: share of the valid pixels at or above dataset.max_disparity.
        differences: mean brightness difference between a left pixel and the right one at x - d, at x + d and at x.
    """

    size: tuple[int, int]
    valid: float
    range: tuple[float, float, float]
    above: float
    differences: tuple[float, float, float]


def figures_of(pair: Pair, max_disparity: int) -> SampleFigures:
    """See SampleFigures; pairs without a valid pixel have differences of 0."""
    disparity_HW, valid_HW = pair.disparity, pair.disparity > 0
    known = disparity_HW[valid_HW]
    if not known.size:
        return SampleFigures(disparity_HW.shape, 0.0, (0.0, 0.0, 0.0), 0.0, (0.0, 0.0, 0.0))
    spread = (float(known.min()), float(np.median(known)), float(known.max()))
    share, above = float(valid_HW.mean()), float((known >= max_disparity).mean())
    return SampleFigures(disparity_HW.shape, share, spread, above, _differences(pair, valid_HW))


def _differences(pair: Pair, valid_HW: np.ndarray) -> tuple[float, float, float]:
    """The mean over pixels whose three counterparts all lie inside the right image."""
    left, right = pair.left.mean(axis=2), pair.right.mean(axis=2)
    y, x = np.nonzero(valid_HW)
    step = np.rint(pair.disparity[y, x]).astype(int)
    inside = (x - step >= 0) & (x + step < valid_HW.shape[1])
    y, x, step = y[inside], x[inside], step[inside]
    if not x.size:
        return 0.0, 0.0, 0.0
    at, mirrored, straight = (float(np.abs(left[y, x] - right[y, there]).mean()) for there in (x - step, x + step, x))
    return at, mirrored, straight


def _doubts(where: str, figures: list[SampleFigures], doubts: Doubts, case: Case) -> Iterator[Finding]:
    """Suspicious properties of a list that most of its samples show."""
    coding = "set disparity_format or disparity_scale of the data source"
    maximum = case.spec.dataset.max_disparity
    swapped = _most(one.differences[1] < 0.8 * one.differences[0] for one in figures)
    for kind, text in doubts.of_views().items():
        if not (swapped and kind == "order"):  # the ground truth proves it
            yield warning(*f"{where}: {text}".split("; ", 1))
    if _most(one.valid < 0.001 for one in figures):
        yield problem(f"{where}: the samples have hardly any valid pixels", f"check disparities and masks; {coding}")
        return
    if _most(one.range[1] > one.size[1] / 2 for one in figures):
        yield problem(f"{where}: median disparities are larger than half the image's width", coding)
    else:
        yield from (problem(f"{where}: {text}", coding) for text in doubts.of_ground_truth())
    above = np.mean([one.above for one in figures])
    if above > 0.02:
        yield (problem if above == 1 else warning)(
            f"{where}: {above:.0%} of the valid pixels have {maximum} px or more and are ignored",
            f"raise dataset.max_disparity (now {maximum}), or scale the images down",
        )
    if swapped:
        yield problem(
            f"{where}: left pixels match right ones at x + d, not at x - d",
            "swap the left and right columns",
        )
    elif _most(one.differences[2] < 0.8 * one.differences[0] for one in figures):
        yield problem(f"{where}: the images match better at zero disparity than at the given one", coding)
    height, width = crop = case.section("train").augmentation.crop_size
    if "train_dataset" in where and _most(one.size[0] < height or one.size[1] < width for one in figures):
        smallest = tuple(min(side) for side in zip(*(one.size for one in figures), strict=True))
        yield warning(
            f"{where}: there are samples of {size_text(smallest)} px, but the crop is {size_text(crop)} px, so a part "
            "of it is padding",
            "lower dataset.train_dataset.augmentation.crop_size",
        )


def _most(answers: Iterable[bool]) -> bool:
    answers = list(answers)
    return sum(answers) * 2 > len(answers)
