"""A local cache of objects with a size limit, and copies of objects at paths of a run."""

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

UNTOUCHED = 946684800  # 2000-01-01: mtime of every cached file; another mtime means that a program wrote to it
PROCESSES = 64  # may fetch at the same time without exceeding the cache's limit


class Cache:
    """Fetched objects as files in `cache_folder()`, shared by all processes of this machine."""

    def __init__(self, objects: Objects) -> None:
        self._objects = objects
        self._room = 0  # bytes that this process may fetch before it scans the cache again: its share of the free space
        self._sweeping = threading.Lock()

    def fetch(self, uri: str) -> Path:
        """The object as a file in the cache, under a hashed name. Later fetches may evict it.

        Raises:
            DataError: see `look`; or the object is larger than the cache's limit.
            StorageError: the transfer failed repeatedly, the object changed during the run or is damaged, or the disk
                is full.
        """
        entry = self._objects.look(uri)
        target = _place(uri, entry)
        try:
            if not _is_whole(target, entry):
                with locked(target):
                    if not _is_whole(target, entry):
                        self._make_room(uri, entry.size)
                        self._fill(target, uri, entry)
            with contextlib.suppress(OSError):  # evicted just now, another user's, or a read-only cache
                os.utime(target, (time.time(), UNTOUCHED))
        except OSError as error:
            if isinstance(error, StorageError):
                raise
            raise StorageError(
                f"{uri}: cannot be written to the cache {cache_folder()}: {error.strerror}; free space there, or set "
                "STEREO_CACHE to another folder"
            ) from None
        return target

    def read(self, uri: str) -> bytes:
        """The object's contents, through the cache. Raises the errors of `fetch`."""
        while True:
            with contextlib.suppress(FileNotFoundError):  # evicted by another process just now
                return self.fetch(uri).read_bytes()

    def fetch_to(self, uri: str, path: Path, *, own: bool = False) -> Path:
        """Fetch the object to `path`, safe from eviction: a hard link into the cache, or a copy.

        With `own` it is always a copy, so that it may be modified.
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
        """Fetch all objects below a prefix into a folder (see `fetch_to`); returns name -> entry.

        Raises:
            DataError: there is no object below the prefix; or see `fetch`.
            StorageError: see `fetch`.
        """
        found = self._objects.tree(uri)
        for name in found:
            split(f"{uri.rstrip('/')}/{name}")  # refuses names that lead out of the folder
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
            sweep(limit(), entry.size)  # other programs filled the disk before the cache reached its limit
            self._fetch_whole(target, uri, entry)

    def _fetch_whole(self, target: Path, uri: str, entry: Entry) -> None:
        with atomic_path(target) as temporary:
            self._objects.download(uri, entry, temporary)
            os.utime(temporary, (time.time(), UNTOUCHED))

    def _make_room(self, uri: str, size: int) -> None:
        """Evict the least recently used objects if the cache may be full."""
        most = limit()
        if size > 0.9 * most:
            raise DataError(f"{uri}: {size} bytes do not fit into the cache of {most} bytes; raise STEREO_CACHE_GIB")
        with self._sweeping:
            self._room -= size
            if self._room < 0:
                self._room = (most - size - sweep(int(0.9 * most) - size)) // PROCESSES


def cache_folder() -> Path:
    """The cache's folder: STEREO_CACHE, or `stereo-pipelines` in the user's cache folder."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("STEREO_CACHE") or Path(home, "stereo-pipelines"))


def limit() -> int:
    """The cache's limit in bytes: STEREO_CACHE_GIB, or 50 GiB."""
    text = os.environ.get("STEREO_CACHE_GIB") or "50"
    try:
        size = float(text)
    except ValueError:
        size = math.nan
    if not 0 < size < math.inf:
        raise DataError(f"STEREO_CACHE_GIB={text}: not a size in GiB; expected a number above 0, such as 50")
    return int(size * 2**30)


def sweep(limit: int, room: int = 0) -> int:
    """Evict until the cache holds at most `limit` bytes and `room` bytes less than now; returns its size."""
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
    """The cache path of this version of an object."""
    bucket, key = split(uri)
    name = hashlib.sha256(f"{endpoint()}\n{bucket}\n{key}\n{entry.etag}".encode()).hexdigest()
    return cache_folder() / "objects" / name[:2] / name


def _is_whole(path: Path, entry: Entry) -> bool:
    """Whether the cached file is complete and unchanged: a write by another program changes its size or mtime."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return False
    return (status.st_size, status.st_mtime) == (entry.size, UNTOUCHED)


def _files() -> Iterator[tuple[Path, os.stat_result]]:
    """All files in the cache, including unfinished ones."""
    for path in (cache_folder() / "objects").glob("*/*"):
        with contextlib.suppress(FileNotFoundError):
            if path.suffix != ".lock":
                yield path, path.stat()


def _is_being_filled(path: Path) -> bool:
    """Whether a running process is writing this temporary file (see atomic_path): it holds the final file's lock.

    For a file left by a killed process this is False.
    """
    return path.name.startswith(".") and is_held(path.with_name(f"{path.stem.removeprefix('.')}.lock"))


def _linked(source: Path, path: Path) -> bool:
    """Make `path` a hard link to `source`; False if the file systems differ or have no hard links."""
    try:
        os.link(source, path)
    except FileNotFoundError:
        raise
    except OSError:
        return False
    return True
