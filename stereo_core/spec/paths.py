"""Dotted paths of keys: formatting, listing, and suggestions for typos."""

from __future__ import annotations

import re
import typing
from collections.abc import Collection, Iterator
from difflib import SequenceMatcher

from pydantic.fields import FieldInfo

from stereo_core.spec.fields import Section
from stereo_core.values import NEAR, digits

Path = tuple[str | int, ...]


def parts_of(text: str) -> Path:
    """`a.b[0].c` as `("a", "b", 0, "c")`."""
    return tuple(part if (index := digits(part)) is None else index for part in re.findall(r"\w+", text))


def dotted(path: Path) -> str:
    """`("a", "b", 0, "c")` as `a.b[0].c`."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else str(part)
    return text


def group_of(field: FieldInfo) -> tuple[type[Section] | None, bool]:
    """The section class of a field (None for a scalar), and whether the field is a list of sections."""
    annotation = field.annotation
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return annotation, False
    if typing.get_origin(annotation) is dict:  # the user chooses its keys, so it counts as one value
        return None, False
    for inner in typing.get_args(annotation):
        if isinstance(inner, type) and issubclass(inner, Section):
            return inner, True
    return None, False


def walk(group: type[Section], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Every key below a section in order; a section comes before its keys. Lists of sections are written `name[]`."""
    for name, field in group.model_fields.items():
        path = f"{prefix}{name}"
        yield path, field
        inner, is_list = group_of(field)
        if inner:
            yield from walk(inner, f"{path}[]." if is_list else f"{path}.")


def nearest(path: str, group: type[Section], sections: Collection[str] = ()) -> str | None:
    """The most similar existing key, for "did you mean". The last part of the path counts most, then its section.

    Args:
        sections: top-level keys to search, besides the one written; empty: all.
    """
    parent, _, leaf = path.rpartition(".")
    heads = {*sections, path.partition(".")[0]} if sections else ()

    def likeness(candidate: str) -> float:
        head, _, tail = candidate.rpartition(".")
        return 2 * _ratio(leaf, tail) + (_ratio(parent, head) if parent else 0)

    candidates = [path for path, _ in walk(group) if not heads or path.partition(".")[0] in heads]
    best = max(candidates, key=likeness, default="")
    tail = best.rpartition(".")[2]
    return best if _ratio(leaf, tail) >= NEAR or leaf in tail.split("_") else None


def _ratio(first: str, second: str) -> float:
    return SequenceMatcher(None, first, second, autojunk=False).ratio()
