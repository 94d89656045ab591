"""Outcomes -> one self-contained HTML page: tables and pictures, nothing loaded from elsewhere."""

from __future__ import annotations

import base64
import contextlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from jinja2 import Environment

from stereo_core import __version__
from stereo_core.errors import DataError
from stereo_core.report.curves import plot
from stereo_core.run.status import warnings_in

if TYPE_CHECKING:
    from stereo_core.run.outcome import Outcome

PICTURES = 8

_PAGE = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string("""\
<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{{ title }}</title>
<style>
body{font:15px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:1200px;padding:0 1rem;color:#1b1f24}
h1{font-size:1.5rem}h2{font-size:1.15rem;margin-top:2rem}table{border-collapse:collapse}
th,td{padding:.25rem .9rem;border-bottom:1px solid #d9dee3;text-align:left}
td.n{text-align:right;font-variant-numeric:tabular-nums}
figure{margin:1rem 0}figcaption{color:#57606a}img{width:100%}
footer{margin-top:3rem;color:#57606a}
</style></head><body>
<h1>{{ title }}</h1>
{% if note %}<p>{{ note }}</p>{% endif %}
{{ drawing | safe }}
{% for table in tables %}
<h2>{{ table.title }}</h2>
<table><tr>{% for name in table.columns %}<th>{{ name }}</th>{% endfor %}</tr>
{% for row in table.rows %}
<tr>{% for cell in row %}
<td{% if cell is number %} class="n"{% endif %}>{{ cell if cell is string else figure(cell) }}</td>{% endfor %}</tr>
{% endfor %}</table>
{% endfor %}
{% for title, caption, pictures in galleries %}
<h2>{{ title }}</h2>
<p>{{ caption }}</p>
{% for name, data in pictures %}
<figure><img alt="{{ name }}" src="data:image/png;base64,{{ data }}"><figcaption>{{ name }}</figcaption></figure>
{% endfor %}
{% endfor %}
<footer>stereo-pipelines {{ version }}</footer>
</body></html>
""")

_PANELS = (
    "Left image, ground truth, prediction, error. Disparities share one colour scale; errors go from blue (0) to red "
    "(8 px and more); black has no ground truth."
)
LEFT_BY_ACTIONS = (
    ("Curves", "curves.png", ""),
    ("Last validation", "validation.png", _PANELS),
    ("Pictures", "panels/*.png", _PANELS),
    ("Before", "before/panels/*.png", _PANELS),
    ("After", "after/panels/*.png", _PANELS),
    ("Pictures", "predicted_depth/*.png", "Predicted disparity in colour."),
)
"""Title, pattern below the results folder, caption."""


@dataclass(frozen=True)
class Table:
    """A titled table; strings are left-aligned, numbers right-aligned, see `figure`."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str | float]] = field(default_factory=list)


Gallery = tuple[str, str, Sequence[Path]]
"""Title, caption, PNG files."""


def figure(value: float) -> str:
    """Four figures, and all before the point: seconds and bytes are not read as 1.235e+04."""
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def page(
    title: str, tables: Iterable[Table], galleries: Iterable[Gallery] = (), *, note: str = "", drawing: str = ""
) -> str:
    """HTML text with `tables`, the PNG files of `galleries` and `drawing`, an SVG element, embedded."""
    embedded = [(name, caption, [(p.stem, _base64(p)) for p in pictures]) for name, caption, pictures in galleries]
    return _PAGE.render(
        title=title,
        note=note,
        drawing=drawing,
        tables=list(tables),
        galleries=embedded,
        figure=figure,
        version=__version__,
    )


def _base64(path: Path) -> str:
    return base64.b64encode(path.read_bytes()).decode()


def warnings_table(rows: Iterable[Sequence[str]], *of: str) -> list[Table]:
    """A table of warnings, in rows of what `of` names and the text; none where there is none."""
    rows = list(rows)
    return [Table("Warnings", (*of, "warning"), rows)] if rows else []


def metrics_table(title: str, metrics: Mapping[str, float]) -> Table:
    """Two columns: metric, value."""
    return Table(title, ("metric", "value"), list(metrics.items()))


def galleries_of(results_dir: Path) -> list[Gallery]:
    """The first pictures of each kind that an action left in its results folder."""
    found = [(title, text, sorted(results_dir.glob(files))[:PICTURES]) for title, files, text in LEFT_BY_ACTIONS]
    return [(title, caption, pictures) for title, caption, pictures in found if pictures]


def action_report(results_dir: Path, outcome: Outcome, verb: str) -> str:
    """The page of one action: its message, its warnings and metrics and the pictures in `results_dir`, for train with
    its curves."""
    if verb == "train":
        with contextlib.suppress(DataError):  # no epoch and no validation came to its end
            plot(results_dir)
    tables = [*warnings_table((text,) for text in warnings_in(results_dir)), metrics_table("Metrics", outcome.kpi)]
    return page(verb, tables, galleries_of(results_dir), note=outcome.message)
