"""Data sources of a step's verb: lists of the input annotations, images of the input images."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from stereo_core.errors import DataError, SpecError
from stereo_core.step.inputs import place
from stereo_core.step.ports import Artifact
from stereo_core.storage import is_uri
from stereo_core.values import counted
from stereo_core.verbs import Verb

Inputs = Mapping[str, Artifact]

CODING = ("disparity_format", "disparity_scale")  # parameters of a step that are keys of its data source, too


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


def sources_of(
    row: Verb, tree: dict, dataset_name: str, inputs: Inputs, coding: Mapping[str, Any]
) -> Iterator[tuple[str, list[dict]]]:
    """Each key of the verb's spec that takes data sources, with those that it has.

    Args:
        coding: the keys of CODING that the step's parameters set, for the lists that a key takes by itself.

    Raises:
        SpecError, DataError: a source without a list, a list that is not there, pairs in files without inputs.
    """
    for wanted in _wanted(row):
        if found := _sources(tree, wanted, dataset_name, inputs, coding):
            yield wanted.key, found


def _sources(tree: dict, wanted: _Wanted, dataset_name: str, inputs: Inputs, coding: Mapping[str, Any]) -> list[dict]:
    """The sources of a key: the user's with paths resolved, else the lists that it takes by itself.

    A single source of the user's that names no list says how those are read (`disparity_scale`, ...). Synthetic ones
    need no list.
    """
    key, sources = wanted.key, _said_sources(tree, wanted.key)
    if missing := [port for port in ("images", "annotations") if port not in inputs]:
        if all(map(_is_drawn, sources)) and (sources or not wanted.needed):
            return sources
        raise SpecError(
            f"{key}: reads pairs from files, and nothing is connected to input {' and '.join(missing)}; connect it, or "
            "let all sources have dataset_name Synthetic"
        )
    annotations = inputs["annotations"].path
    unnamed = [source for source in sources if not source.get("data_file") and not _is_drawn(source)]
    if unnamed and len(sources) > 1:
        raise SpecError(
            f"{key}: {len(unnamed)} of {counted(len(sources), 'source')} name no data_file; name a list "
            "of the annotations in each, or give one source, which takes the list that convert made"
        )
    if unnamed or not sources:
        lists = [annotations] if annotations.is_file() else [annotations / name for name in wanted.names]
        taken = [path for path in lists if path.is_file()][: wanted.most]
        if not taken and not wanted.needed:
            return []
        if not taken:
            found = ", ".join(sorted(p.name for p in annotations.glob("*.txt"))) or "no .txt file"
            raise DataError(
                f"input annotations: {annotations} holds no {' or '.join(wanted.names)} (found: {found});"
                " choose convert's split_ratio accordingly or name data_sources in the spec"
            )
        source = (unnamed[0] if unnamed else {}) | coding
        name = dataset_name or source.get("dataset_name") or "GenericDataset"
        sources = [source | {"data_file": str(path), "dataset_name": name} for path in taken]
    images = place(inputs["images"])
    return [_resolved(key, source, images, annotations) for source in sources]


def _said_sources(tree: dict, key: str) -> list[dict]:
    given: Any = tree
    for name in key.split("."):
        given = given.get(name) if isinstance(given, dict) else None
    sources = [] if given is None else given
    if not isinstance(sources, list) or not all(isinstance(source, dict) for source in sources):
        raise SpecError(f"{key}: a list of mappings is wanted, not {given!r:.60}")
    for source in sources:
        for name in ("data_file", "data_root"):
            if not isinstance(source.get(name) or "", str):
                raise SpecError(f"{key}: {name}: text is wanted, not {source[name]!r:.60}")
    return sources


def _is_drawn(source: dict) -> bool:
    return str(source.get("dataset_name")).lower() == "synthetic"


def _resolved(key: str, source: dict, images: str, annotations: Path) -> dict:
    if _is_drawn(source):
        return source
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
