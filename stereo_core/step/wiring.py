"""Parameters and artifacts -> the spec of a step's verb, as the verb's row says."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from stereo_core.errors import DataError, SpecError, UserError
from stereo_core.step.inputs import place
from stereo_core.step.ports import Artifact
from stereo_core.storage import is_uri
from stereo_core.verbs import VERBS, Verb

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


def wire(verb: str, tree: dict, dataset_name: str, inputs: Inputs, results: Path) -> None:
    """Set the keys that name files in `tree` (in place) from the ports; they win over what the user said."""
    row = VERBS[verb]
    for key, value in row.step_keys.items():
        put(tree, key, value.replace("{results}", str(results)))
    for key, value in _input_keys(row.input_keys, inputs).items():
        put(tree, key, value)
    for wanted in _wanted(row):
        _wire_sources(tree, wanted, dataset_name, inputs)


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


class _Wanted(NamedTuple):
    """A key that takes data sources: by themselves at most `most` of the lists `names` that are there."""

    key: str
    names: tuple[str, ...]
    needed: bool
    most: int


def _wanted(row: Verb) -> Iterator[_Wanted]:
    for split, names in row.splits.items():
        if names:
            key = f"dataset.{split.removesuffix('?')}_dataset.data_sources"
            yield _Wanted(key, names, needed=not split.endswith("?"), most=1)
    if row.lists:
        yield _Wanted("data_sources", row.lists, needed=True, most=len(row.lists))


def _wire_sources(tree: dict, wanted: _Wanted, dataset_name: str, inputs: Inputs) -> None:
    """Give a key its sources: the user's with paths resolved, else the lists that it takes by itself.

    A single source of the user's that names no list says how those are read (`disparity_scale`, ...).
    """
    key, annotations = wanted.key, inputs["annotations"].path
    sources = _said_sources(tree, key)
    unnamed = [source for source in sources if not source.get("data_file")]
    if unnamed and len(sources) > 1:
        raise SpecError(
            f"{key}: {len(unnamed)} of {len(sources)} sources name no data_file; name a list "
            "of the annotations in each, or give one source, which takes the list that convert made"
        )
    if unnamed or not sources:
        lists = [annotations] if annotations.is_file() else [annotations / name for name in wanted.names]
        taken = [path for path in lists if path.is_file()][: wanted.most]
        if not taken and not wanted.needed:
            return
        if not taken:
            found = ", ".join(sorted(p.name for p in annotations.glob("*.txt"))) or "no .txt file"
            raise DataError(
                f"input annotations: {annotations} holds no {' or '.join(wanted.names)} (found: {found});"
                " choose convert's split_ratio accordingly or name data_sources in the spec"
            )
        source = unnamed[0] if unnamed else {}
        name = dataset_name or source.get("dataset_name") or "GenericDataset"
        sources = [source | {"data_file": str(path), "dataset_name": name} for path in taken]
    images = place(inputs["images"])
    put(tree, key, [_resolved(key, source, images, annotations) for source in sources])


def _said_sources(tree: dict, key: str) -> list[dict]:
    given: Any = tree
    for name in key.split("."):
        given = given.get(name) if isinstance(given, dict) else None
    return [source for source in given or [] if isinstance(source, dict)]


def _resolved(key: str, source: dict, images: str, annotations: Path) -> dict:
    data_file = _below(str(annotations), source["data_file"])
    if not is_uri(data_file) and not os.path.isfile(data_file):
        raise DataError(
            f"{key}: no such list: {data_file}; relative names are looked up in "
            "the input annotations, and without data_sources the list that convert made is taken"
        )
    return source | {"data_file": data_file, "data_root": _below(images, source.get("data_root") or "")}


def _below(folder: str, path: str) -> str:
    """A relative path below the folder or URI; an absolute one and a URI as they are."""
    return path if is_uri(path) else os.path.join(folder, path).rstrip("/")
