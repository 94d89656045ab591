"""Outcomes -> one self-contained HTML page with tables, pairs and pictures; it loads nothing from elsewhere.

The page's Content-Security-Policy prevents requests to any host.
"""

from __future__ import annotations

import base64
import contextlib
import csv
import gzip
import json
import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Self
from urllib.parse import quote

from jinja2 import Environment, FileSystemLoader
from markupsafe import Markup, escape

from stereo_core import __version__
from stereo_core.errors import DataError
from stereo_core.report.curves import plot
from stereo_core.report.figures import (
    ACCURACY,
    EXPLAINED,
    KINDS,
    SPREAD,
    Pairs,
    decimals,
    of_batch,
    plain,
    scaled,
    setting,
    setting_value,
    spread,
)
from stereo_core.report.names import common_end, common_folder, headings
from stereo_core.report.views import FILE, VALIDATION, Group, View, fitting, read_views, side_by_side
from stereo_core.run.status import lines_of, warnings_in

if TYPE_CHECKING:
    from stereo_core.run.outcome import Outcome

MOST_BYTES = 7_500_000  # for the pairs of a page; INTERFACES allows 8 MB per page
MOST_ROWS = 500  # rows of the table of images
OPEN_VIEWS = 4  # pictures of pairs that a page opens with; the other pairs are folded
_COLOURS = (
    "#0072b2",
    "#d55e00",
    "#009e73",
    "#cc79a7",
    "#e69f00",
    "#56b4e9",
)  # colours that colour-blind readers can distinguish
_DASHES = ("none", "7 5", "2 4")  # of the curves, so that those that coincide are seen

_JINJA = Environment(
    loader=FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True, lstrip_blocks=True
)
_JINJA.filters["link"] = lambda path: quote(os.fsencode(path))  # urlencode refuses names that are no UTF-8
_PAGE = _JINJA.get_template("page.html")


class Link(NamedTuple):
    """A cell that links to a position of the page or to a file beside it."""

    text: str
    href: str


class Figure(float):
    """A number with the decimals that its cell shows; if `best`, the cell is bold."""

    def __new__(cls, value: float, decimals: int | None = None, *, best: bool = False) -> Self:
        self = super().__new__(cls, value)
        self.decimals, self.best = decimals, best
        return self

    decimals: int | None
    best: bool


class Short(NamedTuple):
    """A cell whose whole text a reader sees when pointing at it."""

    short: str
    whole: str


Cell = str | float | Link | Short


@dataclass(frozen=True)
class Table:
    """A titled table; strings are left-aligned, numbers right-aligned, see `figure`."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]] = field(default_factory=list)

    def is_number(self, column: int) -> bool:
        """Whether a column holds numbers, perhaps with gaps."""
        cells = [row[column] for row in self.rows if row[column] != ""]
        return bool(cells) and all(isinstance(cell, int | float) for cell in cells)


Folded = Mapping[str, str | Mapping[str, Any] | Table]
"""Title -> text, keys and values, or a table, in a section that the reader can unfold."""

Gallery = tuple[str, str, Sequence[Path]]
"""Title, caption, PNG files."""


def cell(key: str, value: float, *, best: bool = False) -> Figure:
    """The cell of a figure under its key, in the unit that `plain` names and with the decimals of that unit."""
    return Figure(scaled(key, value), decimals(key, scaled(key, value)), best=best)


def figure(value: float) -> str:
    """The decimals of a `Figure`, else four significant digits, and all digits before the decimal point: never
    1.235e+04; nothing for NaN."""
    if value != value:
        return ""
    if isinstance(value, Figure) and value.decimals is not None:
        return f"{value:.{value.decimals}f}"
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def page(
    title: str,
    tables: Iterable[Table] = (),
    galleries: Iterable[Gallery] = (),
    *,
    note: str = "",
    drawing: str = "",
    warnings: Sequence[str] = (),
    groups: Sequence[Group] = (),
    more: Sequence[Table] = (),
    folded: Folded | None = None,
) -> str:
    """HTML text of a page that contains all its data.

    Args:
        note, drawing: below the title; the drawing is an SVG element.
        warnings: sentences at the top.
        groups: pairs shown below the tables; `fitting` limits their number.
        more: tables below the pairs.
        folded: sections at the end.
    """
    embedded = [
        (name, caption, [(p.stem, _base64(p.read_bytes())) for p in files]) for name, caption, files in galleries
    ]
    tables, more = list(tables), list(more)
    text = _PAGE.render(
        title=title,
        note=note,
        drawing=drawing,
        warnings=warnings,
        tables=tables,
        explained=EXPLAINED if any(plain("epe") in table.columns for table in tables) else "",
        groups=groups,
        names=headings(groups),
        open_views=OPEN_VIEWS,
        more=more,
        galleries=embedded,
        folded=folded or {},
        figure=figure,
        cell=cell,
        setting=setting,
        setting_value=setting_value,
        unbroken=_unbroken,
        by_parts=_by_parts,
        dashes=_DASHES,
        colours=_COLOURS,
        constants=_constants() if groups else {},
        plotly=_plotly() if has_cloud(groups) else "",
        version=__version__,
    )
    return text.encode(errors="replace").decode()  # names that are no UTF-8 show a ? there


_WHOLE = re.compile(
    r"--\w+( [A-Z]+)?|[^\s/]+ \([^\s()]+\)|[\d.]+ (?:px|mm?|m?s|%|[KMGT]?B)(?!\w)|\d{4}-\d\d-\d\d [\d:]+"
)
"""An option with its value (browsers break after hyphens), a name with its unit, a number with its unit, a time."""


def _unbroken(text: str) -> Markup:
    """HTML in which no line ends within `--focal PX`, `median (ms)` or `32.2 s`."""
    return Markup(_WHOLE.sub(r'<span class="whole">\g<0></span>', str(escape(text))))


def _by_parts(text: str) -> Markup:
    """`_unbroken`, and a line may end after a slash, so that a path breaks between its parts."""
    return _unbroken(escape(text).replace("/", Markup("/<wbr>")))


def has_cloud(groups: Iterable[Group]) -> bool:
    """Whether a page of these groups shows point clouds, and so contains Plotly."""
    return any(view.camera for group in groups for view in group.views.values())


PLOTLY_BYTES = 2_000_000  # size of Plotly in a page


def shown(runs: Mapping[str, Sequence[View]]) -> list[Group]:
    """The pairs of runs, side by side, as many as fit in a page."""
    groups = side_by_side(runs)
    return fitting(groups, MOST_BYTES - has_cloud(groups) * PLOTLY_BYTES)


def _plotly() -> str:
    """Plotly, compressed; the page decompresses it when a reader opens a point cloud."""
    library = resources.files("plotly") / "package_data" / "plotly.min.js"
    return _base64(gzip.compress(library.read_bytes(), mtime=0))


def _constants() -> dict[str, Any]:
    """The constants for colours and values in the page's script."""
    import numpy as np

    from stereo_core.report.pictures import ERROR_SCALE_PX, Scale, colour_disparity
    from stereo_core.report.viewer import STEPS

    levels_256 = np.linspace(1e-6, 1, 256, dtype=np.float32)[None]
    return {
        "steps": STEPS,
        "error_px": ERROR_SCALE_PX,
        "turbo": colour_disparity(levels_256, Scale(1.0)).ravel().tolist(),
    }


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def pairs_of(results_dir: Path) -> Pairs:
    """The lines of an evaluation's metrics.csv, with epe; empty if there is no such file.

    Raises:
        DataError: the file is damaged, or another program's.
    """
    path = results_dir / "metrics.csv"
    if not path.is_file():
        return {}
    try:
        with path.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
            rows = {row.pop("path"): {key: float(value) for key, value in row.items()} for row in csv.DictReader(file)}
        if all("epe" in row for row in rows.values()):
            return rows
    except (ValueError, KeyError, TypeError, csv.Error):
        pass
    raise DataError(f"{path}: damaged, or not written by evaluate; run the evaluation again, or remove the file")


def metrics_tables(metrics: Mapping[str, float], pairs: Pairs) -> list[Table]:
    """The accuracy, a row per kind and a column per metric; and the other figures, a row each."""
    others: dict[str, Any] = dict(metrics)
    batches = {others.pop("latency_batch")} if "latency_batch" in others else set()
    kinds = {kind: [others.pop(pattern.format(key), math.nan) for key in ACCURACY] for kind, pattern in KINDS.items()}
    spreads = [spread(pairs, key) for key in ACCURACY]
    kinds |= {kind: [one.get(kind, math.nan) for one in spreads] for kind in SPREAD}
    accuracy: list[tuple[Cell, ...]] = [
        (kind, *map(cell, ACCURACY, values)) for kind, values in kinds.items() if not all(map(math.isnan, values))
    ]
    rows = [(of_batch(key, batches), cell(key, value)) for key, value in others.items()]
    tables = [Table("Accuracy", ("kind", *map(plain, ACCURACY)), accuracy), Table("Figures", ("figure", "value"), rows)]
    return [table for table in tables if table.rows]


def images_table(runs: Mapping[str, Pairs], groups: Sequence[Group]) -> list[Table]:
    """One row per pair that all runs have, the worst first, with links to the pairs; no table if there is none.

    A single run shows all its figures; several runs show only their epe.

    Args:
        runs: name -> what `pairs_of` returns.
        groups: the pairs in the page.
    """
    paths = [path for path in next(iter(runs.values()), {}) if all(path in pairs for pairs in runs.values())]
    if not paths:
        return []
    anchors = {view.path: f"#pair-{n}" for n, group in enumerate(groups, 1) for view in group.views.values()}
    if len(runs) == 1:
        (figures,) = ([*pairs.values()] for pairs in runs.values())
        keys = sorted(figures[0], key=lambda key: ACCURACY.index(key) if key in ACCURACY else len(ACCURACY))
        names = [plain(key) for key in keys]
        rows: list[tuple[str, list[Figure]]] = [
            (path, [cell(key, row[key]) for key in keys]) for path, row in zip(paths, figures, strict=True)
        ]
    else:
        names = [f"{plain('epe')} {run}" for run in runs]
        rows = [(path, [cell("epe", pairs[path]["epe"]) for pairs in runs.values()]) for path in paths]
    rows.sort(key=lambda row: -max((value for value in row[1][:1] if value == value), default=-1.0))
    below, tail = common_folder(paths), common_end(paths)
    texts = {path: path[len(below) :].removesuffix(tail) for path in paths}
    cells = [
        [Link(texts[path], anchors[path]) if path in anchors else texts[path], *values]
        for path, values in rows[:MOST_ROWS]
    ]
    image = f"left image, without {tail[1:]}" if tail else "left image"
    title = f"The worst {MOST_ROWS} of {len(rows)} pairs" if len(rows) > MOST_ROWS else "Pairs"
    return [Table(f"{title} below {below}" if below else title, (image, *names), cells)]


def views_of(results_dir: Path) -> dict[str, list[View]]:
    """The pairs that an action wrote to its results folder, by the name of their run."""
    files = {"": FILE, "last validation": VALIDATION, "before": f"before/{FILE}", "after": f"after/{FILE}"}
    found = {run: read_views(results_dir / file) for run, file in files.items()}
    return {run: views for run, views in found.items() if views}


def action_report(results_dir: Path, outcome: Outcome, verb: str) -> str:
    """The page of one action: its warnings, metrics, curves, pairs, images and settings, from its results folder."""
    galleries = []
    if verb == "train":
        with contextlib.suppress(DataError):  # no epoch and no validation has finished
            galleries = [("Curves", "", [plot(results_dir)[0]])]
    groups, pairs = shown(views_of(results_dir)), pairs_of(results_dir)
    return page(
        verb,
        metrics_tables(outcome.kpi, pairs),
        galleries,
        note=outcome.message,
        warnings=warnings_in(results_dir),
        groups=groups,
        more=images_table({"": pairs}, groups),
        folded=folded_of(results_dir),
    )


def folded_of(results_dir: Path) -> Folded:
    """The foldable sections of an action's page: its settings, its spec and its status lines."""
    folded: dict[str, str | Mapping[str, Any] | Table] = {}
    with contextlib.suppress(OSError, ValueError):
        results = json.loads((results_dir / "results.json").read_text(encoding="utf-8"))
        folded["Settings"] = results.get("settings", {})
    with contextlib.suppress(OSError):
        folded["Spec"] = (results_dir / "experiment.yaml").read_text(encoding="utf-8")
    lines = [f"{line['timestamp'][:19]} {line['status']} {line['message']}" for line in lines_of(results_dir)]
    return folded | {"Record": "\n".join(lines[-MOST_ROWS:])}
