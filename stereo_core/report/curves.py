"""Plot the curves of training runs from the files in their folders."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from stereo_core.errors import DataError
from stereo_core.files import atomic_path
from stereo_core.report.figures import NAMES, scaled
from stereo_core.run.status import read_line

Curves = dict[str, dict[int, float]]
"""Tag -> optimizer step -> value, with steps in order."""

PANELS = (
    ("training loss (px)", ("train_loss_step", "train_loss_epoch", "train_loss")),
    ("validation loss (px)", ("val_loss",)),
    ("validation EPE (px)", ("val/epe",)),
    ("validation: share of bad pixels (%)", ("val/bp1", "val/bp2", "val/bp3", "val/d1")),
    ("learning rate", ("lr",)),
    ("seconds per step", ("step_time", "step_time_epoch")),
)
"""Panel title -> its tags; see `_panels`."""

BY_STEP = ("train_loss_step", "step_time", "lr")  # many points: drawn as a line without markers
DASHES = ("-", "--", ":", "-.")
MAX_LABELS = 16  # runs in a legend


def plot(folder: Path, out: Path | None = None) -> tuple[Path, list[str]]:
    """Draw the curves of the run in a folder, or of all runs below it in the same panels.

    Args:
        folder: results of a training, or a folder above several.
        out: the picture; None: `<folder>/curves.png`.

    Returns:
        The picture, and the names of the runs in it.

    Raises:
        DataError: there is no such folder, no figure in it has two points, or the picture's suffix is not .png.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError(f"{folder}: there is no such folder; name the results folder of a training, or a parent of it")
    out = Path(out) if out else folder / "curves.png"
    if out.suffix.lower() != ".png":
        raise DataError(f"{out}: only PNG files can be written; name it {out.with_suffix('.png').name}")
    runs = dict(read_runs(folder))
    panels = _panels(runs)
    if not panels:
        raise DataError(
            f"{folder}: nothing to draw: no figure in lightning_logs or status.json, here or in the subfolders, has "
            "two points; name the results folder of a training that has finished two epochs or validations, or a "
            "parent of several trainings"
        )
    _draw(runs, panels, out)
    return out, list(runs)


def read_runs(folder: Path) -> Iterator[tuple[str, Curves]]:
    """The runs at and below a folder that have curves: name (path below the folder) and curves."""
    found = {path.parent for name in ("lightning_logs", "status.json") for path in folder.rglob(name)}
    for run in sorted(found, key=_natural):
        curves = read_curves(run)
        if any(tag in curves for _, tags in PANELS for tag in tags):
            name = run.relative_to(folder).as_posix()
            yield (folder.resolve().name if name == "." else name), curves


def read_curves(run: Path) -> Curves:
    """The curves of one run: from its TensorBoard files, or if there are none from status.json."""
    return _from_events(run / "lightning_logs") or _from_status(run / "status.json")


def _natural(path: Path) -> list[Any]:
    """A sort key that puts trial 10 after trial 9."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", str(path))]


# -- TensorBoard ------------------------------------------------------------------------------------------------------


def _from_events(folder: Path) -> Curves:
    """The curves of all event files of a run. A resumed run starts a new file, perhaps at a step that the previous file
    already has: from there on the later file is used."""
    curves: Curves = {}
    for path in sorted(folder.rglob("events.out.tfevents.*"), key=_started):
        new = _read_events(path)
        first = min((min(points) for tag, points in new.items() if not tag.startswith("val")), default=None)
        if first is not None:
            curves = {tag: {s: v for s, v in points.items() if s <= first} for tag, points in curves.items()}
        for tag, points in new.items():
            curves[tag] = dict(sorted((curves.get(tag, {}) | points).items()))
    return {tag: points for tag, points in curves.items() if points}


def _started(path: Path) -> tuple[int, int]:
    """When an event file was started: seconds and number in its name, `events.out.tfevents.SECONDS.HOST.PID.NUMBER`."""
    numbers = re.findall(r"\d+", path.name)
    return (int(numbers[0]), int(numbers[-1])) if numbers else (0, 0)


def _read_events(path: Path) -> Curves:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(path), size_guidance={"scalars": 0}, purge_orphaned_data=False)
    events.Reload()  # reads up to the last complete record of a file that is still being written
    tags = [tag for tag in events.Tags()["scalars"] if tag != "epoch"]
    return {tag: {event.step: event.value for event in events.Scalars(tag)} for tag in tags}


# -- status.json ------------------------------------------------------------------------------------------------------


def _from_status(path: Path) -> Curves:
    """The curves of the epochs in status.json. If a later run starts or resumes before the end of an earlier one, the
    later run is used from there on."""
    curves: Curves = {}
    step, validation = 0, {}
    for line in _lines(path):
        message, kpi = str(line.get("message", "")), line["kpi"]
        if message == "Eval metrics generated before training.":
            if not curves:
                _add(curves, 0, kpi)
        elif message.startswith("Eval metrics generated"):
            validation = kpi  # the next line has its step
        elif "epoch" in line and isinstance(line.get("step"), int):
            step = line["step"]
            curves = {tag: {s: v for s, v in points.items() if s < step} for tag, points in curves.items()}
            seconds = line.get("step_time")
            _add(curves, step, validation | ({"step_time": seconds} if isinstance(seconds, int | float) else {}))
            validation = {}
        elif message.startswith("Train metrics generated"):
            _add(curves, step, kpi)
    return curves


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    """The objects of status.json; incomplete lines, such as the last one during writing, are skipped."""
    if not path.is_file():
        return
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines():
        if line := read_line(text):
            yield line


def _add(curves: Curves, step: int, values: dict[str, float]) -> None:
    for tag, value in values.items():
        curves.setdefault(tag, {})[step] = value


# -- the picture ------------------------------------------------------------------------------------------------------


def _panels(runs: dict[str, Curves]) -> list[tuple[str, list[str]]]:
    """Title and tags of each panel; tags with a single point in all runs are left out, because they show no course."""

    def points(tag: str) -> int:
        return sum(len(curves.get(tag, ())) for curves in runs.values())

    found = [(title, [tag for tag in tags if points(tag) > 1]) for title, tags in PANELS]
    panels = [(title, tags) for title, tags in found if tags]
    if len(runs) > 1:
        panels = [(title if len(tags) == 1 else f"{title}: {_name(tags[-1])}", tags[-1:]) for title, tags in panels]
    return panels


def _name(tag: str) -> str:
    return NAMES.get(tag.removeprefix("val/"), (tag,))[0]


def _draw(runs: dict[str, Curves], panels: list[tuple[str, list[str]]], out: Path) -> None:
    """One run: a colour per tag. Several runs: a colour per run, and one tag per panel."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # needs no display and no pyplot state
    from matplotlib.figure import Figure

    rows = (len(panels) + 1) // 2
    figure = Figure(figsize=(12, 3.2 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    labelled = {}
    for index, (title, tags) in enumerate(panels):
        axes = figure.add_subplot(rows, 2, index + 1, title=title, xlabel="optimizer step")
        axes.grid(alpha=0.3)
        axes.locator_params(axis="x", integer=True)  # there are no half steps
        for number, (name, curves) in enumerate(runs.items()):
            for place, tag in enumerate(tag for tag in tags if tag in curves):
                colour: dict[str, Any] = {"color": f"C{number}"} if len(runs) > 1 else {}
                # dashes: of curves that coincide both are seen
                marker, dash = (None, "-") if tag in BY_STEP else (".", DASHES[(number + place) % len(DASHES)])
                label = name if len(runs) > 1 else _name(tag)
                points = {step: scaled(tag, value) for step, value in curves[tag].items()}
                (labelled[label],) = axes.plot(
                    [*points], [*points.values()], label=label, marker=marker, linestyle=dash, **colour
                )
        low, high = axes.dataLim.intervaly
        if "loss" in title and high > 10 * low > 0:
            axes.set_yscale("log")
        if len(runs) == 1 and len(tags) > 1:
            axes.legend(loc="upper left", bbox_to_anchor=(1, 1))  # beside the panel: it covers no curve
    if 1 < len(runs) <= MAX_LABELS:
        figure.legend(labelled.values(), labelled, loc="outside lower center", ncols=4)
    with atomic_path(out) as temporary:
        figure.savefig(temporary, dpi=110)
