"""Dotted paths of keys: how they are written, listed and guessed."""

from __future__ import annotations

import typing
from collections.abc import Iterator
from difflib import SequenceMatcher

from pydantic.fields import FieldInfo

from stereo_core.spec.fields import Section

Path = tuple[str | int, ...]


def dotted(path: Path) -> str:
    """`("a", "b", 0, "c")` as `a.b[0].c`."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else str(part)
    return text


def group_of(field: FieldInfo) -> tuple[type[Section] | None, bool]:
    """The section a field holds, if it holds one, and whether it holds a list of them."""
    annotation = field.annotation
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return annotation, False
    if typing.get_origin(annotation) is dict:  # its names are the user's: one value
        return None, False
    for inner in typing.get_args(annotation):
        if isinstance(inner, type) and issubclass(inner, Section):
            return inner, True
    return None, False


def walk(group: type[Section], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Every key below a section, in order, with sections before their keys. Lists of sections read `name[]`."""
    for name, field in group.model_fields.items():
        path = f"{prefix}{name}"
        yield path, field
        inner, is_list = group_of(field)
        if inner:
            yield from walk(inner, f"{path}[]." if is_list else f"{path}.")


def nearest(path: str, group: type[Section]) -> str | None:
    """The key that was probably meant. Its last part counts most, then the section it stands in."""
    parent, _, leaf = path.rpartition(".")

    def likeness(candidate: str) -> float:
        head, _, tail = candidate.rpartition(".")
        return 2 * _ratio(leaf, tail) + _ratio(parent, head)

    best = max((candidate for candidate, _ in walk(group)), key=likeness)
    return best if _ratio(leaf, best.rpartition(".")[2]) >= 0.5 else None


def _ratio(first: str, second: str) -> float:
    return SequenceMatcher(None, first, second, autojunk=False).ratio()
