"""The spec keys that may name files in object storage, and how each is handled."""

from __future__ import annotations

import re
from collections.abc import Iterator
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

from stereo_core import storage
from stereo_core.errors import SpecError
from stereo_core.spec.convert import ConvertSpec
from stereo_core.spec.experiment import ExperimentSpec
from stereo_core.spec.fields import Section
from stereo_core.training.distribution import is_one_of_several
from stereo_core.verbs import VERBS, reads_split, section_of

_KINDS = {
    "results_dir": "results",
    "*.results_dir": "results",
    "export.onnx_file": "output",
    "gen_trt_engine.trt_engine": "output",
    "gen_trt_engine.timing_cache": "local",
    "*.checkpoint": "file",
    "*.trt_engine": "file",
    "*.onnx_file": "file",
    "*_path": "file",
    "*.calibration": "file",
    "*data_sources.data_file": "list",
    "*data_sources.data_root": "root",
    "*.images_dir": "images",
    "data_root": "names",
    "results": "evaluations",
}
"""Pattern of spec keys that name files -> how the files are handled. The first match counts."""


class RemoteKey(NamedTuple):
    """A key whose value is a URI or a list of URIs.

    Attributes:
        owner: the section that holds it.
        path: dotted, without indices.
        kind: how the files are handled.
    """

    owner: Section
    name: str
    path: str
    kind: str


def remote_keys(verb: str, spec: Section) -> Iterator[RemoteKey]:
    """The keys with URIs that a verb reads or writes."""
    for owner, name, path in _uris(spec):
        kind = kind_of(path)
        if kind and _concerns(verb, path):
            yield RemoteKey(owner, name, path, kind)


def kind_of(path: str) -> str | None:
    """How the files that a key names are handled, by its dotted path without indices; None if it names no files."""
    return next((kind for pattern, kind in _KINDS.items() if fnmatchcase(path, pattern)), None)


def files_read(tree: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """The keys of a spec (not yet checked) that name lists, models or folders of images to read, with their values."""
    named = tree if isinstance(tree, str) else ""
    if named and kind_of(re.sub(r"\[\d+\]", "", path)) in ("list", "file", "images"):
        yield path, named
    for name, inner in tree.items() if isinstance(tree, dict) else ():
        yield from files_read(inner, f"{path}.{name}" if path else str(name))
    for index, inner in enumerate(tree if isinstance(tree, list) else ()):
        yield from files_read(inner, f"{path}[{index}]")


def left_to_trials(verb: str, spec: Section, key: RemoteKey) -> bool:
    """Whether a search leaves fetching to its trials: they are training runs, and its best spec names the user's
    URIs."""
    searches = verb == "automl" and isinstance(spec, ExperimentSpec) and spec.automl.automl_policy != "off"
    return searches and not key.path.startswith("automl.")


def check(verb: str, spec: Section, key: RemoteKey) -> None:
    """Raise SpecError, with the key's name, if this URI is not possible for this key."""
    for uri in filter(_is_remote, _texts(getattr(key.owner, key.name))):
        wrong = _wrong_uri(uri, key.kind) or _wrong_place(verb, spec, key.kind)
        if wrong:
            raise SpecError(f"{key.path}: {uri}: {wrong}")


def _wrong_uri(uri: str, kind: str) -> str:
    if not storage.is_uri(uri):
        return f"scheme not supported; use a local path, {', '.join(storage.SCHEMES)}"
    if kind == "local":
        return "the build updates this file, so it must be on this machine; name a local file"
    if not storage.split(uri)[1] and kind not in ("results", "root", "names"):
        return "names a bucket, but no object in it; write s3://bucket/key"
    return ""


def _wrong_place(verb: str, spec: Section, kind: str) -> str:
    if kind == "names" and not (isinstance(spec, ConvertSpec) and spec.relative_paths):
        return "set relative_paths=true, and set the same data_root where the annotation files are used"
    if kind != "results":
        return ""
    if verb == "automl":
        return "a search needs a file system for its study; name a local folder"
    if verb == "train" and isinstance(spec, ExperimentSpec) and is_one_of_several(spec.train):
        return "training on several nodes or with torchrun needs a folder that all processes share"
    return ""


def _uris(group: Section, prefix: str = "") -> Iterator[tuple[Section, str, str]]:
    """All values that contain `://`, single or in a list, as (section, key, dotted path without indices)."""
    for name in type(group).model_fields:
        value: Any = getattr(group, name)
        path = f"{prefix}{name}"
        if any(map(_is_remote, _texts(value))):
            yield group, name, path
        for inner in _texts(value):
            if isinstance(inner, Section):
                yield from _uris(inner, f"{path}.")


def _texts(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _is_remote(value: Any) -> bool:
    return isinstance(value, str) and "://" in value


def _concerns(verb: str, path: str) -> bool:
    """Whether the verb uses the files that a key names."""
    head, _, rest = path.partition(".")
    name = section_of(verb)
    if not rest or head == name or not VERBS[verb].sections:
        return True
    if head == "dataset":
        return reads_split(verb, rest.partition("_dataset.")[0])
    return (head == "model" and name in ("train", "automl")) or (head == "train" and name == "automl")
