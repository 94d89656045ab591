"""The data sources of a step: annotation files from the input `annotations`, images from the input `images`."""

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

CODING = ("disparity_format", "disparity_scale")  # step parameters that are also keys of a data source


class _SourcesKey(NamedTuple):
    """A spec key that holds data sources. By default it takes the first `most` existing annotation files of `names`."""

    key: str
    names: tuple[str, ...]
    needed: bool
    most: int


def _sources_keys(row: Verb) -> Iterator[_SourcesKey]:
    for split, names in row.splits.items():
        if names:
            key = f"dataset.{split.removesuffix('?')}_dataset.data_sources"
            yield _SourcesKey(key, names, needed=not split.endswith("?"), most=1)
    if row.lists:
        yield _SourcesKey("data_sources", row.lists, needed=True, most=len(row.lists))


def sources_of(
    row: Verb, tree: dict[str, Any], dataset_name: str, inputs: Inputs, coding: Mapping[str, Any]
) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Each spec key that holds data sources, with its sources.

    Args:
        coding: the keys of CODING that the step's parameters set; they apply to annotation files chosen by default.

    Raises:
        SpecError, DataError: a source names no annotation file, an annotation file does not exist, or the spec needs
            files and an input is not connected.
    """
    for wanted in _sources_keys(row):
        if found := _sources(tree, wanted, dataset_name, inputs, coding):
            yield wanted.key, found


def _sources(
    tree: dict[str, Any], wanted: _SourcesKey, dataset_name: str, inputs: Inputs, coding: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """The sources of a key: the user's with paths resolved, else the default annotation files.

    A single user source without a data_file only says how the default files are read (`disparity_scale`, ...).
    Synthetic sources need no annotation file.
    """
    key, sources = wanted.key, _user_sources(tree, wanted.key)
    if missing := [port for port in ("images", "annotations") if port not in inputs]:
        if all(map(_is_drawn, sources)) and (sources or not wanted.needed):
            return sources
        raise SpecError(
            f"{key}: needs pairs from files, but nothing is connected to input {' and '.join(missing)}; connect it, or "
            "set dataset_name Synthetic in all sources"
        )
    annotations = inputs["annotations"].path
    unnamed = [source for source in sources if not source.get("data_file") and not _is_drawn(source)]
    if unnamed and len(sources) > 1:
        raise SpecError(
            f"{key}: {len(unnamed)} of {counted(len(sources), 'source')} have no data_file; name an annotation file in "
            "each, or give a single source, which then takes the file that convert wrote"
        )
    if unnamed or not sources:
        lists = [annotations] if annotations.is_file() else [annotations / name for name in wanted.names]
        taken = [path for path in lists if path.is_file()][: wanted.most]
        if not taken and not wanted.needed:
            return []
        if not taken:
            found = ", ".join(sorted(p.name for p in annotations.glob("*.txt"))) or "no .txt file"
            raise DataError(
                f"input annotations: {annotations} has no {' or '.join(wanted.names)} (found: {found});"
                " change convert's split_ratio, or set data_sources in the spec"
            )
        source = {**(unnamed[0] if unnamed else {}), **coding}
        name = dataset_name or source.get("dataset_name") or "GenericDataset"
        sources = [source | {"data_file": str(path), "dataset_name": name} for path in taken]
    images = place(inputs["images"])
    return [_resolved(key, source, images, annotations) for source in sources]


def _user_sources(tree: dict[str, Any], key: str) -> list[dict[str, Any]]:
    given: Any = tree
    for name in key.split("."):
        given = given.get(name) if isinstance(given, dict) else None
    sources = [] if given is None else given
    if not isinstance(sources, list) or not all(isinstance(source, dict) for source in sources):
        raise SpecError(f"{key}: expected a list of mappings, got {given!r:.60}")
    for source in sources:
        for name in ("data_file", "data_root"):
            if not isinstance(source.get(name) or "", str):
                raise SpecError(f"{key}: {name}: expected text, got {source[name]!r:.60}")
    return sources


def _is_drawn(source: dict[str, Any]) -> bool:
    return str(source.get("dataset_name")).lower() == "synthetic"


def _resolved(key: str, source: dict[str, Any], images: str, annotations: Path) -> dict[str, Any]:
    if _is_drawn(source):
        return source
    data_file = _below(str(annotations), source["data_file"])
    if not is_uri(data_file) and not os.path.isfile(data_file):
        raise DataError(
            f"{key}: no such annotation file: {data_file}; relative names are looked up in the input annotations. "
            "Leave data_sources out to take the file that convert wrote"
        )
    return source | {"data_file": data_file, "data_root": _below(images, source.get("data_root") or "")}


def _below(folder: str, path: str) -> str:
    """A relative path, made relative to the folder or URI; absolute paths and URIs stay unchanged."""
    return path if is_uri(path) else os.path.join(folder, path).rstrip("/")
