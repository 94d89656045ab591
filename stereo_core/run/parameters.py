"""The parameters of a step -> the keys of its verb's spec, as the verb's row says."""

from __future__ import annotations

from typing import Any

from stereo_core.errors import UserError
from stereo_core.verbs import VERBS


def said_by(verb: str, parameters: dict[str, Any], spec_file: dict[str, Any]) -> dict[str, Any]:
    """What the user said: spec_file < spec parameter < typed parameters. Defaults are the spec's own business.

    Raises:
        UserError: the parameter `spec` is no mapping.
    """
    row = VERBS[verb]
    if row.plain:
        return {name: _titles(value) for name, value in parameters.items()}
    spec = parameters.get("spec") or {}
    if not isinstance(spec, dict):
        raise UserError(f"parameter spec: a mapping of spec keys is wanted, not {spec!r}")
    tree = merge(spec_file, spec)
    for name, key in row.parameters.items():
        if parameters.get(name):  # "" and 0 leave the key to the spec
            put(tree, key, parameters[name])
    return tree


def _titles(value: Any) -> Any:
    """A list with the items of a pipeline's loop in it, which are mappings, as the list of their titles."""
    if not isinstance(value, list):
        return value
    return [one.get("title") or one.get("uri") if isinstance(one, dict) else one for one in value]


def merge(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """`above` over `below`, mapping by mapping; lists and scalars are replaced."""
    merged = dict(below)
    for key, value in above.items():
        old = merged.get(key)
        merged[key] = merge(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return merged


def put(tree: dict[str, Any], key: str, value: object) -> None:
    """Set a dotted key, making the sections on the way."""
    *sections, last = key.split(".")
    for section in sections:
        if not isinstance(tree.get(section), dict):
            tree[section] = {}
        tree = tree[section]
    tree[last] = value
