"""The page of a run: graph, metrics, times, artifacts and pictures. Also the metrics table for the console."""

from __future__ import annotations

import shutil
from html import escape
from pathlib import Path

from stereo_core.files import atomic_path
from stereo_core.orchestration.record import Made, Record
from stereo_core.report.figures import ACCURACY, TIME, pair_ms, plain
from stereo_core.report.html import Cell, Figure, Link, Table, cell, page, shown, views_of

LATENCY = "latency_median_ms"
COLUMNS = {**{key: plain(key) for key in ACCURACY}, LATENCY: TIME}
"""Metric -> title of its column."""
INITIAL = "initial_"  # prefix of the metrics from before the training


def measured(run: Record) -> list[tuple[str, dict[str, float]]]:
    """(label, metrics by name) of each measured step, in the pipeline's order; train has a row before and one after."""
    rows = []
    for name, task in run.tasks.items():
        for made in task.results().values():
            if made.type.get("schemaTitle") != "system.Metrics":
                continue
            values = {key: value for key, value in made.metadata.items() if isinstance(value, int | float)}
            before = {key.removeprefix(INITIAL): value for key, value in values.items() if key.startswith(INITIAL)}
            rows += [(f"{run.label(name)}, before", before)] if before else []
            rows.append((run.label(name), values))
    return rows


def metrics_table(run: Record) -> Table | None:
    """One row per measured step and one column per metric; None if nothing was measured."""
    rows = measured(run)
    columns = [name for name in COLUMNS if any(name in values for _, values in rows)]
    if not columns:
        return None
    cells = [(name, *(_cell(column, values) for column in columns)) for name, values in rows]
    return Table("Metrics", ("step", *(COLUMNS[name] for name in columns)), cells)


def _cell(column: str, values: dict[str, float]) -> Cell:
    if column not in values:
        return ""
    return cell(column, pair_ms(values) if column == LATENCY else values[column])


def size(count: int) -> str:
    """A size in bytes as text: 512 B, 3.4 KB, 12.0 MB."""
    value, unit = float(count), "B"
    for unit in ("B", "KB", "MB", "GB", "TB"):
        if value < 1000 or unit == "TB":
            break
        value /= 1000
    return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"


FILL = {
    "running": "#cfe8ff",
    "succeeded": "#d5f5dc",
    "reused": "#e8f7ea",
    "failed": "#ffd9d6",
    "skipped": "#eeeeee",
    "stopped": "#fff3c4",
}
BOX, GAP, LINE = 160, 40, 16  # px: width of a box, space between boxes, height of a text line; six boxes fill a page


def graph(run: Record) -> str:
    """The steps as an SVG drawing, coloured by state. A step is one column to the right of the steps that it needs.

    The drawing is never scaled down, so that its text of 12 px is legible; in a narrow window it scrolls.
    """
    column: dict[str, int] = {}
    for name, task in run.tasks.items():  # sorted: each task comes after the tasks that it needs
        column[name] = 1 + max((column[other] for other in task.after), default=-1)
    texts = {name: run.label(name).replace(" (", "\n(", 1).split("\n") for name in run.tasks}
    height = LINE * max((len(lines) + 1 for lines in texts.values()), default=2) + 8
    rows = [0] * (1 + max(column.values(), default=0))
    place = {}
    for name, i in column.items():
        place[name] = (i * (BOX + GAP) + 1, rows[i] * (height + LINE) + 1)
        rows[i] += 1
    arrows, boxes = [], []
    for name, task in run.tasks.items():
        x, y = place[name]
        state = f"{task.state} {task.seconds:.1f} s"
        lines = [(text, "#1b1f24") for text in texts[name]] + [(state, "#57606a")]
        boxes.append(
            f'<rect x="{x}" y="{y}" width="{BOX}" height="{height}" rx="6" fill="{FILL.get(task.state, "#fff")}"'
            ' stroke="#57606a"/>'
        )
        boxes += [
            f'<text x="{x + 8}" y="{y + 1 + LINE * n}" fill="{colour}">{escape(text)}</text>'
            for n, (text, colour) in enumerate(lines, 1)
        ]
        for other in task.after:
            x0, y0 = place[other]
            middle = height // 2
            bend = f"C{x0 + BOX + GAP / 2},{y0 + middle} {x - GAP / 2},{y + middle}"
            arrows.append(f'<path d="M{x0 + BOX},{y0 + middle} {bend} {x},{y + middle}" fill="none" stroke="#8c959f"/>')
    width = len(rows) * (BOX + GAP) - GAP + 2
    style = f"font:12px system-ui,sans-serif;width:{width}px;max-width:none"
    return f'<svg viewBox="0 0 {width} {max(rows) * (height + LINE)}" style="{style}">{"".join(arrows + boxes)}</svg>'


def page_of(run: Record, made: Made) -> Path | None:
    """An artifact that is a page, as a file that a browser shows, relative to the run folder; None for the others.

    KFP names an artifact without a suffix, and a browser shows the source of such a file. The copy beside it is no
    artifact, so that no digest changes.
    """
    path = Path(made.path)
    if made.type.get("schemaTitle") != "system.HTML" or path.is_absolute() or not (run.folder / path).is_file():
        return None
    shown = path.with_name(f"{path.name}.html")
    with atomic_path(run.folder / shown) as temporary:
        shutil.copyfile(run.folder / path, temporary)
    return shown


def _warnings(run: Record) -> list[str]:
    """Each warning once, after the steps that have it: those of checkpoint and engine are often the same."""
    steps: dict[str, list[str]] = {}
    for name in run.tasks:
        for text in run.warnings(name):
            steps.setdefault(text, []).append(run.label(name))
    return [f"{', '.join(labels)}: {text}" for text, labels in steps.items()]


def write_page(run: Record) -> Path:
    """Write report.html into the run folder: graph, warnings, metrics, pairs side by side, steps, artifacts.

    It links the pages of the steps; see `page_of`.
    """
    step_rows: list[tuple[Cell, ...]] = []
    artifact_rows: list[tuple[Cell, ...]] = []
    for name, task in run.tasks.items():
        started = (task.started or "")[:19].replace("T", " ")
        code = "" if task.exit_code is None else str(task.exit_code)
        seconds = Figure(task.seconds, 1)
        page_link: Cell = ""
        for port, made in task.results().items():
            place: Cell = made.path
            if shown_at := page_of(run, made):
                place, page_link = Link(made.path, str(shown_at)), Link("page", str(shown_at))
            artifact_rows.append((run.label(name), port, size(made.bytes), made.sha256[:12], place))
        log_link: Cell = Link("log", f"tasks/{name}/log.txt") if (run.place(name) / "log.txt").is_file() else ""
        label = run.label(name)
        step_rows.append((label, task.state, page_link, log_link, started, seconds, task.attempts, code, task.message))
    head = ("step", "state", "page", "log", "started (UTC)", "time (s)", "attempts", "exit code", "message")
    steps = Table("Steps", head, step_rows)
    artifacts = Table("Artifacts", ("step", "artifact", "size", "sha256", "path"), artifact_rows)
    groups = shown({run.label(name): views_of(run.place(name) / "results").get("", []) for name in run.tasks})
    metrics = metrics_table(run)
    path = run.folder / "report.html"
    with atomic_path(path) as temporary:
        title = f"{run.pipeline}: {run.state}"
        text = page(title, [metrics] if metrics else [], drawing=graph(run), warnings=_warnings(run), groups=groups,
                    more=[steps, artifacts], folded={"Arguments": run.arguments})  # fmt: skip
        temporary.write_text(text, encoding="utf-8")
    return path
