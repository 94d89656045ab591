"""Resolves `${a.b}` inside a value to the value of another key."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, NamedTuple

from stereo_core.errors import SpecError
from stereo_core.spec.fields import Section
from stereo_core.spec.paths import dotted, nearest, parts_of

_REFERENCE = re.compile(r"\$\{([^{}]*)\}")
_MISSING = object()
MAX_REFERENCES = 1000


def resolve(tree: dict[str, Any], group: type[Section]) -> dict[str, Any]:
    """The tree with every reference replaced. References to unset keys give their default.

    A value that is only a reference becomes the other value, with its type; inside a longer text it becomes text.

    Raises:
        SpecError: a reference to an unknown key or to itself, or an OmegaConf resolver (`${eval:...}`,
            `${oc.env:...}`), which could run code or read the environment.
    """
    keys = _Keys(tree, group, iter(range(MAX_REFERENCES)))
    return {name: _resolve(value, (name,), keys, ()) for name, value in tree.items()}


class _Keys(NamedTuple):
    """The keys that references can name; `room` limits the number of references followed."""

    tree: dict[str, Any]
    group: type[Section]
    room: Iterator[int]


def _resolve(value: Any, path: tuple[Any, ...], keys: _Keys, trail: tuple[str, ...]) -> Any:
    if isinstance(value, dict):
        return {name: _resolve(item, (*path, name), keys, trail) for name, item in value.items()}
    if isinstance(value, list):
        return [_resolve(item, (*path, index), keys, trail) for index, item in enumerate(value)]
    if not isinstance(value, str) or "${" not in value:
        return value

    def target(match: re.Match[str]) -> Any:
        return _target(match[1].strip(), path, keys, trail)

    whole = _REFERENCE.fullmatch(value)
    return target(whole) if whole else _REFERENCE.sub(lambda match: str(target(match)), value)


def _target(name: str, path: tuple[Any, ...], keys: _Keys, trail: tuple[str, ...]) -> Any:
    where = dotted(path)
    if ":" in name:
        kind = name.partition(":")[0]
        raise SpecError(
            f"{where}: ${{{kind}:...}} is not supported (it could run code or read the environment); write "
            "the value itself"
        )
    if name in trail:
        raise SpecError(f"{where}: ${{{name}}} refers to itself; write the value itself")
    if next(keys.room, None) is None:
        raise SpecError(
            f"{where}: more than {MAX_REFERENCES} references `${{...}}`, counting those inside others; write the "
            "values themselves"
        )
    parts = parts_of(name)
    value = _look_up(keys.tree, parts)
    if value is _MISSING or value == "???":
        value = _look_up(keys.group().model_dump(), parts)
    if value is _MISSING:
        guess = nearest(name, keys.group)
        raise SpecError(f"{where}: ${{{name}}}: unknown key" + (f"; did you mean ${{{guess}}}?" if guess else ""))
    return _resolve(value, path, keys, (*trail, name))


def _look_up(tree: Any, parts: tuple[Any, ...]) -> Any:
    for part in parts:
        try:
            tree = tree[part]
        except (KeyError, IndexError, TypeError):
            return _MISSING
    return tree
