"""Builds the spec of a step from its parameters and artifacts, by the verb's row in verbs.py."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stereo_core.run.parameters import merged_spec, set_key
from stereo_core.step.inputs import place
from stereo_core.step.ports import Artifact
from stereo_core.step.sources import sources_of
from stereo_core.verbs import VERBS

Inputs = Mapping[str, Artifact]


def user_spec(verb: str, parameters: dict[str, Any], inputs: Inputs) -> dict[str, Any]:
    """The user's spec keys, from the input spec_file and the parameters."""
    return merged_spec(verb, parameters, _read_spec_file(inputs.get("spec_file")))


def _read_spec_file(artifact: Artifact | None) -> dict[str, Any]:
    if artifact is None:
        return {}
    from stereo_core.spec.loading import read_tree

    return read_tree(artifact.path)


def wire(
    verb: str,
    tree: dict[str, Any],
    dataset_name: str,
    inputs: Inputs,
    results: Path,
    coding: Mapping[str, Any] | None = None,
) -> None:
    """Set the keys of `tree` that name files from the ports, in place. Ports override the user's values.

    dataset_name and `coding` (disparity_format, disparity_scale) say how the ports' annotation files are read.
    """
    row = VERBS[verb]
    for key, value in row.step_keys.items():
        set_key(tree, key, value.replace("{results}", str(results)))
    for key, value in _input_keys(row.input_keys, inputs).items():
        set_key(tree, key, value)
    for key, sources in list(sources_of(row, tree, dataset_name, inputs, coding or {})):
        set_key(tree, key, sources)


def _input_keys(keys: Mapping[str, str], inputs: Inputs) -> dict[str, Any]:
    """Key -> the input's file or folder. A list key has its inputs in the order of the ports."""
    found: dict[str, Any] = {}
    for port, key in keys.items():
        places = [place(artifact) for name, artifact in inputs.items() if name.partition(".")[0] == port]
        if key.endswith("[]"):
            found.setdefault(key.removesuffix("[]"), []).extend(places)
        elif places:
            found[key] = places[0]
    return found
