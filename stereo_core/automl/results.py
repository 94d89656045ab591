"""The results of a search: best spec, best checkpoint, a table, and a page with plots."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TextIO

import yaml

from stereo_core.automl.study import SearchStudy
from stereo_core.automl.trials import train_tree, trial_folder
from stereo_core.files import atomic_path, point
from stereo_core.models.files import sidecar_of
from stereo_core.report.html import Table, page
from stereo_core.run.status import warnings_in
from stereo_core.spec import ExperimentSpec
from stereo_core.spec.choice import BEST

BEST_SPEC, TRIALS, REPORT = "best_spec.yaml", "trials.csv", "report.html"
_STATES = {"COMPLETE": "done", "PRUNED": "stopped early", "FAIL": "failed", "RUNNING": "running"}
_DPI = 110


def write_spec(spec: ExperimentSpec, folder: Path, values: dict[str, float]) -> Path:
    """Write the user's spec with other values at dotted paths, for `depth_net train -e`."""
    with atomic_path(folder / BEST_SPEC) as path:
        tree = train_tree(spec, values)
        path.write_text(yaml.safe_dump(tree, sort_keys=False, allow_unicode=True), encoding="utf-8")
    return folder / BEST_SPEC


def link_checkpoint(folder: Path, checkpoint: Path) -> None:
    """Make `dn_model_best.pth` a link to a checkpoint below the folder."""
    point(folder.resolve() / BEST, checkpoint)


def remove_checkpoints(folder: Path, trials: Sequence[Any], best: Path) -> None:
    """Remove the checkpoints of all trials, except the best checkpoint of the best trial."""
    for trial in trials:
        own = trial_folder(folder, trial.number)
        for path in own.glob("model_epoch_*.pth"):
            if path.resolve() != best:
                path.unlink()
                sidecar_of(path).unlink(missing_ok=True)
        for link in own.glob("dn_model_*.pth"):
            if not link.exists():
                link.unlink()


def columns(study: SearchStudy) -> list[str]:
    return ["trial", "state", study.settings.metric, "epochs", *(d.path for d in study.space), "reason"]


def rows(study: SearchStudy) -> list[list[str | float]]:
    """One row per trial with the columns of `columns`: the best first, trials without a value last.

    The value of a trial that was stopped early is that of its last validation.
    """
    trials = sorted(study.trials(), key=lambda t: (t.value is None, t.state.name != "COMPLETE", t.value or 0, t.number))
    return [
        [
            trial.number,
            _STATES[trial.state.name],
            "" if trial.value is None else trial.value,
            max(trial.intermediate_values, default=0),
            *(trial.params.get(dimension.path, "") for dimension in study.space),
            trial.user_attrs.get("reason", ""),
        ]
        for trial in trials
    ]


def write_csv(study: SearchStudy, folder: Path) -> Path:
    with (
        atomic_path(folder / TRIALS) as path,
        path.open("w", newline="", encoding="utf-8") as file,
    ):
        writer = csv.writer(file)
        writer.writerow(columns(study))
        writer.writerows(rows(study))
    return folder / TRIALS


def print_table(study: SearchStudy, file: TextIO) -> None:
    from rich.console import Console
    from rich.table import Table as RichTable

    names = [name.rpartition(".")[2] for name in columns(study)]
    table = RichTable(*names)
    for row in rows(study):
        table.add_row(*(cell if isinstance(cell, str) else f"{cell:.4g}" for cell in row))
    Console(file=file).print(table)


def write_page(study: SearchStudy, folder: Path, message: str) -> Path:
    """Write the page with the trials and their plots."""
    best = study.best()
    tables = [Table("Trials", columns(study), rows(study))]
    if best:
        tables.insert(0, Table("Best values", ("key", "value"), list(best.params.items())))
    galleries = [("Progress of the search", "", pictures(study, folder / "plots"))]
    with atomic_path(folder / REPORT) as path:
        text = page("Hyperparameter search", tables, galleries, note=message, warnings=_warned(study, folder))
        path.write_text(text, encoding="utf-8")
    return folder / REPORT


def _warned(study: SearchStudy, folder: Path) -> list[str]:
    """The warnings of the search and of its trials, with the trials' numbers."""
    numbers: dict[str, list[int]] = {}
    for trial in sorted(study.trials(), key=lambda trial: trial.number):
        for text in warnings_in(trial_folder(folder, trial.number)):
            numbers.setdefault(text, []).append(trial.number)
    of_trials = [f"trials {', '.join(map(str, those))}: {text}" for text, those in numbers.items()]
    return warnings_in(folder) + of_trials


# ---- plots


def pictures(study: SearchStudy, folder: Path) -> list[Path]:
    """Plots of the history, of each trial's validations and of the importances; a plot without data is left out."""
    folder.mkdir(exist_ok=True)
    made = [_history(study, folder / "history.png"), _courses(study, folder / "trials.png")]
    shares = study.importances()
    if shares:
        made.append(_importances(shares, folder / "importances.png"))
    return made


def _history(study: SearchStudy, out: Path) -> Path:
    metric = study.settings.metric
    figure, axes = _figure("Best value so far", "trial", metric)
    done = [trial for trial in study.trials() if trial.value is not None]
    for state, mark in (("COMPLETE", "o"), ("PRUNED", "x")):
        shown = [trial for trial in done if trial.state.name == state]
        axes.plot([t.number for t in shown], [t.value for t in shown], mark, label=_STATES[state])
    best, course = math.inf, []
    for trial in done:
        best = min(best, trial.value) if trial.state.name == "COMPLETE" else best
        course.append((trial.number, best))
    if course:
        axes.step(*zip(*course, strict=True), where="post", label="best so far")
    return _save(figure, axes, out)


def _courses(study: SearchStudy, out: Path) -> Path:
    figure, axes = _figure("Validations of each trial", "epochs", study.settings.metric)
    best = study.best()
    for trial in study.trials():
        if trial.intermediate_values:
            points = sorted(trial.intermediate_values.items())
            wide = (
                {"linewidth": 3, "label": f"best: trial {trial.number}"} if best and best.number == trial.number else {}
            )
            axes.plot(*zip(*points, strict=True), marker=".", **wide)
    axes.set_yscale("log")
    return _save(figure, axes, out)


def _importances(shares: dict[str, float], out: Path) -> Path:
    figure, axes = _figure("Importance for a good value (PED-ANOVA)", "share", "")
    axes.barh(list(shares)[::-1], list(shares.values())[::-1])
    return _save(figure, axes, out)


def _figure(title: str, x: str, y: str) -> tuple[Any, Any]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # needs no display and no pyplot state
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot(title=title, xlabel=x, ylabel=y)
    axes.grid(alpha=0.3)
    return figure, axes


def _save(figure: Any, axes: Any, out: Path) -> Path:
    if axes.get_legend_handles_labels()[0]:
        axes.legend()
    with atomic_path(out) as temporary:
        figure.savefig(temporary, dpi=_DPI)
    return out
