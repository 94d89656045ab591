"""report: the results of several evaluations side by side: accuracy, latency, size."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from stereo_core.actions import Outcome
from stereo_core.errors import DataError, SpecError
from stereo_core.files import atomic_path
from stereo_core.report.html import Gallery, Table, page
from stereo_core.spec import results_dir

PICTURES = 3
CAPTION = "Left image, ground truth, prediction, error. Errors go from blue (0) to red (8 px and more)."
# Rows in this order where any of the results has them; other figures follow in the order of the first that has them.
FIRST = ("epe", "d1", "bp1", "bp2", "bp3", "rmse", "epe_pixel", "latency_median_ms", "latency_p95_ms")


def run(spec: Any, status: Any) -> Outcome:
    """Write report.html in the results folder: a row a figure, a column an evaluation, the first one the reference.

    Raises:
        SpecError: no results, or another number of names than of results.
        DataError: a file is missing, or no JSON object with figures.
    """
    names, columns = list(spec.names), [read_figures(Path(path)) for path in spec.results]
    if not columns:
        raise SpecError("results: name the results.json of one evaluation or more, or their folders")
    if not names:
        names = [Path(path).name if Path(path).is_dir() else Path(path).parent.name for path in spec.results]
    if len(names) != len(columns):
        raise SpecError(f"names: {len(names)} names for {len(columns)} results; give one each, or none")
    folder = results_dir(spec, "report")
    out = folder / "report.html"
    text = page(spec.title, comparison(names, columns), galleries(names, spec.results))
    with atomic_path(out) as temporary:
        temporary.write_text(text, encoding="utf-8")
    kpi = {f"{name}/epe": column["epe"] for name, column in zip(names, columns, strict=True) if "epe" in column}
    return Outcome(f"Report of {len(columns)} evaluations: {out}", kpi=kpi, artifacts={"report": out})


def read_figures(path: Path) -> dict[str, float]:
    """The numbers of a results.json (or of the folder that holds one): metric -> value.

    Raises:
        DataError: the file is missing, or no JSON object with figures.
    """
    file = path / "results.json" if path.is_dir() else path
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"{file}: no such file; evaluate and trt_evaluate write results.json") from None
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise DataError(f"{file}: no JSON file: {error}") from None
    numbers = values.items() if isinstance(values, dict) else ()
    figures = {key: value for key, value in numbers if isinstance(value, int | float) and not isinstance(value, bool)}
    if not figures:
        raise DataError(f"{file}: holds no figures; give the results.json of evaluate or trt_evaluate")
    return figures


def comparison(names: list[str], columns: list[dict[str, float]]) -> list[Table]:
    """The figures side by side, and the difference of each column to the first."""
    known = list(dict.fromkeys([*FIRST, *(key for column in columns for key in column)]))
    rows = [key for key in known if any(key in column for column in columns)]
    tables = [Table("Figures", ("figure", *names), [(key, *(c.get(key, "") for c in columns)) for key in rows])]
    shared = [key for key in rows if all(key in column for column in columns)]
    if len(columns) > 1 and shared:
        changes = [(key, *(column[key] - columns[0][key] for column in columns[1:])) for key in shared]
        tables.append(Table(f"Difference to {names[0]}", ("figure", *names[1:]), changes))
    return tables


def galleries(names: list[str], results: list[str]) -> list[Gallery]:
    """The first panels of each evaluation whose folder is at hand."""
    folders = [Path(path) if Path(path).is_dir() else Path(path).parent for path in results]
    found = [
        (name, sorted((folder / "panels").glob("*.png"))[:PICTURES])
        for name, folder in zip(names, folders, strict=True)
    ]
    return [(name, CAPTION, pictures) for name, pictures in found if pictures]
