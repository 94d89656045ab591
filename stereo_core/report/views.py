"""What actions leave for the pages: pairs with their disparity, in one JSON file a run, and pairs of runs side by side.

Reads and groups without NumPy, so that a pipeline's page needs none; `stereo_core.report.viewer` makes views.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from stereo_core.files import atomic_path

FILE = "views.json"
VALIDATION = "validation.json"  # of a training's last validation
CURVE_PX = 8.0  # the error curve's end


@dataclass(frozen=True)
class View:
    """One pair, ready for a page.

    Attributes:
        name: of the pair, the same in every run over it; `path` is its left image.
        left, values, truth: base64 of a JPEG, and of PNGs whose red and green hold disparity * STEPS, 0 where it is
            unknown; truth is None where none was read.
        width, height: px of these pictures.
        full_width: px of the pair.
        maximum: px at the end of the colour scale.
        camera: fx, fy, cx, cy, doffs in px of the pair and baseline in m; None: no depth.
        epe: px, the mean error.
        curve: shares of the pixels with an error up to 0 ... CURVE_PX px, evenly spaced.
        facts: a line about it.
        warnings: doubts about the pair.
        files: text of a link -> path, relative to the page.
    """

    name: str
    path: str
    left: str
    values: str
    truth: str | None
    width: int
    height: int
    full_width: int
    maximum: float
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
    def worst(self) -> float:
        return max((view.epe for view in self.views.values() if view.epe is not None), default=0.0)


def write_views(path: Path, views: Sequence[View]) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps([asdict(view) for view in views]), encoding="utf-8")


def read_views(path: Path) -> list[View]:
    """The views that a run left; none where there is no such file, or one of another release."""
    try:
        return [View(**item) for item in json.loads(path.read_text(encoding="utf-8"))]
    except (OSError, ValueError, TypeError):
        return []


def side_by_side(runs: Mapping[str, Sequence[View]]) -> list[Group]:
    """A group a pair, the worst first: of pairs that all runs with views show, else of all that one shows.

    A run without ground truth (inference) is left out where another shows the pair with it.
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
    """The first groups that together are no larger; the first one in any case."""
    kept: list[Group] = []
    total = 0
    for group in groups:
        total += group.bytes
        if kept and total > most_bytes:
            break
        kept.append(group)
    return kept
