"""Turns the parameters of a step into a spec, by the verb's row in verbs.py."""

from __future__ import annotations

from typing import Any

from stereo_core import __version__
from stereo_core.errors import UserError
from stereo_core.verbs import VERBS

OF_SOURCES = ("dataset_name", "disparity_format", "disparity_scale")
"""Parameters of a step that say how its annotation files are read: keys of a data source."""


def merged_spec(verb: str, parameters: dict[str, Any], spec_file: dict[str, Any]) -> dict[str, Any]:
    """The user's spec keys. Typed parameters override the parameter `spec`, which overrides the spec file.

    Raises:
        UserError: the parameter `spec` is not a mapping, or the step has no such parameter (in this version).
    """
    row = VERBS[verb]
    if row.flat_parameters:
        return {name: _titles(value) for name, value in parameters.items()}
    if unknown := sorted(parameters.keys() - parameters_of(verb)):
        raise UserError(
            f"stereo-pipelines {__version__} has no parameter {', '.join(unknown)} of {verb}; compile the pipeline "
            "again with this version"
        )
    spec = parameters.get("spec") or {}
    if not isinstance(spec, dict):
        raise UserError(f"parameter spec: expected a mapping of spec keys, got {spec!r}")
    tree = merge(spec_file, spec)
    for name, key in row.parameters.items():
        if parameters.get(name):  # "" and 0 leave the key to the spec
            set_key(tree, key, parameters[name])
    return tree


def parameters_of(verb: str) -> set[str]:
    """The parameters of a step that has a `spec`."""
    return {"spec", *OF_SOURCES, *VERBS[verb].parameters}


def _titles(value: Any) -> Any:
    """Replace loop items in a list (mappings) by their titles, or by their URIs if they have no title."""
    if not isinstance(value, list):
        return value
    return [one.get("title") or one.get("uri") if isinstance(one, dict) else one for one in value]


def merge(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """Merge two trees. Values of `above` win; nested mappings are merged, lists and scalars replaced."""
    merged = dict(below)
    for key, value in above.items():
        old = merged.get(key)
        merged[key] = merge(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return merged


def set_key(tree: dict[str, Any], key: str, value: object) -> None:
    """Set a dotted key; missing sections are created."""
    *sections, last = key.split(".")
    for section in sections:
        if not isinstance(tree.get(section), dict):
            tree[section] = {}
        tree = tree[section]
    tree[last] = value
