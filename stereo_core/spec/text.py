"""Parses YAML by the rules of YAML 1.2, and refuses duplicate keys.

PyYAML follows YAML 1.1, which reads `on`, `12:30` and `2024-01-01` as true, 750 and a date. Here they are texts.
"""

from __future__ import annotations

import re
from collections.abc import Hashable
from typing import Any

import yaml

from stereo_core.errors import SpecError

MAX_VALUES = 300_000  # in one document
_TAGS = (None, *(f"tag:yaml.org,2002:{name}" for name in ("null", "bool", "str", "seq")))  # None: refuses all others


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 - PyYAML's own name
    yaml_constructors = {tag: yaml.SafeLoader.yaml_constructors[tag] for tag in _TAGS}  # noqa: RUF012 - likewise


_Loader.add_implicit_resolver("tag:yaml.org,2002:merge", re.compile(r"^<<$"), ["<"])
_Loader.add_implicit_resolver("tag:yaml.org,2002:null", re.compile(r"^(?:~|null|Null|NULL|)$"), ["~", "n", "N", ""])
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), [*"tTfF"]
)
_NUMBER = re.compile(r"^[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?$")
_Loader.add_implicit_resolver("number", _NUMBER, [*"-+.0123456789"])


def _number(loader: _Loader, node: yaml.ScalarNode) -> int | float | str:
    """A number if Python writes it back the same way, otherwise its text (numeric keys accept both).

    So `model_name: 007` and `name: 1.10` stay as written.
    """
    text: str = node.value
    value = number(text)
    return text if value is None or str(value) != text else value


def _mapping(loader: _Loader, node: yaml.MappingNode) -> dict[Hashable, Any]:
    seen: dict[Any, int] = {}
    for key_node, _ in node.value:
        name, line = key_node.value, key_node.start_mark.line + 1
        if isinstance(name, str) and name in seen and name != "<<":
            raise yaml.constructor.ConstructorError(
                None, None, f"duplicate key {name!r}, first in line {seen[name]}; keep one", key_node.start_mark
            )
        if isinstance(name, str):
            seen[name] = line
    loader.flatten_mapping(node)
    return loader.construct_mapping(node, deep=True)


for _tag in ("number", "tag:yaml.org,2002:int", "tag:yaml.org,2002:float"):
    _Loader.add_constructor(_tag, _number)
_Loader.add_constructor("tag:yaml.org,2002:map", _mapping)


def number(text: str) -> int | float | None:
    """The number that a text represents; None if it is not a number. For a value that `parse` left as text.

    Raises:
        ValueError: it has more digits than Python reads.
    """
    if not _NUMBER.match(text):
        return None
    if re.search(r"[.eE]", text):
        return float(text)
    try:
        return int(text)
    except ValueError:  # Python's limit
        raise ValueError(f"a number of {len(text.lstrip('+-'))} digits is too long") from None


def parse(text: str, source: str) -> Any:
    """Parse one YAML document into mappings, lists, texts, numbers, true, false and null.

    Raises:
        SpecError: not valid YAML; names the source, the line and the problem.
    """
    try:
        return bounded(yaml.load(text, _Loader))
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{source}:{mark.line + 1}" if mark else source
        raise SpecError(f"{where}: not valid YAML: {error.problem or error.context}") from None
    except yaml.YAMLError as error:
        raise SpecError(f"{source}: not valid YAML: {error}") from None
    except (ValueError, TypeError, KeyError, RecursionError) as error:  # `!!bool maybe`, a number of 5000 digits
        raise SpecError(f"{source}: not valid YAML: {error}") from None


def bounded(tree: Any) -> Any:
    """The tree unchanged; ValueError if aliases (`*name`) make it infinite or larger than MAX_VALUES."""
    todo, met = [tree], 0
    while todo:
        node = todo.pop()
        met += 1
        if met > MAX_VALUES:
            raise ValueError(
                "with its aliases (*) expanded it is infinite or far too large; write the values themselves"
            )
        if isinstance(node, dict):
            todo += node.values()
        elif isinstance(node, list):
            todo += node
    return tree


def parse_value(text: str) -> Any:
    """The value of an override. Only text in brackets, braces or quotes is YAML; anything else is a single scalar.

    So spaces, `#`, `: ` and quotes inside a value are part of it.

    Raises:
        SpecError: brackets or braces that are not valid YAML, or a number too long for Python.
    """
    text = text.strip()
    if text[:1] in ("[", "{"):
        return _spread(parse(text, "value"))
    if text[:1] in ("'", '"'):
        try:
            value = parse(text, "value")
        except SpecError:
            return text
        return value if isinstance(value, str) else text
    if text == "":
        return ""
    tag = _Loader("").resolve(yaml.ScalarNode, text, (True, False))  # type: ignore[no-untyped-call] # in its stubs
    try:
        return _Loader("").construct_object(yaml.ScalarNode(tag, text))
    except ValueError as error:
        raise SpecError(str(error)) from None


def _spread(value: Any) -> Any:
    """Read Hydra's `{a:1,b:x}` (without spaces) as `{a: 1, b: x}`."""
    if isinstance(value, list):
        return [_spread(item) for item in value]
    if not isinstance(value, dict):
        return value
    result = {}
    for name, item in value.items():
        head, colon, tail = str(name).partition(":")
        if item is None and colon:
            result[head] = parse_value(tail)
        else:
            result[name] = _spread(item)
    return result
