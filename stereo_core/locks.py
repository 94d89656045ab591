"""The project's only file lock. One process holds it; the system frees it when that process ends, however it ends."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import functools
import logging
import math
import os
import time
from collections.abc import Iterator
from pathlib import Path

from stereo_core.errors import UserError

LOG = logging.getLogger(__name__)

POLL_SECONDS = 0.05
NO_LOCKS = {errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS}
"""Errors of file systems without locks: NFS without its lock service, Lustre without flock, some FUSE mounts."""

_open: set[int] = set()  # descriptors of the locks that are not shared with child processes


def _close_inherited() -> None:
    while _open:
        os.close(_open.pop())


os.register_at_fork(after_in_child=_close_inherited)


@contextlib.contextmanager
def held(
    path: str | Path,
    *,
    wait: float = math.inf,
    waiting: str = "",
    busy: Exception | None = None,
    vital: bool = False,
    shared: bool = False,
) -> Iterator[int]:
    """Hold the lock file `path` and yield its descriptor. The file and its folder are created if missing.

    Processes forked by this one (e.g. data loader workers) do not hold the lock unless it is `shared`.

    Args:
        wait: seconds to wait for another holder; 0 tries once.
        waiting: logged once when another process holds the lock and `wait` allows waiting.
        busy: raised if another process still holds the lock after `wait`. Required if `wait` is given.
        vital: two holders would destroy data: fail on a file system without locks. Otherwise only warn.
        shared: processes that this one forks, or starts with the descriptor (pass_fds), hold the lock too, as long as
            they live. The lock file then stays; otherwise it is removed.

    Raises:
        UserError: the lock is `vital` and the file system has no locks.
        OSError: the file cannot be created.
    """
    path, end = Path(path), time.monotonic() + wait
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        with _opened(path, shared) as handle:
            if _is_taken(handle, path, vital):
                try:
                    yield handle
                finally:
                    if handle in _open:
                        path.unlink(missing_ok=True)
                return
        if busy is not None and time.monotonic() >= end:
            raise busy
        if waiting:
            LOG.info(waiting)
        waiting = ""
        time.sleep(POLL_SECONDS)


def is_held(path: str | Path) -> bool:
    """Whether a process holds the lock file. The check itself takes the lock for a moment: others may have to retry.

    Raises:
        OSError: the file exists and cannot be read.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        _warn_of(path.parent, os.strerror(error.errno))
    return False


@contextlib.contextmanager
def _opened(path: Path, shared: bool) -> Iterator[int]:
    """Open for writing: NFS refuses an exclusive lock on a file opened for reading (EBADF)."""
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    if not shared:
        _open.add(handle)
    try:
        yield handle
    finally:
        if shared or handle in _open:  # a forked process has closed it already
            _open.discard(handle)
            os.close(handle)


def _is_taken(handle: int, path: Path, vital: bool) -> bool:
    """Try to lock. A lock on a file that the previous holder has removed meanwhile does not count."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        if vital:
            raise UserError(
                f"{path.parent}: this file system has no file locks ({os.strerror(error.errno)}). Two runs that write "
                "there at the same time would destroy each other's files; choose a folder on another file system"
            ) from None
        _warn_of(path.parent, os.strerror(error.errno))
        return True
    return _is_at(handle, path)


def _is_at(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except FileNotFoundError:
        return False


@functools.cache
def _warn_of(folder: Path, reason: str) -> None:
    """Warn once for each folder."""
    LOG.warning("%s: this file system has no file locks (%s); make sure that only one run uses it", folder, reason)
