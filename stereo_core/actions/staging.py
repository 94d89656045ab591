"""A spec with URIs -> the same spec on this machine: inputs are fetched before a verb's work, results stored after it.

The images that a list names stay where they are: they are fetched one by one, when they are read.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from stereo_core import storage
from stereo_core.data import shards
from stereo_core.errors import SpecError
from stereo_core.spec.experiment import ExperimentSpec, section_name
from stereo_core.spec.fields import Section
from stereo_core.spec.train import AUTO
from stereo_core.training.distribution import is_main_process

_KINDS = {
    "results_dir": "results",
    "*.results_dir": "results",
    "export.onnx_file": "output",
    "gen_trt_engine.trt_engine": "output",
    "*.checkpoint": "file",
    "*.trt_engine": "file",
    "*.onnx_file": "file",
    "*_path": "file",
    "*.calibration": "file",
    "*.data_sources.data_file": "list",
    "*.data_sources.data_root": "root",
    "*.images_dir": "images",
    "data_root": "names",
}
"""Pattern of the keys that name files -> what is done about them. The first that fits counts."""

_SPLITS = {"train": ("train", "val"), "evaluate": ("test",), "inference": ("infer",)}
_SPLITS |= {"automl": _SPLITS["train"], "quantize": ("train", "val", "quant_calibration")}


@dataclass
class Stage:
    """Where one run's inputs and results lie while it runs.

    Attributes:
        spec: the spec with paths of this machine; inputs are there after `fetch`.
        folder: holds them; None where nothing is remote.
    """

    verb: str
    spec: Section
    folder: Path | None = None
    results: dict[Path, str] = field(default_factory=dict)  # folder -> URI of the prefix

    def __post_init__(self) -> None:
        """Give results a place on this machine.

        Raises:
            SpecError: a URI that can not be used where it stands; names the key.
        """
        self._inputs = []
        for owner, name, path, kind in _named(self.verb, self.spec):
            self._check(getattr(owner, name), path, kind)
            self.folder = storage.cache() / "runs"
        if self.folder is None:
            return
        storage.forget()
        self.folder.mkdir(parents=True, exist_ok=True)
        self.folder = Path(tempfile.mkdtemp(prefix=f"{self.verb}-", dir=self.folder))
        self.spec = self.spec.model_copy(deep=True)
        for owner, name, path, kind in list(_named(self.verb, self.spec)):
            if kind in ("results", "output"):
                self._redirect(owner, name, path, kind)
            elif kind != "root":
                self._inputs.append((owner, name, kind))

    def fetch(self) -> None:
        """Fetch the inputs and name them in the spec.

        Raises:
            DataError, StorageError: as storage.fetch.
        """
        for number, (owner, name, kind) in enumerate(self._inputs):
            uri, here = getattr(owner, name), self.folder / "inputs" / str(number)
            if kind == "names":  # convert looks at names alone
                here.mkdir(parents=True)
                _empty_files(uri, here)
                setattr(owner, name, str(here))
                continue
            if kind == "images" and not uri.endswith((".tar.gz", ".tgz", ".tar", ".zip")):
                storage.fetch_tree(uri, here)
                setattr(owner, name, str(here))
                continue
            if kind == "list" and not owner.data_root:
                owner.data_root = uri.rpartition("/")[0]
            setattr(owner, name, str(_with_side_cars(uri, here) if kind == "file" else _one(uri, here)))

    def store(self) -> list[str]:
        """Store the results, status.json last; returns the prefixes.

        Raises:
            StorageError, DataError: as storage.upload; the message says where the results lie on this machine.
        """
        if is_main_process():
            for folder, uri in self.results.items():
                files = sorted(path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("."))
                for path in sorted(files, key=lambda path: path.name == "status.json"):
                    storage.upload(path, f"{uri}/{path.relative_to(folder).as_posix()}")
        if self.folder is not None:
            shutil.rmtree(self.folder)
        return list(self.results.values())

    def _redirect(self, owner: Section, name: str, path: str, kind: str) -> None:
        uri = getattr(owner, name).rstrip("/")
        here = self.folder / "results" / path
        self.results[here] = uri if kind == "results" else uri.rpartition("/")[0]
        setattr(owner, name, str(here if kind == "results" else here / uri.rpartition("/")[2]))

    def _check(self, value: str, path: str, kind: str) -> None:
        if not storage.is_uri(value):
            raise SpecError(f"{path}: {value}: scheme not supported; use a path, {', '.join(storage.SCHEMES)}")
        if not storage.split(value)[1] and kind not in ("results", "root", "names"):
            raise SpecError(f"{path}: {value}: names no object in the bucket")
        if kind == "names" and not self.spec.relative_paths:
            raise SpecError(f"{path}: {value}: set relative_paths=true, and this data_root where the lists are used")
        if kind != "results":
            return
        if self.verb == "automl":
            raise SpecError(f"{path}: {value}: a search keeps its study on a file system; name a folder")
        train = self.spec.train if isinstance(self.spec, ExperimentSpec) and self.verb == "train" else None
        if train is not None and train.resume_training_checkpoint_path == AUTO:
            raise SpecError(f"{path}: {value}: train.resume_training_checkpoint_path=auto looks in a folder; name one")
        if train is not None and (train.num_nodes > 1 or "LOCAL_RANK" in os.environ or "WORLD_SIZE" in os.environ):
            raise SpecError(f"{path}: {value}: nodes, and processes of torchrun, need a folder that all of them see")


def _named(verb: str, spec: Section) -> Iterator[tuple[Section, str, str, str]]:
    """The files outside of this machine that a verb reads and writes: section, key, dotted path, kind."""
    for owner, name, path in _uris(spec):
        kind = next((kind for pattern, kind in _KINDS.items() if fnmatchcase(path, pattern)), None)
        if kind and _concerns(verb, path):
            yield owner, name, path, kind


def _uris(group: Section, prefix: str = "") -> Iterator[tuple[Section, str, str]]:
    """The values with `://` in them, as section, key, and dotted path without indices."""
    for name in type(group).model_fields:
        value: Any = getattr(group, name)
        path = f"{prefix}{name}"
        if isinstance(value, str) and "://" in value:
            yield group, name, path
        for inner in value if isinstance(value, list) else [value]:
            if isinstance(inner, Section):
                yield from _uris(inner, f"{path}.")


def _concerns(verb: str, path: str) -> bool:
    """Whether the verb reads the files that a key names."""
    head, _, rest = path.partition(".")
    name = section_name(verb)
    if not rest or head == name:
        return True
    if head == "dataset":
        return rest.partition("_dataset.")[0] in _SPLITS.get(name, ())
    return (head == "model" and name in ("train", "automl")) or (head == "train" and name == "automl")


def _one(uri: str, folder: Path) -> Path:
    return storage.fetch_to(uri, folder / uri.rpartition("/")[2])


def _with_side_cars(uri: str, folder: Path) -> Path:
    """A model file, and what lies beside it under its name with a further suffix."""
    parent, _, name = uri.rpartition("/")
    path = _one(uri, folder)
    for other in storage.children(parent):
        if other.startswith(f"{name}."):
            _one(f"{parent}/{other}", folder)
    return path


def _empty_files(uri: str, folder: Path) -> None:
    for name in shards.packed(uri) or storage.children(uri, recursive=True):
        storage.split(f"{uri.rstrip('/')}/{name}")  # refuses parts that lead out of the folder
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
