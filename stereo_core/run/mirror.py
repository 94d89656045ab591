"""Copies results to object storage while a run writes them, and once more when the run ends."""

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

PAUSE = 2.0  # s between two scans of the results; at least 20 times the duration of a scan
GROWTH = 1.25  # a growing log is uploaded again once it has grown by this factor
CHECKPOINTS = "model_epoch_"  # checkpoints that training removes (train.keep_checkpoints) are removed there too

_Version = tuple[str, int, int, int]
"""Target of a link (else ""), inode, size, time of the last change."""


class Mirror:
    """Uploads new and changed files of local folders to object storage.

    Files are written atomically and only logs grow, so every visible file can be uploaded at any time. A link is
    stored after its target, as a server-side copy. status.json is stored last.

    Args:
        folders: folder on this machine -> URI prefix.
    """

    def __init__(self, folders: dict[Path, str]) -> None:
        self.folders = folders
        self.stored: dict[Path, _Version] = {}

    def uri_of(self, path: Path) -> str:
        """The URI under which a local file is stored."""
        folder = next(folder for folder in self.folders if path.is_relative_to(folder))
        return f"{self.folders[folder]}/{path.relative_to(folder).as_posix()}"

    def know(self, path: Path) -> None:
        """Mark a file as stored in its present version."""
        self.stored[path] = _version(path)

    def store(self, *, growing: bool = False) -> None:
        """Upload new and changed files. With `growing`, upload a log only if it has grown by the factor GROWTH.

        Raises:
            StorageError, DataError: see storage.upload.
        """
        for path in self._files():
            with contextlib.suppress(FileNotFoundError):  # removed after it was listed
                self._store(path, growing)
        for path in [path for path in self.stored if path.name.startswith(CHECKPOINTS)]:
            if path.parent.is_dir() and not path.is_file():
                storage.remove(self.uri_of(path))
                del self.stored[path]

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Upload the files that exist now, and then keep uploading inside the `with` block.

        Raises:
            StorageError, DataError: the first upload failed, so a long run need not start. Later failures are only
                warnings: `store` tries again at the end.
        """
        self.store(growing=True)
        ended = threading.Event()
        thread = threading.Thread(target=self._go_on, args=(ended,), name="mirror", daemon=True)
        thread.start()
        limit: float | None = MOMENT  # after a signal, do not wait for a slow server
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
        reported, pause = "", PAUSE
        while not ended.wait(pause):
            start = time.monotonic()
            try:
                self.store(growing=True)
            except (OSError, UserError) as error:
                if str(error) != reported:
                    LOG.warning("Uploading results failed; the run goes on and tries again: %s", error)
                reported = str(error)
            pause = max(PAUSE, 20 * (time.monotonic() - start))

    def _files(self) -> list[Path]:
        """The files in upload order."""
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
        """Upload one file if it is due. A link's target goes first: it may be newer than the list of files."""
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
