"""Replaces the URIs in a spec by local paths: inputs are fetched before the action, results are uploaded during and
after it.

Images named in an annotation file are not fetched here: each is fetched when it is read.
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
from stereo_core.run.remote import RemoteKey, check, left_to_trials, remote_keys
from stereo_core.spec.dataset import DataSource
from stereo_core.spec.experiment import ExperimentSpec, results_dir
from stereo_core.spec.fields import Section
from stereo_core.spec.train import AUTO
from stereo_core.training.distribution import is_main_process

WEEK = 7 * 24 * 3600  # s that results stay on this machine after a run that could not upload them
LINKS = {"dn_model_latest.pth", "dn_model_best.pth"}  # a training run's links to its checkpoints


LOCKED = ("train", "evaluate", "inference", "trt_evaluate", "trt_inference")
"""Verbs that write many files of equal names: those of two runs at once would mix."""


@contextlib.contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Inside the `with` block an OSError becomes a SpecError that says that the folder of the results is not
    writable."""
    try:
        yield
    except OSError as error:
        raise SpecError(f"results_dir: cannot write to {folder}: {error.strerror}; choose another folder") from None


def check_no_other_training(place: str | Path, names: Iterable[str]) -> None:
    """Raise SpecError if `place` holds checkpoints of another training run, which this one would overwrite."""
    there = sorted(name for name in names if fnmatchcase(name, "model_epoch_*.pth"))
    if there:
        raise SpecError(
            f"train.results_dir: {place} holds checkpoints of another training run (the last one is {there[-1]}), and "
            "this run would overwrite them. Set train.resume_training_checkpoint_path=auto to resume that run, set "
            "train.results_dir to another folder, or remove the checkpoints"
        )


@dataclass
class Stage:
    """The local inputs and results of one run; `staged` opens a stage.

    Attributes:
        spec: the spec with local paths; the input files exist after `fetch`.
        locks: released when the run ends.
        folder: holds inputs and results; None if the spec has no URIs.
        mirror: uploads the results.
        inputs: local folder of an input -> URI prefix that it came from.
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
        """Local folder of results -> URI prefix."""
        return self.mirror.folders

    def claim_results(self) -> None:
        """For LOCKED verbs: lock the (existing) results folder for this run; for training, fetch the results that it
        resumes.

        Results are fetched if the spec says resume `auto`. If this fails, the other run's experiment.yaml and
        status.json stay unchanged.

        Raises:
            SpecError: the folder belongs to a run that still runs, or to a training run that this one does not resume;
                or it is not writable.
            UserError: a training's folder is on a file system without locks.
            DataError, StorageError: see storage.fetch.
        """
        if self.verb not in LOCKED or not isinstance(self.spec, ExperimentSpec):
            return
        folder, resume = results_dir(self.spec, self.verb), self.spec.train.resume_training_checkpoint_path
        stored = any(folder.is_relative_to(here) for here in self.results)
        if is_main_process() and not stored:
            self._keep_others_out(folder)
        if self.verb != "train":
            return
        if stored:
            self._claim_stored(folder, resume)
        elif resume != AUTO and not (resume and Path(resume).resolve().parent == folder.resolve()):
            check_no_other_training(folder, (file.name for file in folder.iterdir()))

    def storing(self) -> contextlib.AbstractContextManager[None]:
        """Upload results inside the `with` block as they are written. Raises the errors of Mirror.running."""
        return self.mirror.running() if self.results and is_main_process() else contextlib.nullcontext()

    def fetch(self) -> None:
        """Fetch the inputs and set their local paths in the spec.

        Raises:
            DataError, StorageError: see storage.fetch.
        """
        for number, key in enumerate(self._to_fetch):
            with heartbeat(partial("fetching {}".format, getattr(key.owner, key.name))):
                self._fetch_one(key, self._own_folder() / "inputs" / f"{number:03d}")

    def _own_folder(self) -> Path:
        if self.folder is None:
            raise RuntimeError("this run has no folder for fetched files, because none of its keys names a URI")
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
        """Upload the results, status.json last, and remove the local copies; returns the URI prefixes.

        Raises:
            StorageError, DataError: see storage.upload. The local results are then kept.
        """
        if is_main_process():
            self.mirror.store()
        if self.folder is not None:
            shutil.rmtree(self.folder)
        return list(self.results.values())

    def with_uris(self, text: str) -> str:
        """The text with this stage's local paths replaced by the user's URIs."""
        for here, uri in (self.results | self.inputs).items():
            text = text.replace(str(here), uri)
        return text

    def _evaluation(self, text: str, here: Path) -> str:
        """Fetch an evaluation; returns the local path of its folder or of its results.json."""
        if not storage.is_uri(text):
            return text
        file = "results.json" if text.endswith("/results.json") else ""
        uri = text.removesuffix("/results.json").rstrip("/")
        folder = here.joinpath(*storage.split(uri))  # keeps the names: they become column titles
        self.inputs[folder] = uri
        storage.fetch_tree(uri, folder)
        return str(folder / file)

    def _claim_stored(self, folder: Path, resume: str) -> None:
        """`claim_results` for results in a bucket."""
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
            f"results_dir: another run is writing to {folder}; wait until it ends, or set results_dir to another folder"
        )
        with writing(folder):
            self.locks.enter_context(held(folder / ".lock", wait=0, busy=refusal, vital=self.verb == "train"))

    def _redirect(self, key: RemoteKey) -> None:
        """Replace the URI of a results key by a local path."""
        uri = getattr(key.owner, key.name).rstrip("/")
        here = self._own_folder() / "results" / key.path
        self.results[here] = uri if key.kind == "results" else uri.rpartition("/")[0]
        setattr(key.owner, key.name, str(here if key.kind == "results" else here / uri.rpartition("/")[2]))


@contextlib.contextmanager
def staged(verb: str, spec: Section) -> Iterator[Stage]:
    """Open the stage of a run. Results that could not be uploaded stay in its folder for a WEEK.

    Raises:
        SpecError: a key holds a URI that it does not support.
    """
    keys = list(remote_keys(verb, spec))
    for key in keys:
        check(verb, spec, key)
    with contextlib.ExitStack() as locks:
        yield _opened(verb, spec, locks) if keys else Stage(verb, spec, locks)


def _opened(verb: str, spec: Section, locks: contextlib.ExitStack) -> Stage:
    """A stage with its own folder. The folder is locked, so that no other run cleans it up as abandoned."""
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
        elif key.kind != "root" and not left_to_trials(verb, spec, key):
            stage._to_fetch.append(key)
    return stage


def _lock_of(folder: Path) -> Path:
    """The folder's lock file. It is beside the folder: a new file inside would make old results look new."""
    return folder.with_suffix(".lock")


def _clear(folder: Path) -> None:
    """Clean up after a killed run: remove its inputs at once, and results that may not be uploaded after a WEEK."""
    with (
        contextlib.suppress(OSError, UserError),  # the run is alive, another process cleans up, or it is another user's
        held(_lock_of(folder), wait=0, busy=BlockingIOError(), vital=True),
    ):
        newest = max(path.lstat().st_mtime for path in (folder, *folder.rglob("*")))
        shutil.rmtree(folder if newest < time.time() - WEEK else folder / "inputs", ignore_errors=True)


def _link_again(path: Path, uri: str, names: Iterable[str]) -> None:
    """Turn a fetched copy of a checkpoint back into a link to that checkpoint; remove it if no checkpoint matches."""
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
    """A model file and the files beside it that are named like it plus a further suffix."""
    parent, _, name = uri.rpartition("/")
    path = _one(uri, folder)
    for other in storage.children(parent, start=f"{name}."):
        _one(f"{parent}/{other}", folder)
    return path


def _empty_files(uri: str, folder: Path) -> Path:
    """Create empty files with the right names: convert reads only names."""
    folder.mkdir(parents=True)
    for name in shards.packed(uri) or storage.children(uri, recursive=True):
        storage.split(f"{uri.rstrip('/')}/{name}")  # refuses names that lead out of the folder
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return folder


_FETCH = {"list": _one, "file": _with_side_cars, "images": _images, "names": _empty_files}
"""Kind of an input -> function that fetches it into a folder and returns the local path."""
