"""Parameters and artifacts -> the spec of a step's verb, as the verb's row says."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stereo_core.errors import UserError
from stereo_core.step.inputs import place
from stereo_core.step.ports import Artifact
from stereo_core.step.sources import sources_of
from stereo_core.verbs import VERBS

Inputs = Mapping[str, Artifact]


def user_spec(verb: str, parameters: dict, inputs: Inputs) -> dict:
    """What the user said: spec_file < spec parameter < typed parameters. Defaults are the spec's own business."""
    row = VERBS[verb]
    if row.plain:
        return {name: _titles(value) for name, value in parameters.items()}
    spec = parameters.get("spec") or {}
    if not isinstance(spec, dict):
        raise UserError(f"parameter spec: a mapping of spec keys is wanted, not {spec!r}")
    tree = merge(_read_spec_file(inputs.get("spec_file")), spec)
    for name, key in row.parameters.items():
        if parameters.get(name):  # "" and 0 leave the key to the spec
            put(tree, key, parameters[name])
    return tree


def _titles(value: Any) -> Any:
    """A list with the items of a pipeline's loop in it, which are mappings, as the list of their titles."""
    if not isinstance(value, list):
        return value
    return [one.get("title") or one.get("uri") if isinstance(one, dict) else one for one in value]


def _read_spec_file(artifact: Artifact | None) -> dict:
    if artifact is None:
        return {}
    from stereo_core.spec.loading import read_tree

    return read_tree(artifact.path)


def merge(below: dict, above: dict) -> dict:
    """`above` over `below`, mapping by mapping; lists and scalars are replaced."""
    merged = dict(below)
    for key, value in above.items():
        old = merged.get(key)
        merged[key] = merge(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return merged


def put(tree: dict, key: str, value: object) -> None:
    """Set a dotted key, making the sections on the way."""
    *sections, last = key.split(".")
    for section in sections:
        if not isinstance(tree.get(section), dict):
            tree[section] = {}
        tree = tree[section]
    tree[last] = value


def wire(
    verb: str, tree: dict, dataset_name: str, inputs: Inputs, results: Path, coding: Mapping[str, Any] | None = None
) -> None:
    """Set the keys that name files in `tree` (in place) from the ports; they win over what the user said.

    dataset_name and `coding` (disparity_format, disparity_scale) say how the lists are read that the ports give.
    """
    row = VERBS[verb]
    for key, value in row.step_keys.items():
        put(tree, key, value.replace("{results}", str(results)))
    for key, value in _input_keys(row.input_keys, inputs).items():
        put(tree, key, value)
    for key, sources in list(sources_of(row, tree, dataset_name, inputs, coding or {})):
        put(tree, key, sources)


def _input_keys(keys: Mapping[str, str], inputs: Inputs) -> dict[str, Any]:
    """Key -> the input's file or folder; a key that takes several has them in the order of the ports."""
    found: dict[str, Any] = {}
    for port, key in keys.items():
        places = [place(artifact) for name, artifact in inputs.items() if name.partition(".")[0] == port]
        if key.endswith("[]"):
            found.setdefault(key.removesuffix("[]"), []).extend(places)
        elif places:
            found[key] = places[0]
    return found
