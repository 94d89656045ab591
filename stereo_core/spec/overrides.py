"""Parses and applies overrides: `a.b[0].c=value` on the command line."""

from __future__ import annotations

import itertools
import re
import shlex
from collections.abc import Iterator, Sequence
from typing import Any

from stereo_core.errors import SpecError
from stereo_core.spec.paths import Path, dotted, parts_of
from stereo_core.spec.text import parse_value
from stereo_core.values import counted

MAX_DEPTH = 50
_KEY = re.compile(r"^[A-Za-z_]\w*(\.\w+|\[\d+\])*$")


def whole(tokens: Sequence[str]) -> Iterator[tuple[str, ...]]:
    """The tokens of each override; several if the shell split it at an unquoted space."""
    group: tuple[str, ...] = ()
    for token, following in itertools.zip_longest(tokens, tokens[1:], fillvalue=""):
        is_key = _KEY.match(token) and following.startswith("=")
        if group and (is_key or not _goes_on(group, token)):
            yield group
            group = ()
        group = (*group, token)
    if group:
        yield group


def _goes_on(group: tuple[str, ...], token: str) -> bool:
    """Whether the token continues the override before it."""
    text = " ".join(group)
    if not _KEY.match(text.partition("=")[0].strip()) or token.startswith(("+", "~")):
        return False
    is_open = any(text.count(opening) > text.count(closing) for opening, closing in ("[]", "{}"))
    is_override = _KEY.match(token.partition("=")[0]) and "=" in token
    is_bare = "=" in text and not is_override and not token.endswith((".yaml", ".yml"))
    return is_open or is_bare or token.startswith("=")


def split_by_the_shell(group: tuple[str, ...]) -> SpecError:
    """The error for an override that the shell split into several tokens."""
    key, _, value = (part.strip() for part in " ".join(group).partition("="))
    return SpecError(
        f"{' '.join(group)}: the shell split this into {len(group)} arguments; quote the whole argument: "
        f"{shlex.quote(f'{key}={value}')}"
    )


def is_spread(value: Any) -> bool:
    """Whether a value looks like a part of `{a: 1,b: 2}`, which shells expand to several arguments."""
    parts = value if isinstance(value, list) else [value]
    return all(isinstance(part, str) and re.match(r"^\w+:", part) for part in parts) and bool(parts)


def parse_override(token: str) -> tuple[Path, Any]:
    """Parse one command-line token into a path and a value.

    Raises:
        SpecError: not `key=value`, or one of Hydra's other forms, which need a spec without fixed keys.
    """
    name, equals, text = token.partition("=")
    name = name.strip()
    if token.startswith("+"):
        raise SpecError(f"{token}: keys cannot be added; write {token.lstrip('+')}")
    if token.startswith("~"):
        raise SpecError(f"{token}: keys cannot be deleted; set {name[1:]} to another value instead")
    if not equals or not _KEY.match(name):
        hint = f"; a spec file is given with -e {token}" if token.endswith((".yaml", ".yml")) else ""
        raise SpecError(f"{token}: not of the form key=value{hint}")
    path = parts_of(name)
    if len(path) > MAX_DEPTH:
        raise SpecError(f"{dotted(path[:MAX_DEPTH])}...: unknown key (no key is nested this deeply)")
    try:
        return path, parse_value(text)
    except SpecError as error:
        mend = "; put a text that starts with a bracket in quotes" * text.strip().startswith(("[", "{"))
        raise SpecError(f"{dotted(path)}: {error}{mend}") from None


def apply_override(tree: dict[str, Any], path: Path, value: Any) -> None:
    """Set a value in a tree of dicts and lists. Dicts are merged; an index one past the end appends to a list.

    Raises:
        SpecError: the path goes through a scalar value or past the end of a list.
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
            raise SpecError(f"{dotted(path)}: {dotted(path[:-1])} is a single value, not a group of keys")
        return node.get(last)
    if not isinstance(node, list):
        raise SpecError(f"{dotted(path)}: {dotted(path[:-1])} is not a list; leave out [{last}]")
    if last and not node:
        first = dotted((*path[:-1], 0))
        raise SpecError(f"{dotted(path)}: {dotted(path[:-1])} is an empty list; set {first} first")
    if last > len(node):
        raise SpecError(
            f"{dotted(path)}: {dotted(path[:-1])} has only {counted(len(node), 'entry', 'entries')}; the next is "
            f"[{len(node)}]"
        )
    return node[last] if last < len(node) else None


def _put(node: Any, name: str | int, value: Any) -> None:
    if isinstance(node, list) and name == len(node):
        node.append(value)
    else:
        node[name] = value


def merged(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """Merge two mappings: new values replace old ones, nested mappings are merged."""
    result = dict(old)
    for name, value in new.items():
        both = isinstance(value, dict) and isinstance(old.get(name), dict)
        result[name] = merged(old[name], value) if both else value
    return result
