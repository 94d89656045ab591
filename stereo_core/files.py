"""Files that are either whole or absent, their names and digests."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import logging
import os
import tempfile
from collections.abc import Callable, Iterator
from multiprocessing.pool import ThreadPool
from pathlib import Path

from stereo_core.cores import usable_cores

LOG = logging.getLogger(__name__)


@contextlib.contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it is synced and renamed to `path`, on any error removed.

    The parent folder is created. The suffix is kept, so that libraries which choose a format by it do the right thing.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}.", suffix=path.suffix)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def locked(path: str | Path) -> Iterator[None]:
    """Hold the lock file `path`.lock, for work on `path` that two processes must not do at once; the second waits.

    The lock goes with the process, however it ends, so that none is left that nobody holds.
    """
    lock = Path(f"{path}.lock")
    lock.parent.mkdir(parents=True, exist_ok=True)
    while True:
        with lock.open("ab") as file:
            _wait_for(file, path)
            if not _is_at(file, lock):  # the holder before us removed it: a lock on it is worth nothing
                continue
            try:
                yield
            finally:
                lock.unlink(missing_ok=True)
            return


class UniqueNames:
    """File names that never collide: the second `a` becomes `a-2`, the third `a-3`."""

    def __init__(self) -> None:
        self._used: set[str] = set()

    def __call__(self, name: str) -> str:
        candidate, count = name, 1
        while candidate in self._used:
            count += 1
            candidate = f"{name}-{count}"
        self._used.add(candidate)
        return candidate


def _wait_for(file, path: str | Path) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        LOG.info("%s is being written by another process; waiting for it", path)
        fcntl.flock(file, fcntl.LOCK_EX)


def _is_at(file, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def sha256_of(path: str | Path, of_file: Callable[[Path], str] | None = None) -> str:
    """Hex digest of a file, or of a folder (over the sorted relative names and contents of its files).

    Files of a folder are read side by side. `of_file` gives a file's digest where the caller may know it already.
    """
    path, of_file = Path(path), of_file or _sha256_of_file
    if path.is_file():
        return of_file(path)
    files = sorted(p for p in path.rglob("*") if p.is_file())
    digest = hashlib.sha256()
    with ThreadPool(usable_cores()) as pool:
        for file, content in zip(files, pool.imap(of_file, files), strict=True):
            digest.update(f"{file.relative_to(path).as_posix()}\0{content}\n".encode())
    return digest.hexdigest()


def _sha256_of_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def size_of(path: Path) -> int:
    """Bytes of a file, or of all files below a folder."""
    return path.stat().st_size if path.is_file() else sum(p.stat().st_size for p in path.rglob("*") if p.is_file())
