"""The keys of a spec that name files outside of this machine, and what is done about each."""

from __future__ import annotations

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
"""Pattern of the keys that name files -> what is done about them. The first that fits counts."""


class RemoteKey(NamedTuple):
    """A key whose value is the URI of files, or a list of such.

    Attributes:
        owner: the section that has it.
        path: dotted, without indices.
        kind: what is done about the files.
    """

    owner: Section
    name: str
    path: str
    kind: str


def remote_keys(verb: str, spec: Section) -> Iterator[RemoteKey]:
    """The keys with files outside of this machine that a verb reads and writes."""
    for owner, name, path in _uris(spec):
        kind = kind_of(path)
        if kind and _concerns(verb, path):
            yield RemoteKey(owner, name, path, kind)


def kind_of(path: str) -> str | None:
    """What is done about the files that a key names, by its dotted path without indices; None: it names none."""
    return next((kind for pattern, kind in _KINDS.items() if fnmatchcase(path, pattern)), None)


def check(verb: str, spec: Section, key: RemoteKey) -> None:
    """SpecError where a URI can not be used where it stands; names the key."""
    for uri in filter(_is_remote, _texts(getattr(key.owner, key.name))):
        wrong = _wrong_uri(uri, key.kind) or _wrong_place(verb, spec, key.kind)
        if wrong:
            raise SpecError(f"{key.path}: {uri}: {wrong}")


def _wrong_uri(uri: str, kind: str) -> str:
    if not storage.is_uri(uri):
        return f"scheme not supported; use a path, {', '.join(storage.SCHEMES)}"
    if kind == "local":
        return "is updated while an engine is built; name a file of this machine"
    if not storage.split(uri)[1] and kind not in ("results", "root", "names"):
        return "names no object in the bucket"
    return ""


def _wrong_place(verb: str, spec: Section, kind: str) -> str:
    if kind == "names" and not (isinstance(spec, ConvertSpec) and spec.relative_paths):
        return "set relative_paths=true, and this data_root where the lists are used"
    if kind != "results":
        return ""
    if verb == "automl":
        return "a search keeps its study on a file system; name a folder"
    if verb == "train" and isinstance(spec, ExperimentSpec) and is_one_of_several(spec.train):
        return "nodes, and processes of torchrun, need a folder that all of them see"
    return ""


def _uris(group: Section, prefix: str = "") -> Iterator[tuple[Section, str, str]]:
    """The values with `://` in them, alone or in a list, as section, key, and dotted path without indices."""
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
    """Whether the verb reads the files that a key names."""
    head, _, rest = path.partition(".")
    name = section_of(verb)
    if not rest or head == name or not VERBS[verb].sections:
        return True
    if head == "dataset":
        return reads_split(verb, rest.partition("_dataset.")[0])
    return (head == "model" and name in ("train", "automl")) or (head == "train" and name == "automl")
