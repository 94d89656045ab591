"""report: compare the results of several evaluations: accuracy, latency, size."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from stereo_core.errors import DataError, SpecError
from stereo_core.files import UniqueNames, atomic_path
from stereo_core.report.figures import (
    ACCURACY,
    SPREAD,
    TIME,
    Pairs,
    of_batch,
    pair_ms,
    plain,
    setting,
    setting_value,
    spread,
)
from stereo_core.report.html import Cell, Figure, Short, Table, cell, images_table, page, pairs_of, shown, views_of
from stereo_core.run.outcome import Outcome
from stereo_core.run.status import last_of
from stereo_core.spec import results_dir
from stereo_core.values import counted, from_json

LOG = logging.getLogger(__name__)

# Order of the rows, if any result has them; other figures follow in the order of their first occurrence.
FIRST = ("epe", "d1", "bp1", "bp2", "bp3", "rmse", "epe_pixel", "latency_median_ms", "latency_p95_ms")
LATENCIES = ("latency_median_ms", "latency_p95_ms")
SETTINGS = ("backend", "valid_iters", "precision", "device")  # of the summary; only engines have a backend
ALIKE = 1.005  # ratio to the lowest figure up to which a figure counts as equally good


def run(spec: Any, status: Any) -> Outcome:
    """Write report.html to the results folder: a summary with a row per evaluation, the pairs side by side, and all
    figures with their differences from the first evaluation.

    Raises:
        SpecError: no results, or the numbers of names and results differ.
        DataError: see `read_figures`.
    """
    names, columns = list(spec.names), [read_figures(Path(path)) for path in spec.results]
    if not columns:
        raise SpecError("results is empty; name the results.json files of one or more evaluations, or their folders")
    folders = [Path(path) if Path(path).is_dir() else Path(path).parent for path in spec.results]
    if not names:
        names = default_names(folders)
    if len(names) != len(columns):
        raise SpecError(f"names: there are {len(names)} names for {len(columns)} results; give one for each, or none")
    names = list(map(UniqueNames(), names))
    pairs = [pairs_of(folder) for folder in folders]
    note = other_images(names, columns, pairs) or other_pixels(names, columns)
    if note:
        LOG.warning(note)
    folder = results_dir(spec, "report")
    out = folder / "report.html"
    warnings = [note] * bool(note)
    for name, path in zip(names, spec.results, strict=True):
        warnings += [f"{name}: {text}" for text in read_warnings(Path(path))]
    settings = [read_settings(Path(path)) for path in spec.results]
    tables = [summary(names, list(spec.results), columns, pairs, settings, comparable=not note)]
    folded = [*comparison(names, columns), settings_table(names, settings)]
    groups = shown({name: views_of(one).get("", []) for name, one in zip(names, folders, strict=True)})
    more = images_table(dict(zip(names, pairs, strict=True)), groups)
    below = {table.title: table for table in folded if table.rows}
    text = page(spec.title, tables, warnings=warnings, groups=groups, more=more, folded=below)
    with atomic_path(out) as temporary:
        temporary.write_text(text, encoding="utf-8")
    kpi = {f"{name}/epe": column["epe"] for name, column in zip(names, columns, strict=True) if "epe" in column}
    return Outcome(f"Report of {counted(len(columns), 'evaluation')}: {out}", kpi=kpi, artifacts={"report": out})


def summary(
    names: list[str],
    paths: list[str],
    columns: list[dict[str, float]],
    pairs: list[Pairs],
    settings: list[dict[str, Any]],
    *,
    comparable: bool,
) -> Table:
    """One row per evaluation: accuracy (means over pairs, and the spread of the EPE), time, pairs, settings.

    The best accuracies are marked if `comparable`; times are not: they depend on what else the machine did.
    """
    rows: list[list[Cell]] = [[Short(name, path)] for name, path in zip(names, paths, strict=True)]
    titles = ["evaluation"]
    spreads = [spread(one, "epe") for one in pairs]
    accuracy = [(key, plain(key), [one.get(key) for one in columns]) for key in ACCURACY[:4]]
    accuracy[1:1] = [("epe", f"EPE, {kind} (px)", [one.get(kind) for one in spreads]) for kind in SPREAD]
    for key, title, values in accuracy:
        best = _best([value for value in values if value is not None]) if comparable else set()
        _add(rows, titles, title, ["" if v is None else cell(key, v, best=v in best) for v in values])
    _add(rows, titles, TIME, [cell(LATENCIES[0], pair_ms(one)) if LATENCIES[0] in one else "" for one in columns])
    _add(rows, titles, "pairs", [one.get("images", "") for one in columns])
    for key in SETTINGS:
        _add(rows, titles, setting(key), [one.get(key, "") for one in settings])
    return Table("Summary", titles, rows)


def _add(rows: list[list[Cell]], titles: list[str], title: str, cells: list[Cell]) -> None:
    """Add a column, unless it is empty."""
    if all(one == "" for one in cells):
        return
    titles.append(title)
    for row, one in zip(rows, cells, strict=True):
        row.append(one)


def _best(values: list[float]) -> set[float]:
    """The lowest figures, that is, those within ALIKE of the lowest; none if all are."""
    best = {value for value in values if value <= ALIKE * min(values)}
    return best if len(best) < len(set(values)) else set()


def settings_table(names: list[str], settings: list[dict[str, Any]]) -> Table:
    """One row per setting and one column per evaluation."""
    keys = list(dict.fromkeys(key for one in settings for key in one))
    rows = [(setting(key), *(setting_value(key, one.get(key, "")) for one in settings)) for key in keys]
    return Table("Settings", ("setting", *names), rows)


def default_names(folders: list[Path]) -> list[str]:
    """The folders' names; if two are equal, the parts of the paths that differ."""
    names = [folder.name for folder in folders]
    if len(set(names)) == len(names) or len(set(folders)) == 1:
        return names
    parts = [folder.absolute().parts for folder in folders]
    while len({path[-1] for path in parts}) == 1 and min(map(len, parts)) > 1:
        parts = [path[:-1] for path in parts]
    while len({path[0] for path in parts}) == 1 and min(map(len, parts)) > 1:
        parts = [path[1:] for path in parts]
    return ["/".join(path) for path in parts]


def other_images(names: list[str], columns: list[dict[str, float]], pairs: list[Pairs]) -> str:
    """A warning if an evaluation used other images than the first one, judged by the figure `images` and metrics.csv;
    else an empty string."""
    counts, paths = [column.get("images") for column in columns], [set(one) for one in pairs]
    others = [
        name
        for name, count, images in zip(names[1:], counts[1:], paths[1:], strict=True)
        if (None not in (count, counts[0]) and count != counts[0]) or (images and paths[0] and images != paths[0])
    ]
    if not others:
        return ""
    return f"{', '.join(others)}: evaluated on other pairs than {names[0]}, so the figures are not comparable."


def other_pixels(names: list[str], columns: list[dict[str, float]]) -> str:
    """A warning if an evaluation measured other pixels of the images than the first one; else an empty string."""
    counts = [column.get("pixels") for column in columns]
    others = [
        f"{name} ({n:.0f})"
        for name, n in zip(names, counts, strict=True)
        if None not in (n, counts[0]) and n != counts[0]
    ]
    if not others:
        return ""
    return (
        f"{', '.join(others)}: another number of pixels with valid ground truth than {names[0]} ({counts[0]:.0f}), as "
        "dataset.max_disparity, disparities or masks differ, so the figures are not comparable."
    )


def read_figures(path: Path) -> dict[str, float]:
    """The numbers of a results.json (or of the folder that holds one): metric -> value.

    Raises:
        DataError: the file is missing, is no JSON object with figures, or is of an earlier run than the folder's last.
    """
    file, values = _read(path)
    last = last_of(file.parent, ("evaluate", "trt_evaluate"))
    if last.get("status", "SUCCESS") != "SUCCESS":
        raise DataError(
            f"{file}: the last evaluation in this folder did not succeed, so these figures are of an earlier one; run "
            f"it again, or copy the file to another folder. The last line of its status.json: {last.get('message')}"
        )
    numbers = values.items()
    figures = {key: value for key, value in numbers if isinstance(value, int | float) and not isinstance(value, bool)}
    if not figures:
        raise DataError(f"{file}: the file contains no figures; name a results.json of evaluate or trt_evaluate")
    return figures


def read_warnings(path: Path) -> list[str]:
    """The warnings of an evaluation. Raises as `read_figures`."""
    found = _read(path)[1].get("warnings")
    return list(map(str, found)) if isinstance(found, list) else []


def read_settings(path: Path) -> dict[str, Any]:
    """The settings of an evaluation; empty if it states none. Raises as `read_figures`."""
    found = _read(path)[1].get("settings")
    return found if isinstance(found, dict) else {}


def _read(path: Path) -> tuple[Path, dict[str, Any]]:
    """Path and content of a results.json, or of the one in a folder; empty if it is no JSON object."""
    file = path / "results.json" if path.is_dir() else path
    try:
        values = from_json(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(
            f"{file}: there is no such file; name a results.json of evaluate or trt_evaluate, or its folder"
        ) from None
    except ValueError as error:
        raise DataError(f"{file}: the file is no valid JSON: {error}; run the evaluation again") from None
    return file, values if isinstance(values, dict) else {}


def comparison(names: list[str], columns: list[dict[str, float]]) -> list[Table]:
    """The figures side by side, each with its key in results.json, and the difference of each column from the first."""
    known = list(dict.fromkeys([*FIRST, *(key for column in columns for key in column)]))
    rows = [key for key in known if any(key in column for column in columns)]
    figures: list[tuple[Cell, ...]] = [
        (_label(key, columns), *(_cell(key, column[key]) if key in column else "" for column in columns), key)
        for key in rows
    ]
    tables = [Table("All figures", ("figure", *names, "key"), figures)]
    shared = [key for key in rows if all(key in column for column in columns)]
    if len(columns) > 1 and shared:
        changes: list[tuple[Cell, ...]] = [
            (_label(key, columns), *(_cell(key, column[key] - columns[0][key]) for column in columns[1:]))
            for key in shared
        ]
        tables.append(Table(f"Difference from {names[0]}", ("figure", *names[1:]), changes))
    return tables


def _cell(key: str, value: float) -> Figure:
    return cell(key.removesuffix("_pixel"), value)


def _label(key: str, columns: list[dict[str, float]]) -> str:
    """The name of a figure with its unit. Latencies are per batch, so their names tell the batches."""
    if key.endswith("_pixel"):
        return plain(key.removesuffix("_pixel")).replace(" (", ", over all pixels (")
    return of_batch(key, {column["latency_batch"] for column in columns if "latency_batch" in column})
