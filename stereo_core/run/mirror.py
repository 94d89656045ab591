"""Results on this machine -> object storage: while a run writes them, and once more when it ends."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from stereo_core import storage
from stereo_core.errors import UserError
from stereo_core.storage.transfers import MOMENT, leave

LOG = logging.getLogger(__name__)

PAUSE = 2.0  # s between two looks at the results, or 20 times what a look takes
GROWTH = 1.25  # a log that is written to goes up again once it has grown so much
CHECKPOINTS = "model_epoch_"  # what training removes (train.keep_checkpoints), and nothing else, is removed there too

_Version = tuple[str, int, int, int]
"""Where a link leads, inode, size, time of the last change."""


class Mirror:
    """Stores the files of folders under URIs, each when it is there or has changed.

    Files here get their names when they are whole, only logs grow; so what has a name can be stored at any time. Links
    within a folder are stored after what they lead to, as copies that the storage makes, and status.json last.

    Args:
        folders: folder on this machine -> URI of a prefix.
    """

    def __init__(self, folders: dict[Path, str]) -> None:
        self.folders = folders
        self.stored: dict[Path, _Version] = {}

    def uri_of(self, path: Path) -> str:
        """Where a file of the folders is stored."""
        folder = next(folder for folder in self.folders if path.is_relative_to(folder))
        return f"{self.folders[folder]}/{path.relative_to(folder).as_posix()}"

    def know(self, path: Path) -> None:
        """Take a file to be stored as it is."""
        self.stored[path] = _version(path)

    def store(self, *, growing: bool = False) -> None:
        """Store what is new or has changed; with `growing` logs only where they have grown by much.

        Raises:
            StorageError, DataError: as storage.upload.
        """
        for path in self._files():
            with contextlib.suppress(FileNotFoundError):  # removed since it was listed
                self._store(path, growing)
        for path in [path for path in self.stored if path.name.startswith(CHECKPOINTS)]:
            if path.parent.is_dir() and not path.is_file():
                storage.remove(self.uri_of(path))
                del self.stored[path]

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Store what there is now, and then what is written for as long as the context lasts.

        Raises:
            StorageError, DataError: nothing can be stored, so that a long run need not begin. Later failures are
                warnings: `store` at the end tries again.
        """
        self.store(growing=True)
        ended = threading.Event()
        thread = threading.Thread(target=self._go_on, args=(ended,), name="mirror", daemon=True)
        thread.start()
        limit: float | None = MOMENT  # a signal's sender does not wait for a slow server
        try:
            yield
            limit = None
        except Exception:
            limit = None
            raise
        finally:
            ended.set()
            thread.join(limit)
            if thread.is_alive():
                leave(thread.join)

    def _go_on(self, ended: threading.Event) -> None:
        said, pause = "", PAUSE
        while not ended.wait(pause):
            start = time.monotonic()
            try:
                self.store(growing=True)
            except (OSError, UserError) as error:
                if str(error) != said:
                    LOG.warning("Results are not stored for now: %s", error)
                said = str(error)
            pause = max(PAUSE, 20 * (time.monotonic() - start))

    def _files(self) -> list[Path]:
        """The files, in the order in which they are stored."""
        files = [
            path
            for folder in self.folders
            for path in folder.rglob("*")
            if path.is_file() and not any(part.startswith(".") for part in path.relative_to(folder).parts)
        ]
        return sorted(files, key=lambda path: (path.name == "status.json", path.is_symlink(), path))

    def _is_due(self, path: Path, version: _Version, growing: bool) -> bool:
        before = self.stored.get(path)
        if before is None or not growing or path.name == "status.json":
            return version != before
        return version[:2] != before[:2] or not before[2] <= version[2] <= GROWTH * before[2]

    def _store(self, path: Path, growing: bool) -> None:
        """Store one file, where it is due. What a link leads to goes first: it may be newer than the list of files."""
        version = _version(path)
        if not self._is_due(path, version, growing):
            return
        target = Path(os.path.normpath(path.parent / version[0]))
        if version[0] and any(target.is_relative_to(folder) for folder in self.folders):
            self._store(target, growing)
            storage.copy(self.uri_of(target), self.uri_of(path))
        else:
            storage.upload(path, self.uri_of(path))
        self.stored[path] = version


def _version(path: Path) -> _Version:
    leads_to, status = os.readlink(path) if path.is_symlink() else "", path.stat()
    return leads_to, status.st_ino, status.st_size, status.st_mtime_ns
