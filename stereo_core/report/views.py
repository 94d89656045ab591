"""Files of actions for the pages: pairs with their disparity in one JSON file per run; and grouping pairs of several
runs.

Reading and grouping need no NumPy, so a pipeline's page needs none; `stereo_core.report.viewer` makes views.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from stereo_core.files import atomic_path

FILE = "views.json"
VALIDATION = "validation.json"  # views of a training's last validation
CURVE_PX = 8.0  # end of the error curve


@dataclass(frozen=True)
class View:
    """One pair, ready for a page.

    Attributes:
        name: of the pair, equal in every run; `path` is its left image.
        left, values, truth: base64 of a JPEG, and of PNGs with disparity * STEPS in red and green, 0 where unknown;
            truth is None without ground truth.
        width, height: px of these pictures.
        full_width: px of the pair.
        start, end: px at the ends of the colour scale.
        camera: fx, fy, cx, cy, doffs in px of the pair and baseline in m; None: no depth.
        epe: px, the mean error.
        curve: shares of pixels with an error up to 0 ... CURVE_PX px, evenly spaced.
        facts: one line of figures.
        warnings: doubts about the pair.
        files: link text -> path relative to the page.
    """

    name: str
    path: str
    left: str
    values: str
    truth: str | None
    width: int
    height: int
    full_width: int
    start: float
    end: float
    camera: dict[str, float] | None = None
    epe: float | None = None
    curve: Sequence[float] = ()
    facts: str = ""
    warnings: Sequence[str] = ()
    files: Mapping[str, str] = field(default_factory=dict)

    @property
    def bytes(self) -> int:
        return len(self.left) + len(self.values) + len(self.truth or "")


@dataclass(frozen=True)
class Group:
    """The views of one pair, by the name of their runs."""

    name: str
    views: Mapping[str, View]

    @property
    def bytes(self) -> int:
        return sum(view.bytes for view in self.views.values())

    @property
    def has_truth(self) -> bool:
        return any(view.truth for view in self.views.values())

    @property
    def worst(self) -> float:
        return max((view.epe for view in self.views.values() if view.epe is not None), default=0.0)


def write_views(path: Path, views: Sequence[View]) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps([asdict(view) for view in views]), encoding="utf-8")


def read_views(path: Path) -> list[View]:
    """The views of a run; none if there is no such file, or another release wrote it."""
    try:
        return [View(**item) for item in json.loads(path.read_text(encoding="utf-8"))]
    except (OSError, ValueError, TypeError):
        return []


def side_by_side(runs: Mapping[str, Sequence[View]]) -> list[Group]:
    """One group per pair, the worst first: pairs that all runs with views have; if there are none, those of any run.

    A run without ground truth (inference) is left out if another run has the pair with ground truth.
    """
    groups: dict[str, dict[str, View]] = {}
    for run, views in runs.items():
        for view in views:
            groups.setdefault(view.name, {})[run] = view
    found = [Group(name, _with_truth(views)) for name, views in groups.items()]
    most = max((len(group.views) for group in found), default=0)
    return sorted((group for group in found if len(group.views) == most), key=lambda group: -group.worst)


def _with_truth(views: dict[str, View]) -> dict[str, View]:
    return {run: view for run, view in views.items() if view.truth} or views


def fitting(groups: Sequence[Group], most_bytes: int) -> list[Group]:
    """The first groups that fit in `most_bytes` together, but at least one."""
    kept: list[Group] = []
    total = 0
    for group in groups:
        total += group.bytes
        if kept and total > most_bytes:
            break
        kept.append(group)
    return kept
