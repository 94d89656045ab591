"""`a.b[0].c=value` on the command line."""

from __future__ import annotations

import re
from typing import Any

from stereo_core.errors import SpecError
from stereo_core.spec.paths import Path, dotted
from stereo_core.spec.text import parse_value

MAX_DEPTH = 50
_KEY = re.compile(r"^[A-Za-z_]\w*(\.\w+|\[\d+\])*$")


def parse_override(token: str) -> tuple[Path, Any]:
    """One command line token as a path and a value.

    Raises:
        SpecError: not `key=value`, or one of Hydra's other forms, which have no meaning in a fixed set of keys.
    """
    name, equals, text = token.partition("=")
    name = name.strip()
    if token.startswith("+"):
        raise SpecError(f"{token}: keys can not be added; write {token.lstrip('+')}")
    if token.startswith("~"):
        raise SpecError(f"{token}: keys can not be deleted; set {name[1:]} to another value instead")
    if not equals or not _KEY.match(name):
        hint = f"; a spec file is given with -e {token}" if token.endswith((".yaml", ".yml")) else ""
        raise SpecError(f"{token}: not of the form key=value{hint}")
    path = tuple(int(part) if part.isdigit() else part for part in re.findall(r"\w+", name))
    if len(path) > MAX_DEPTH:
        raise SpecError(f"{dotted(path[:MAX_DEPTH])}...: no key lies so deep")
    try:
        return path, parse_value(text)
    except SpecError as error:
        raise SpecError(f"{dotted(path)}: {error}; put a text that starts with a bracket in quotes") from None


def apply_override(tree: dict, path: Path, value: Any) -> None:
    """Set a value in a tree of dicts and lists. Dicts are merged; an index may also be one past the end of a list.

    Raises:
        SpecError: the path leads through a plain value or past the end of a list.
    """
    node: Any = tree
    for depth, following in enumerate(path[1:]):
        child = _get(node, path[: depth + 1])
        if child is None or child == "???":
            child = [] if isinstance(following, int) else {}
            _put(node, path[depth], child)
        node = child
    old = _get(node, path)
    _put(node, path[-1], merged(old, value) if isinstance(old, dict) and isinstance(value, dict) else value)


def _get(node: Any, path: Path) -> Any:
    last = path[-1]
    if isinstance(last, str):
        if not isinstance(node, dict):
            raise SpecError(f"{dotted(path)}: {dotted(path[:-1])} is a value, not a group of keys")
        return node.get(last)
    if not isinstance(node, list):
        raise SpecError(f"{dotted(path)}: {dotted(path[:-1])} is not a list")
    if last > len(node):
        raise SpecError(f"{dotted(path)}: {dotted(path[:-1])} has {len(node)} entries")
    return node[last] if last < len(node) else None


def _put(node: Any, name: str | int, value: Any) -> None:
    if isinstance(node, list) and name == len(node):
        node.append(value)
    else:
        node[name] = value


def merged(old: dict, new: dict) -> dict:
    """Both, the new values in place of the old, groups of keys likewise."""
    result = dict(old)
    for name, value in new.items():
        both = isinstance(value, dict) and isinstance(old.get(name), dict)
        result[name] = merged(old[name], value) if both else value
    return result
