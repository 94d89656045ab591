"""What a run measured, side by side: a table for the console and report.html for a browser."""

from __future__ import annotations

from pathlib import Path

from stereo_core.files import atomic_path
from stereo_core.orchestration.local import LocalRun
from stereo_core.report.html import Table, page, pictures_of

COLUMNS = ("epe", "bp1", "bp2", "bp3", "d1", "rmse", "latency_median_ms")
INITIAL = "initial_"  # the metrics of a network before its training


def label(run: LocalRun, name: str) -> str:
    """A step for a reader: its name, and its display name where the pipeline gives one."""
    title = run.pipeline.tasks[name].title
    return name if name.startswith(title) else f"{name} ({title})"


def measured(run: LocalRun) -> list[tuple[str, dict[str, float]]]:
    """(what was measured, its metrics by name) in the pipeline's order; train gives a row before and a row after."""
    rows = []
    for name, task in run.tasks.items():
        for made in task.artifacts.values():
            if made.type.get("schemaTitle") != "system.Metrics":
                continue
            values = {key: value for key, value in made.metadata.items() if isinstance(value, int | float)}
            before = {key.removeprefix(INITIAL): value for key, value in values.items() if key.startswith(INITIAL)}
            rows += [(f"{label(run, name)}, untrained", before)] if before else []
            rows.append((label(run, name), values))
    return rows


def metrics_table(run: LocalRun) -> Table | None:
    """A row a measured step and a column a metric; None where nothing was measured."""
    rows = measured(run)
    columns = [name for name in COLUMNS if any(name in values for _, values in rows)]
    if not columns:
        return None
    cells = [(name, *(values.get(column, "") for column in columns)) for name, values in rows]
    return Table("Metrics", ("step", *columns), cells)


def size(count: int) -> str:
    """Bytes for a reader: 512 B, 3.4 KB, 12.0 MB."""
    value, unit = float(count), "B"
    for unit in ("B", "KB", "MB", "GB", "TB"):
        if value < 1000 or unit == "TB":
            break
        value /= 1000
    return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"


def write_page(run: LocalRun) -> Path:
    """Write report.html into the run folder: steps, metrics and the pictures of every step that left some."""
    steps = Table("Steps", ("step", "state", "seconds", "artifacts", "size"))
    for name, task in run.tasks.items():
        artifacts, total = ", ".join(task.artifacts), sum(made.bytes for made in task.artifacts.values())
        steps.rows.append((label(run, name), task.state, round(task.seconds, 1), artifacts, size(total)))
    tables = [table for table in (metrics_table(run), steps) if table]
    galleries = []
    for name in run.tasks:
        pictures, caption = pictures_of(run.folder / "tasks" / name / "results")
        if pictures:
            galleries.append((label(run, name), caption, pictures))
    path = run.folder / "report.html"
    with atomic_path(path) as temporary:
        temporary.write_text(page(f"{run.pipeline.name}: {run.state}", tables, galleries), encoding="utf-8")
    return path
