"""Parameters and artifacts -> the spec of a step's verb, as the verb's row says."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stereo_core.run.parameters import put, said_by
from stereo_core.step.inputs import place
from stereo_core.step.ports import Artifact
from stereo_core.step.sources import sources_of
from stereo_core.verbs import VERBS

Inputs = Mapping[str, Artifact]


def user_spec(verb: str, parameters: dict[str, Any], inputs: Inputs) -> dict[str, Any]:
    """What the user said, in the input spec_file and in parameters."""
    return said_by(verb, parameters, _read_spec_file(inputs.get("spec_file")))


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
