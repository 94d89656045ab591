"""Names of pairs on pages: what tells their paths apart."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence

from stereo_core.report.views import Group


def common_end(paths: Sequence[str]) -> str:
    """The end that all paths share, in whole parts with a slash before each; no path consists of it alone."""
    parts = [path.split("/") for path in dict.fromkeys(paths)]
    if len(parts) < 2:
        return ""
    same = 0
    while same + 1 < min(map(len, parts)) and len({own[-1 - same] for own in parts}) == 1:
        same += 1
    return "/".join(["", *parts[0][len(parts[0]) - same :]])


def short_names(names: Sequence[str]) -> list[str]:
    """What tells paths apart: the end that all share is left out; of the rest the end, as short as differs from the
    others; and of a longer end its middle."""
    tail = common_end(names)
    parts = [name.removesuffix(tail).split("/") for name in names]

    def short(own: list[str]) -> str:
        others = [other for other in parts if other != own]
        count = next((n for n in range(1, len(own)) if all(other[-n:] != own[-n:] for other in others)), len(own))
        end = own[-count:]
        return "/".join(end if count < 3 else (end[0], "…", end[-1]))

    return [short(own) for own in parts]


_SAYS_NOTHING = re.compile(
    r"(im|img|image|view|cam|colou?red|left|right|rgb|disparity|data|dataset|frame|training|testing)?_?\d*(_\d+)?"
)
"""Names that most data sets use for each of their images and folders."""


_IS_FIRST = re.compile(r"[^1-9]*")
"""Names without a number above 0, such as left or 0000: beside the name of a folder they tell nothing more."""


def headings(groups: Sequence[Group]) -> list[str]:
    """`short_names` of the pairs, or of their paths where two pairs have one name. A name that many data sets have,
    such as im2 or 0000, follows the nearest folder above that has a name of its own, as in Teddy/im2; or that folder
    is the name."""
    names = [group.name for group in groups]
    paths = [next(iter(group.views.values())).path or group.name for group in groups]
    if len(set(names)) < len(names):
        names = [path.rpartition(".")[0] or path for path in paths]
    below = common_end(names).count("/")  # folders and files that the short names leave out
    found = []
    for name, path in zip(short_names(names), paths, strict=True):
        above = [part for part in path.split("/")[:-1] if part]
        own = next((n for n in range(len(above), 0, -1) if not _SAYS_NOTHING.fullmatch(above[n - 1])), 0)
        if not all(_SAYS_NOTHING.fullmatch(part) for part in name.split("/")) or not own:
            found.append(name)
            continue
        skipped = len(above) - own - name.count("/") - below
        folder = above[own - 1]
        alone = len(groups) == 1 and _IS_FIRST.fullmatch(name)
        found.append(folder if alone else "/".join([folder, *["…"] * (skipped > 0), name]))
    return found


def common_folder(paths: Sequence[str]) -> str:
    """The common parent folder of all paths, with a trailing slash."""
    shared, slash, _ = os.path.commonprefix(paths).rpartition("/")  # noqa: RUF071 commonpath would damage s3://
    return shared + slash
