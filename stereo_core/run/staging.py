"""A spec with URIs -> the same spec on this machine: inputs are fetched before a verb's work, results are stored while
it goes on and after it.

The images that a list names stay where they are: they are fetched one by one, when they are read.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from stereo_core import storage
from stereo_core.data import shards
from stereo_core.errors import SpecError
from stereo_core.run.mirror import CHECKPOINTS, Mirror
from stereo_core.spec.experiment import ExperimentSpec, results_dir
from stereo_core.spec.fields import Section
from stereo_core.spec.train import AUTO
from stereo_core.training.distribution import is_main_process
from stereo_core.verbs import reads_split, section_of

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
    "*.data_sources.data_file": "list",
    "*.data_sources.data_root": "root",
    "*.images_dir": "images",
    "data_root": "names",
    "results": "evaluations",
}
"""Pattern of the keys that name files -> what is done about them. The first that fits counts."""

WEEK = 7 * 24 * 3600  # s that results which may not be stored stay, once their run has ended
LINKS = {"dn_model_latest.pth", "dn_model_best.pth"}  # to checkpoints of a training


_ALONE: set[int] = set()  # handles that are locks of this process, not of the data loader's, which outlive it a while
os.register_at_fork(after_in_child=lambda: [os.close(_ALONE.pop()) for _ in range(len(_ALONE))])


def check_no_other_training(place: str | Path, names: Iterable[str]) -> None:
    """SpecError where a training would write over the checkpoints of another, which lie at `place`."""
    there = sorted(name for name in names if fnmatchcase(name, "model_epoch_*.pth"))
    if there:
        raise SpecError(
            f"train.results_dir: {place} holds checkpoints of another training, the last one {there[-1]}, and this one "
            "would write over them; train.resume_training_checkpoint_path=auto goes on with that training, "
            "train.results_dir=<folder> takes another folder, or remove them"
        )


@dataclass
class Stage:
    """Where one run's inputs and results lie while it runs.

    Attributes:
        spec: the spec with paths of this machine; inputs are there after `fetch`.
        folder: holds them; None where nothing is remote.
        results: folder of results -> URI of the prefix.
        inputs: folder of an input -> URI of the prefix that it came from.
    """

    verb: str
    spec: Section
    folder: Path | None = None
    results: dict[Path, str] = field(default_factory=dict)
    inputs: dict[Path, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Give results a place on this machine.

        Raises:
            SpecError: a URI that can not be used where it stands; names the key.
        """
        self._inputs = []
        self._mirror = Mirror(self.results)
        self._alone = None
        for owner, name, path, kind in _named(self.verb, self.spec):
            for value in filter(_is_remote, _texts(getattr(owner, name))):
                self._check(value, path, kind)
            self.folder = storage.cache() / "runs"
        if self.folder is None:
            return
        storage.forget()
        self.folder.mkdir(parents=True, exist_ok=True)
        for left in self.folder.iterdir():
            _clear(left)
        self.folder = Path(tempfile.mkdtemp(prefix=f"{self.verb}-", dir=self.folder))
        self._alive = _held(self.folder)
        self.spec = self.spec.model_copy(deep=True)
        for owner, name, path, kind in list(_named(self.verb, self.spec)):
            if kind in ("results", "output"):
                self._redirect(owner, name, path, kind)
            elif kind != "root":
                self._inputs.append((owner, name, kind))

    def take_up(self) -> None:
        """Keep other trainings out of the results folder, which exists, until `store`; fetch the results of the one
        that this one goes on with, where the spec says `auto`.

        A training that is refused here leaves the other's record, experiment.yaml and status.json, as it is.

        Raises:
            SpecError: the folder's results are those of a training that this one does not go on with, or that still
                runs.
            DataError, StorageError: as storage.fetch.
        """
        if self.verb != "train":
            return
        folder, resume = results_dir(self.spec, "train"), self.spec.train.resume_training_checkpoint_path
        if not any(folder.is_relative_to(here) for here in self.results):
            if is_main_process():
                self._keep_others_out(folder)
            if resume != AUTO and not (resume and Path(resume).resolve().parent == folder.resolve()):
                check_no_other_training(folder, (file.name for file in folder.iterdir()))
            return
        uri = self._mirror.uri_of(folder).removesuffix("/.")
        if resume != AUTO:
            there = storage.children(uri, start="model_epoch_") if resume.rpartition("/")[0] != uri else ()
            check_no_other_training(uri, there)
            return
        if not storage.is_prefix(uri):
            return
        found = storage.fetch_tree(uri, folder, own=True)
        for name in LINKS & found.keys():
            _link_again(folder / name, uri, found)
        for name in found:
            if (folder / name).exists():
                self._mirror.know(folder / name)

    def storing(self) -> contextlib.AbstractContextManager[None]:
        """While it lasts results are stored as they are written. Raises as Mirror.running."""
        return self._mirror.running() if self.results and is_main_process() else contextlib.nullcontext()

    def fetch(self) -> None:
        """Fetch the inputs and name them in the spec.

        Raises:
            DataError, StorageError: as storage.fetch.
        """
        for number, (owner, name, kind) in enumerate(self._inputs):
            uri, here = getattr(owner, name), self.folder / "inputs" / f"{number:03d}"
            if kind == "evaluations":
                setattr(owner, name, [self._evaluation(text, here / f"{i:03d}") for i, text in enumerate(uri)])
                continue
            self.inputs[here] = uri if kind in ("names", "images") else uri.rpartition("/")[0]
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
        if self._alone is not None:
            _ALONE.remove(self._alone)
            os.close(self._alone)
        if is_main_process():
            self._mirror.store()
        if self.folder is not None:
            shutil.rmtree(self.folder)
            os.close(self._alive)
        return list(self.results.values())

    def told(self, text: str) -> str:
        """A text about files of this stage with the names that they have in storage."""
        for here, uri in (self.results | self.inputs).items():
            text = text.replace(str(here), uri)
        return text

    def _evaluation(self, text: str, here: Path) -> str:
        """The folder of an evaluation, or its results.json, on this machine."""
        if not storage.is_uri(text):
            return text
        file = "results.json" if text.endswith("/results.json") else ""
        uri = text.removesuffix("/results.json").rstrip("/")
        folder = here.joinpath(*storage.split(uri))  # its names are those of columns
        self.inputs[folder] = uri
        storage.fetch_tree(uri, folder)
        return str(folder / file)

    def _keep_others_out(self, folder: Path) -> None:
        with contextlib.suppress(OSError):  # a file system without locks
            self._alone = _held(folder)
            if self._alone is None:
                raise SpecError(
                    f"train.results_dir: another training is running in {folder}; wait for its end, or "
                    "train.results_dir=<folder> takes another folder"
                )
            _ALONE.add(self._alone)

    def _redirect(self, owner: Section, name: str, path: str, kind: str) -> None:
        uri = getattr(owner, name).rstrip("/")
        here = self.folder / "results" / path
        self.results[here] = uri if kind == "results" else uri.rpartition("/")[0]
        setattr(owner, name, str(here if kind == "results" else here / uri.rpartition("/")[2]))

    def _check(self, value: str, path: str, kind: str) -> None:
        if not storage.is_uri(value):
            raise SpecError(f"{path}: {value}: scheme not supported; use a path, {', '.join(storage.SCHEMES)}")
        if kind == "local":
            raise SpecError(f"{path}: {value}: is updated while an engine is built; name a file of this machine")
        if not storage.split(value)[1] and kind not in ("results", "root", "names"):
            raise SpecError(f"{path}: {value}: names no object in the bucket")
        if kind == "names" and not self.spec.relative_paths:
            raise SpecError(f"{path}: {value}: set relative_paths=true, and this data_root where the lists are used")
        if kind != "results":
            return
        if self.verb == "automl":
            raise SpecError(f"{path}: {value}: a search keeps its study on a file system; name a folder")
        train = self.spec.train if isinstance(self.spec, ExperimentSpec) and self.verb == "train" else None
        if train is not None and (train.num_nodes > 1 or "LOCAL_RANK" in os.environ or "WORLD_SIZE" in os.environ):
            raise SpecError(f"{path}: {value}: nodes, and processes of torchrun, need a folder that all of them see")


def _held(folder: Path) -> int | None:
    """Lock a run's folder, for as long as the process or a child of it lives; None where another run holds it."""
    handle = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        return None
    return handle


def _clear(folder: Path) -> None:
    """Remove what a run left that was killed: inputs at once, results that may not be stored after a WEEK."""
    with contextlib.suppress(OSError):  # another process does it too, or it is another user's
        handle = _held(folder)
        if handle is None:
            return
        newest = max(path.stat().st_mtime for path in (folder, *folder.rglob("*")))
        shutil.rmtree(folder if newest < time.time() - WEEK else folder / "inputs", ignore_errors=True)
        os.close(handle)


def _named(verb: str, spec: Section) -> Iterator[tuple[Section, str, str, str]]:
    """The files outside of this machine that a verb reads and writes: section, key, dotted path, kind."""
    for owner, name, path in _uris(spec):
        kind = kind_of(path)
        if kind and _concerns(verb, path):
            yield owner, name, path, kind


def kind_of(path: str) -> str | None:
    """What is done about the files that a key names, by its dotted path without indices; None: it names none."""
    return next((kind for pattern, kind in _KINDS.items() if fnmatchcase(path, pattern)), None)


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


def _texts(value: Any) -> list:
    return value if isinstance(value, list) else [value]


def _is_remote(value: Any) -> bool:
    return isinstance(value, str) and "://" in value


def _link_again(path: Path, uri: str, names: Iterable[str]) -> None:
    """Make a copy of a checkpoint the link that it is on a file system; without a checkpoint like it, it goes."""
    path.unlink()
    digest = storage.stored_digest(f"{uri}/{path.name}")
    for name in names:
        if name.startswith(CHECKPOINTS) and name.endswith(".pth") and storage.stored_digest(f"{uri}/{name}") == digest:
            path.symlink_to(name)
            return


def _concerns(verb: str, path: str) -> bool:
    """Whether the verb reads the files that a key names."""
    head, _, rest = path.partition(".")
    name = section_of(verb)
    if not rest or head == name:
        return True
    if head == "dataset":
        return reads_split(verb, rest.partition("_dataset.")[0])
    return (head == "model" and name in ("train", "automl")) or (head == "train" and name == "automl")


def _one(uri: str, folder: Path) -> Path:
    return storage.fetch_to(uri, folder / uri.rpartition("/")[2])


def _with_side_cars(uri: str, folder: Path) -> Path:
    """A model file, and what lies beside it under its name with a further suffix."""
    parent, _, name = uri.rpartition("/")
    path = _one(uri, folder)
    for other in storage.children(parent, start=f"{name}."):
        _one(f"{parent}/{other}", folder)
    return path


def _empty_files(uri: str, folder: Path) -> None:
    for name in shards.packed(uri) or storage.children(uri, recursive=True):
        storage.split(f"{uri.rstrip('/')}/{name}")  # refuses parts that lead out of the folder
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
