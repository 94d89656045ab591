"""Files of actions for the pages: pairs with their disparity in one JSON file per run; and grouping pairs of several
runs.

Reading and grouping need no NumPy, so a pipeline's page needs none; `stereo_core.report.viewer` makes views.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import zip_longest
from pathlib import Path

from stereo_core.files import atomic_path

FILE = "views.json"
VALIDATION = "validation.json"  # views of a training's last validation
CURVE_PX = 8.0  # end of the error curve


@dataclass(frozen=True)
class View:
    """One pair, ready for a page.

    Attributes:
        name: of the pair, equal in every run of its data; `path` is its left image.
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
    """One group per pair. Of runs with pairs in common only those pairs, and of each such set of runs the worst first:
    the worst pair of every set, then the second worst of every set.

    Pairs are the same if name and left image are: data sets number their images alike. A run without ground truth
    (inference) is left out if another run has the pair with ground truth.
    """
    pairs: dict[tuple[str, str], dict[str, View]] = {}
    for run, views in runs.items():
        for view in views:
            pairs.setdefault((view.name, view.left), {})[run] = view
    sets: dict[frozenset[str], list[Group]] = {}
    for (name, _), found in pairs.items():
        group = Group(name, _with_truth(found))
        sets.setdefault(frozenset(group.views), []).append(group)
    largest = [groups for names, groups in sets.items() if not any(names < others for others in sets)]
    ordered = (sorted(groups, key=lambda group: -group.worst) for groups in largest)
    return [group for rank in zip_longest(*ordered) for group in rank if group]


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
