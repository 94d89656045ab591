"""info: statistics of data sets: pairs, image sizes, ground truth, masks, disparities; per source and in total."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stereo_core.actions.report import default_names
from stereo_core.data.annotations import check_files, read_annotations
from stereo_core.data.datasets import doubts_of
from stereo_core.data.statistics import Statistics, statistics_of_pairs
from stereo_core.files import UniqueNames, atomic_path
from stereo_core.progress import bars
from stereo_core.report.console import print_table, stdout
from stereo_core.report.histogram import plot_disparities
from stereo_core.report.html import Table, cell, page
from stereo_core.run.outcome import Outcome
from stereo_core.run.status import StatusLog
from stereo_core.spec import results_dir
from stereo_core.spec.convert import InfoSpec
from stereo_core.values import counted

LOG = logging.getLogger(__name__)
CAPTION = (
    "Frequency of disparities among the valid pixels, per annotation file and in total; the largest 0.1 % are not "
    "shown."
)


def run(spec: InfoSpec, status: StatusLog) -> Outcome:
    """Write info.json, report.html and, if there is ground truth, disparities.png; print the tables.

    info.json: `sources`, in the order of `data_sources`, each with its `name`, and `total`; see `figures`.

    Raises:
        DataError: a list has no pair, or a file cannot be used; the message names the list and the line.
    """
    sources = _read(spec)
    total = Statistics()
    for one in sources.values():
        total += one
    folder = results_dir(spec, "info")
    known = {"sources": [{"name": name} | figures(one) for name, one in sources.items()], "total": figures(total)}
    _write(folder / "info.json", json.dumps(known, indent=4) + "\n")
    galleries = []
    if total.valid:
        plot_disparities(sources, total, folder / "disparities.png")
        galleries = [("Disparities", CAPTION, [folder / "disparities.png"])]
    shown = tables(sources, total)
    message = f"{counted(total.pairs, 'pair')} of {counted(len(sources), 'data source')}"
    message += f", {total.ground_truth} with ground truth"
    _write(folder / "report.html", page("Data sets", shown, galleries, note=message, warnings=status.warnings))
    for table in shown:
        print_table(table, stdout())
    return Outcome(message, kpi=_kpi(total), artifacts={"report": folder / "report.html"}, printed=True)


def _read(spec: InfoSpec) -> dict[str, Statistics]:
    """Name of each source -> its statistics."""
    lists = [read_annotations(source.data_file, source.data_root) for source in spec.data_sources]
    for place, (samples, source) in enumerate(zip(lists, spec.data_sources, strict=True)):
        check_files(samples)
        for text in doubts_of(samples, source):
            LOG.warning("data_sources[%d]: %s", place, text)
    names = map(UniqueNames(), default_names([Path(source.data_file) for source in spec.data_sources]))
    found = {name: Statistics() for name in names}
    with bars() as progress:
        task = progress.add_task("reading", total=sum(map(len, lists)))
        for samples, source, statistics in zip(lists, spec.data_sources, found.values(), strict=True):
            for one in statistics_of_pairs(samples, source):
                statistics.add(one)
                progress.advance(task)
    return found


def figures(statistics: Statistics) -> dict[str, Any]:
    """`pairs`, `ground_truth` and `masks` (pairs with such a file), `sizes` ("WIDTHxHEIGHT" in px -> pairs), `pixels`
    (of pairs with ground truth), `valid_pixels`, `valid` (their share, 0..1, None without ground truth), `disparity`
    (`min`, `median`, `p95`, `max` of the valid pixels in px, None if there is none)."""
    valid, pixels = statistics.valid, statistics.pixels
    return {
        "pairs": statistics.pairs,
        "ground_truth": statistics.ground_truth,
        "masks": statistics.masks,
        "sizes": {f"{width}x{height}": pairs for (width, height), pairs in statistics.sizes.most_common()},
        "pixels": pixels,
        "valid_pixels": valid,
        "valid": valid / pixels if pixels else None,
        "disparity": _disparity(statistics) if valid else None,
    }


def _disparity(statistics: Statistics) -> dict[str, float]:
    return {
        "min": statistics.smallest,
        "median": statistics.quantile(0.5),
        "p95": statistics.quantile(0.95),
        "max": statistics.largest,
    }


def _kpi(total: Statistics) -> dict[str, float]:
    known = figures(total)
    disparity = {f"disparity_{name}": value for name, value in (known["disparity"] or {}).items()}
    counts = {name: known[name] for name in ("pairs", "ground_truth", "masks", "valid")}
    return {name: value for name, value in (counts | disparity).items() if value is not None}


def tables(sources: Mapping[str, Statistics], total: Statistics) -> list[Table]:
    """The figures, with a row per source and, for several, one for the total; and the image sizes, a row each."""
    shown = [*sources.items(), *[("total", total)] * (len(sources) > 1)]
    every = [(name, figures(one)) for name, one in shown]
    columns: tuple[str, ...] = ("source", "pairs", "with ground truth", "with mask", "valid (%)")
    columns += ("min (px)", "median (px)", "95 % (px)", "max (px)")
    rows = [(name, *_row(known)) for name, known in every]
    sizes = [(name, size.replace("x", " x "), pairs) for name, known in every for size, pairs in known["sizes"].items()]
    return [
        Table("Figures", columns, rows),
        Table("Image sizes", ("source", "width x height (px)", "pairs"), sizes),
    ]


def _row(known: dict[str, Any]) -> list[str | float]:
    disparity = known["disparity"] or dict.fromkeys(("min", "median", "p95", "max"))
    valid = known["valid"] if known["valid"] is None else cell("valid", known["valid"])
    row = [known["pairs"], known["ground_truth"], known["masks"], valid, *disparity.values()]
    return ["" if value is None else value for value in row]


def _write(path: Path, text: str) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
