"""Objects as files of a cache on this machine, which keeps to its size, and as files of a run's own."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import math
import os
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from stereo_core.errors import DataError
from stereo_core.files import atomic_path, locked
from stereo_core.locks import is_held
from stereo_core.storage.client import StorageError, endpoint
from stereo_core.storage.objects import Entry, Objects
from stereo_core.storage.transfers import progress, side_by_side
from stereo_core.storage.uris import split

UNTOUCHED = 946684800  # 2000-01-01: when a file of the cache was changed last, until a program writes to it
PROCESSES = 64  # that may fetch at once without the cache growing over its limit


class Cache:
    """Objects that were fetched, as files in `cache_folder()`, for all processes of this machine."""

    def __init__(self, objects: Objects) -> None:
        self._objects = objects
        self._room = (
            0  # bytes that may be fetched before a look through the cache: this process's share of what is free
        )
        self._sweeping = threading.Lock()

    def fetch(self, uri: str) -> Path:
        """The object as a file of the cache, whose name says nothing. It may be evicted once others are fetched.

        Raises:
            DataError: as `look`, or the object is larger than the cache may be.
            StorageError: the transfer failed again and again, the object changed during the run or is damaged, or there
                is no room on the disk.
        """
        entry = self._objects.look(uri)
        target = _place(uri, entry)
        try:
            if not _is_whole(target, entry):
                with locked(target):
                    if not _is_whole(target, entry):
                        self._make_room(uri, entry.size)
                        self._fill(target, uri, entry)
            with contextlib.suppress(OSError):  # evicted just now, another user's, or a cache that is only read
                os.utime(target, (time.time(), UNTOUCHED))
        except OSError as error:
            if isinstance(error, StorageError):
                raise
            raise StorageError(f"{uri}: can not be written to the cache {cache_folder()}: {error.strerror}") from None
        return target

    def read(self, uri: str) -> bytes:
        """The object's contents, through the cache. Raises as `fetch`."""
        while True:
            with contextlib.suppress(FileNotFoundError):  # evicted by another process just now
                return self.fetch(uri).read_bytes()

    def fetch_to(self, uri: str, path: Path, *, own: bool = False) -> Path:
        """The object at a path of its own, which an eviction does not touch: a link into the cache, or a copy.

        With `own` it is always a copy, so that it may be written to.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        while True:
            with contextlib.suppress(FileNotFoundError):
                source = self.fetch(uri)
                if own or not _linked(source, path):
                    with atomic_path(path) as temporary:
                        shutil.copyfile(source, temporary)
                return path

    def fetch_tree(self, uri: str, folder: Path, *, own: bool = False) -> dict[str, Entry]:
        """All objects below a prefix, as files in a folder (see `fetch_to`); returns what they are.

        Raises:
            DataError: nothing is there; or as `fetch`.
            StorageError: as `fetch`.
        """
        found = self._objects.tree(uri)
        for name in found:
            split(f"{uri.rstrip('/')}/{name}")  # refuses parts that lead out of the folder
        size = sum(entry.size for entry in found.values())
        with progress(uri, size, self._objects.part) as advance:

            def fetch_one(name: str) -> None:
                self.fetch_to(f"{uri.rstrip('/')}/{name}", folder / name, own=own)
                advance(found[name].size)

            side_by_side(fetch_one, found)
        return found

    def _fill(self, target: Path, uri: str, entry: Entry) -> None:
        try:
            self._fetch_whole(target, uri, entry)
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            sweep(limit(), entry.size)  # others have filled the disk before the cache was at its limit
            self._fetch_whole(target, uri, entry)

    def _fetch_whole(self, target: Path, uri: str, entry: Entry) -> None:
        with atomic_path(target) as temporary:
            self._objects.download(uri, entry, temporary)
            os.utime(temporary, (time.time(), UNTOUCHED))

    def _make_room(self, uri: str, size: int) -> None:
        """Evict what was not used for longest, where the cache may be full."""
        most = limit()
        if size > 0.9 * most:
            raise DataError(f"{uri}: {size} bytes do not go into the cache of {most} bytes; raise STEREO_CACHE_GIB")
        with self._sweeping:
            self._room -= size
            if self._room < 0:
                self._room = (most - size - sweep(int(0.9 * most) - size)) // PROCESSES


def cache_folder() -> Path:
    """STEREO_CACHE, else `stereo-pipelines` in the user's cache folder."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("STEREO_CACHE") or Path(home, "stereo-pipelines"))


def limit() -> int:
    """Bytes that the cache may hold: STEREO_CACHE_GIB, else 50 GiB."""
    text = os.environ.get("STEREO_CACHE_GIB") or "50"
    try:
        size = float(text)
    except ValueError:
        size = math.nan
    if not 0 < size < math.inf:
        raise DataError(f"STEREO_CACHE_GIB={text}: not a size in GiB")
    return int(size * 2**30)


def sweep(limit: int, room: int = 0) -> int:
    """Evict until the cache holds `limit` bytes at most and `room` less than now; returns what it holds."""
    files = sorted(_files(), key=lambda file: (file[1].st_atime, file[1].st_size))
    total = sum(status.st_size for _, status in files)
    limit = min(limit, total - room)
    for path, status in files:
        if total <= limit:
            break
        if _is_being_filled(path):
            continue
        path.unlink(missing_ok=True)
        total -= status.st_size
    return total


def _place(uri: str, entry: Entry) -> Path:
    """Where an object of these contents lies in the cache."""
    bucket, key = split(uri)
    name = hashlib.sha256(f"{endpoint()}\n{bucket}\n{key}\n{entry.etag}".encode()).hexdigest()
    return cache_folder() / "objects" / name[:2] / name


def _is_whole(path: Path, entry: Entry) -> bool:
    """Whether the object is there as it was fetched: what another program writes to it changes size or time."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return False
    return (status.st_size, status.st_mtime) == (entry.size, UNTOUCHED)


def _files() -> Iterator[tuple[Path, os.stat_result]]:
    """What takes room in the cache, unfinished files too."""
    for path in (cache_folder() / "objects").glob("*/*"):
        with contextlib.suppress(FileNotFoundError):
            if path.suffix != ".lock":
                yield path, path.stat()


def _is_being_filled(path: Path) -> bool:
    """Whether a file is the unfinished one (see atomic_path) of a process that holds the lock of the whole one.

    One that a killed process left is nobody's.
    """
    return path.name.startswith(".") and is_held(path.with_name(f"{path.stem.removeprefix('.')}.lock"))


def _linked(source: Path, path: Path) -> bool:
    """Make `path` a hard link; False where the file system has none, or is another."""
    try:
        os.link(source, path)
    except FileNotFoundError:
        raise
    except OSError:
        return False
    return True
