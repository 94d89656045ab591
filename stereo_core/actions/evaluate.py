"""evaluate: compare the disparity of a checkpoint or an engine with ground truth."""

from __future__ import annotations

import csv
import logging
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from operator import itemgetter
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
from stereo_core.data.datasets import name_of, need_ground_truth
from stereo_core.data.images import write_png
from stereo_core.data.loaders import StereoLoaders
from stereo_core.files import atomic_path, flat_names
from stereo_core.metrics import METRICS, StereoMetrics, disparity_metrics
from stereo_core.models.files import digest
from stereo_core.models.flags import kept
from stereo_core.overlap import mapped
from stereo_core.report.figures import named, sentence
from stereo_core.report.pictures import panel
from stereo_core.report.viewer import FEWER_PIXELS, Chosen, view
from stereo_core.report.views import FILE, View, write_views
from stereo_core.run.outcome import Outcome
from stereo_core.run.ranks import in_ranks
from stereo_core.run.status import StatusLog
from stereo_core.spec import results_dir
from stereo_core.spec.experiment import ExperimentSpec
from stereo_core.training.distribution import Ranks, gathered, joined, resolve
from stereo_core.values import TRIFLE, counted

LOG = logging.getLogger(__name__)

PANELS = 8
COLUMNS = ("path", *METRICS, "pixels", "valid")


def run(spec: ExperimentSpec, status: StatusLog) -> Outcome:
    """Write metrics.csv (one line per image), results.json, the first panels and, for the pages, the first and the
    worst pairs (views.json); return the metrics over all images.

    results.json: the metrics as a flat map (see `stereo_core.metrics`), `images`, `pixels` and `empty` (images without
    a valid pixel, which are ignored), `model_bytes`, latency and throughput, for engines GPU memory (of the first
    process), `warnings` (sentences), and `settings`: `max_disparity` is the network's, `dataset_max_disparity` limits
    the ground truth, `sha256` is the model file's.

    Several devices or nodes (see `stereo_core.training.distribution`) share the batches; the first process writes the
    same lines and figures as a single process.

    Raises:
        SpecError: settings that this machine or its environment do not support.
        DataError: an image has no ground truth, or none of them has a valid pixel.
        FloatingPointError: a prediction is not finite.
    """
    return in_ranks(_evaluate, spec, status, resolve(spec.evaluate, "evaluate", torch.cuda.device_count()))


@kept()
def _evaluate(spec: ExperimentSpec, status: StatusLog, ranks: Ranks) -> Outcome:
    engine = spec.evaluate.trt_engine
    folder = results_dir(spec, "evaluate")
    data = StereoLoaders(spec)
    data.setup("test")
    need_ground_truth(data.datasets["test"].samples, "test")
    tell_of_earlier_results(folder)
    status.running(f"Loading {'engine' if engine else 'checkpoint'}: {engine or spec.evaluate.checkpoint}")
    with joined(ranks, "gloo"):
        loader = data.test_dataloader()
        with loader.started() as batches:
            predictor = load_predictor(spec, "evaluate", ranks.devices[ranks.local or 0])
        limits = spec.dataset.max_disparity, predictor.settings["max_disparity"]
        chosen = Chosen()
        panels = [folder / "panels" / f"{name}.png" for name in flat_names(data.datasets["test"].rels[:PANELS])]
        pairs = predictions(predictor, batches, len(loader), spec.dataset.test_dataset.pin_memory)
        rows = _evaluated(pairs, panels, *limits, chosen)
        if ranks.world > 1:
            rows = iter(sorted(gathered(list(rows)), key=itemgetter("index")))
            chosen = Chosen.of(gathered(chosen.found))
    if ranks.rank > 0:
        return Outcome("Evaluate finished successfully; the first process reports the figures")
    model = Path(engine or spec.evaluate.checkpoint)
    checksum = None if engine else ThreadPoolExecutor(1, "checksum").submit(digest, model)  # a second per GB
    names = [name_of("test", *one) for one in enumerate(spec.dataset.test_dataset.data_sources)]
    totals = _totals(rows, folder / "metrics.csv", names)
    write_views(folder / FILE, chosen.views)
    for doubt in _without_truth(totals):
        LOG.warning("%s", doubt)
    beyond = _beyond(totals, predictor.settings["max_disparity"])
    trifle = totals["beyond"] < TRIFLE * totals["pixels"]
    if beyond and not trifle:
        LOG.warning("%s", beyond)
    figures = predictor.figures() | {"model_bytes": model.stat().st_size}
    kpi = {name: totals[name] for name in (*METRICS, *(f"{m}_pixel" for m in METRICS))} | known(figures)
    settings = predictor.settings | {"dataset_max_disparity": spec.dataset.max_disparity}
    settings |= {"sha256": checksum.result()} if checksum else {}  # an engine's is among its settings
    counts = {name: totals[name] for name in ("images", "pixels", "empty")}
    write_results(folder, kpi | figures | counts | {"warnings": status.warnings, "settings": settings})
    status.running("Test metrics generated.", kpi=kpi)
    found = [counted(totals["images"], "pair"), named("epe", kpi["epe"]), named("d1", kpi["d1"])]
    return Outcome(
        f"Evaluate finished successfully: {', '.join(found)}" + f"; note: {beyond}" * bool(beyond and trifle),
        kpi=kpi,
        artifacts={"metrics": folder / "results.json"},
    )


def _totals(rows: Iterator[dict[str, Any]], path: Path, names: list[str]) -> dict[str, Any]:
    """The metrics of all rows; also writes the rows to a table.

    `beyond` counts pixels (see `_evaluated`), `sources` the (images, ignored images) of each data source.
    """
    metrics, beyond, sources = StereoMetrics(), 0, {name: [0, 0] for name in names}
    with (
        atomic_path(path) as temporary,
        temporary.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file,
    ):
        table = csv.DictWriter(file, COLUMNS, extrasaction="ignore")
        table.writeheader()
        for row in rows:
            metrics.update([row])
            beyond += row["beyond"]
            counts = sources[names[row["source"]]]
            counts[0] += 1
            counts[1] += not row["pixels"]
            table.writerow(row)
    return metrics.compute() | {"beyond": beyond, "sources": sources}


def _evaluated(
    pairs: Iterator[tuple[dict[str, Any], np.ndarray]],
    panels: Sequence[Path],
    max_disparity: float,
    reach: int | None,
    chosen: Chosen,
) -> Iterator[dict[str, Any]]:
    """For every image, a row of metrics.csv with the sample's `index` and `source`; also writes the first panels.

    Args:
        panels: the files of the first images' panels.
        max_disparity: px, exclusive: limit of the ground truth.
        reach: px, the network's max_disparity, None if unknown; `beyond` counts the pixels at or above it.
        chosen: collects the pairs for the pages.
    """
    row = partial(_row, max_disparity=max_disparity, reach=reach, chosen=chosen)
    return mapped(row, _with_panel(pairs, panels))


def _with_panel(
    pairs: Iterator[tuple[dict[str, Any], np.ndarray]], panels: Sequence[Path]
) -> Iterator[tuple[dict[str, Any], np.ndarray, Path | None]]:
    """Each pair and the file of its panel; None for all but the first."""
    for sample, prediction_HW in pairs:
        index = sample["index"]
        yield sample, prediction_HW, panels[index] if index < len(panels) else None


def _row(
    work: tuple[dict[str, Any], np.ndarray, Path | None], max_disparity: float, reach: int | None, chosen: Chosen
) -> dict[str, Any]:
    sample, prediction_HW, panel_file = work
    gt_HW, valid_HW = sample["disparity"][0].numpy(), sample["valid"][0].numpy()
    row = disparity_metrics(prediction_HW, gt_HW, valid_HW, max_disparity)
    counts_HW = valid_HW & (gt_HW > 0) & (gt_HW < max_disparity)
    row["beyond"] = 0 if reach is None else int((counts_HW & (gt_HW >= reach)).sum())
    if panel_file:
        write_png(panel_file, panel(_left(sample), prediction_HW, gt_HW, counts_HW))
    truth_HW = np.where(counts_HW, gt_HW, 0)
    chosen.offer(sample["index"], row["epe"], partial(_view, sample, prediction_HW, truth_HW, row))
    which = {name: sample[name] for name in ("index", "source", "path")}
    return which | row | {"valid": row["pixels"] / gt_HW.size}


def _left(sample: dict[str, Any]) -> np.ndarray:
    left: np.ndarray = sample["left"].permute(1, 2, 0).numpy().round().astype(np.uint8)
    return left


def _view(sample: dict[str, Any], prediction_HW: np.ndarray, truth_HW: np.ndarray, row: dict[str, Any]) -> View:
    return view(sample["rel"], _left(sample), prediction_HW, path=str(sample["path"]), truth_HW=truth_HW,
                most_pixels=FEWER_PIXELS, facts=sentence(row))  # fmt: skip


def _without_truth(totals: dict[str, Any]) -> Iterator[str]:
    """A warning for each data source with images that do not count."""
    for name, (images, empty) in totals["sources"].items():
        if empty:
            yield (
                f"{name}: images without valid ground truth (visible in the mask, 0 < disparity < "
                f"dataset.max_disparity): {empty} of {images}; they are ignored, see metrics.csv"
            )


def _beyond(totals: dict[str, Any], reach: int | None) -> str:
    """Which ground truth the network can hardly predict; empty if there is none."""
    count, pixels = totals["beyond"], totals["pixels"]
    if not count:
        return ""
    return (
        f"{count} of {pixels} valid pixels ({count / pixels:.2%}) have ground truth at or above the network's "
        f"max_disparity of {reach} px, which the network can hardly predict; if the weights were trained for a "
        "larger range set model.max_disparity, otherwise lower dataset.max_disparity"
    )
