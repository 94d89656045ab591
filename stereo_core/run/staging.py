"""A spec with URIs -> the same spec on this machine: inputs are fetched before a verb's work, results are stored while
it goes on and after it.

The images that a list names stay where they are: they are fetched one by one, when they are read.
"""

from __future__ import annotations

import contextlib
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import Any

from stereo_core import storage
from stereo_core.data import shards
from stereo_core.errors import SpecError, UserError
from stereo_core.files import point
from stereo_core.locks import held
from stereo_core.progress import heartbeat
from stereo_core.run.mirror import CHECKPOINTS, Mirror
from stereo_core.run.remote import RemoteKey, check, remote_keys
from stereo_core.spec.dataset import DataSource
from stereo_core.spec.experiment import ExperimentSpec, results_dir
from stereo_core.spec.fields import Section
from stereo_core.spec.train import AUTO
from stereo_core.training.distribution import is_main_process

WEEK = 7 * 24 * 3600  # s that results which may not be stored stay, once their run has ended
LINKS = {"dn_model_latest.pth", "dn_model_best.pth"}  # to checkpoints of a training


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
    """Where one run's inputs and results lie while it runs; `staged` opens one.

    Attributes:
        spec: the spec with paths of this machine; inputs are there after `fetch`.
        locks: are let go when the run has ended.
        folder: holds inputs and results; None where nothing is remote.
        mirror: stores the results.
        inputs: folder of an input -> URI of the prefix that it came from.
    """

    verb: str
    spec: Section
    locks: contextlib.ExitStack
    folder: Path | None = None
    mirror: Mirror = field(default_factory=lambda: Mirror({}))
    inputs: dict[Path, str] = field(default_factory=dict)
    _to_fetch: list[RemoteKey] = field(default_factory=list)

    @property
    def results(self) -> dict[Path, str]:
        """Folder of results -> URI of the prefix."""
        return self.mirror.folders

    def take_up(self) -> None:
        """Keep other trainings out of the results folder, which exists, while this one lasts; fetch the results of the
        one that this one goes on with, where the spec says `auto`.

        A training that is refused here leaves the other's record, experiment.yaml and status.json, as it is.

        Raises:
            SpecError: the folder's results are those of a training that this one does not go on with, or that still
                runs.
            UserError: the folder's file system has no locks.
            DataError, StorageError: as storage.fetch.
        """
        if self.verb != "train" or not isinstance(self.spec, ExperimentSpec):
            return
        folder, resume = results_dir(self.spec, "train"), self.spec.train.resume_training_checkpoint_path
        if any(folder.is_relative_to(here) for here in self.results):
            self._take_up_stored(folder, resume)
            return
        if is_main_process():
            self._keep_others_out(folder)
        if resume != AUTO and not (resume and Path(resume).resolve().parent == folder.resolve()):
            check_no_other_training(folder, (file.name for file in folder.iterdir()))

    def storing(self) -> contextlib.AbstractContextManager[None]:
        """While it lasts results are stored as they are written. Raises as Mirror.running."""
        return self.mirror.running() if self.results and is_main_process() else contextlib.nullcontext()

    def fetch(self) -> None:
        """Fetch the inputs and name them in the spec.

        Raises:
            DataError, StorageError: as storage.fetch.
        """
        for number, key in enumerate(self._to_fetch):
            with heartbeat(partial("fetching {}".format, getattr(key.owner, key.name))):
                self._fetch_one(key, self._own_folder() / "inputs" / f"{number:03d}")

    def _own_folder(self) -> Path:
        if self.folder is None:
            raise RuntimeError("nothing of this run is remote, so that it has no folder of its own")
        return self.folder

    def _fetch_one(self, key: RemoteKey, here: Path) -> None:
        owner, name, _, kind = key
        uri = getattr(owner, name)
        if kind == "evaluations":
            found: Any = [self._evaluation(text, here / f"{i:03d}") for i, text in enumerate(uri)]
        else:
            self.inputs[here] = uri if kind in ("names", "images") else uri.rpartition("/")[0]
            found = str(_FETCH[kind](uri, here))
        setattr(owner, name, found)
        if isinstance(owner, DataSource) and kind == "list" and not owner.data_root:
            owner.data_root = uri.rpartition("/")[0]

    def store(self) -> list[str]:
        """Store the results, status.json last, and remove them here; returns the prefixes.

        Raises:
            StorageError, DataError: as storage.upload; the message says where the results lie on this machine.
        """
        if is_main_process():
            self.mirror.store()
        if self.folder is not None:
            shutil.rmtree(self.folder)
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

    def _take_up_stored(self, folder: Path, resume: str) -> None:
        """`take_up` of results that belong in a bucket."""
        uri = self.mirror.uri_of(folder).removesuffix("/.")
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
                self.mirror.know(folder / name)

    def _keep_others_out(self, folder: Path) -> None:
        refusal = SpecError(
            f"train.results_dir: another training is running in {folder}; wait for its end, or "
            "train.results_dir=<folder> takes another folder"
        )
        self.locks.enter_context(held(folder / ".lock", wait=0, busy=refusal, vital=True))

    def _redirect(self, key: RemoteKey) -> None:
        """Give results a place on this machine."""
        uri = getattr(key.owner, key.name).rstrip("/")
        here = self._own_folder() / "results" / key.path
        self.results[here] = uri if key.kind == "results" else uri.rpartition("/")[0]
        setattr(key.owner, key.name, str(here if key.kind == "results" else here / uri.rpartition("/")[2]))


@contextlib.contextmanager
def staged(verb: str, spec: Section) -> Iterator[Stage]:
    """The stage of a run, for as long as it lasts. Results that were not stored stay in its folder for a WEEK.

    Raises:
        SpecError: a URI that can not be used where it stands; names the key.
    """
    keys = list(remote_keys(verb, spec))
    for key in keys:
        check(verb, spec, key)
    with contextlib.ExitStack() as locks:
        yield _opened(verb, spec, locks) if keys else Stage(verb, spec, locks)


def _opened(verb: str, spec: Section, locks: contextlib.ExitStack) -> Stage:
    """A stage with a folder of its own, which is locked, so that no other run takes it for one that was left."""
    storage.forget()
    runs = storage.cache_folder() / "runs"
    runs.mkdir(parents=True, exist_ok=True)
    for left in {path.with_suffix("") for path in runs.iterdir()}:
        _clear(left)
    folder = Path(tempfile.mkdtemp(prefix=f"{verb}-", dir=runs))
    locks.enter_context(held(_lock_of(folder)))
    stage = Stage(verb, spec.model_copy(deep=True), locks, folder)
    for key in list(remote_keys(verb, stage.spec)):
        if key.kind in ("results", "output"):
            stage._redirect(key)
        elif key.kind != "root":
            stage._to_fetch.append(key)
    return stage


def _lock_of(folder: Path) -> Path:
    """Beside the folder: a file in it would make old results look new."""
    return folder.with_suffix(".lock")


def _clear(folder: Path) -> None:
    """Remove what a run left that was killed: inputs at once, results that may not be stored after a WEEK."""
    with (
        contextlib.suppress(OSError, UserError),  # it goes on, another process clears it, or it is another user's
        held(_lock_of(folder), wait=0, busy=BlockingIOError(), vital=True),
    ):
        newest = max(path.lstat().st_mtime for path in (folder, *folder.rglob("*")))
        shutil.rmtree(folder if newest < time.time() - WEEK else folder / "inputs", ignore_errors=True)


def _link_again(path: Path, uri: str, names: Iterable[str]) -> None:
    """Make a copy of a checkpoint the link that it is elsewhere; without a checkpoint like it, it goes."""
    digest = storage.stored_digest(f"{uri}/{path.name}")
    for name in names:
        if name.startswith(CHECKPOINTS) and name.endswith(".pth") and storage.stored_digest(f"{uri}/{name}") == digest:
            point(path, path.with_name(name))
            return
    path.unlink()


def _one(uri: str, folder: Path) -> Path:
    return storage.fetch_to(uri, folder / uri.rpartition("/")[2])


def _images(uri: str, folder: Path) -> Path:
    """An archive, or a folder."""
    if uri.endswith((".tar.gz", ".tgz", ".tar", ".zip")):
        return _one(uri, folder)
    storage.fetch_tree(uri, folder)
    return folder


def _with_side_cars(uri: str, folder: Path) -> Path:
    """A model file, and what lies beside it under its name with a further suffix."""
    parent, _, name = uri.rpartition("/")
    path = _one(uri, folder)
    for other in storage.children(parent, start=f"{name}."):
        _one(f"{parent}/{other}", folder)
    return path


def _empty_files(uri: str, folder: Path) -> Path:
    """Names alone, which is what convert looks at."""
    folder.mkdir(parents=True)
    for name in shards.packed(uri) or storage.children(uri, recursive=True):
        storage.split(f"{uri.rstrip('/')}/{name}")  # refuses parts that lead out of the folder
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return folder


_FETCH = {"list": _one, "file": _with_side_cars, "images": _images, "names": _empty_files}
"""Kind of an input -> how it comes into a folder; gives the path that stands for the URI."""
