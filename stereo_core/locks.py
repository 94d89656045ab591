"""The one file lock: of one process at a time, and gone with the process, however it ends."""

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
"""What file systems without locks answer: NFS without its lock service, Lustre without flock, some FUSE mounts."""

_open: set[int] = set()  # descriptors of locks of this process alone


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
    """Hold the lock file `path`, which is made where it is not there, its folder too; yields its descriptor.

    Processes that this one forks (a data loader's, say) do not hold it, unless it is `shared`.

    Args:
        wait: seconds to wait for another holder; 0 tries once.
        waiting: logged once, where another holds it and there is time to wait.
        busy: raised where another still holds it then. Whoever gives a `wait` gives this too.
        vital: two holders would destroy data, so that a file system without locks will not do; else a warning says so.
        shared: processes that this one forks, or starts with the descriptor (pass_fds), hold it too, for as long as
            they live; so the file stays. Else it is removed.

    Raises:
        UserError: `vital`, and the file system has no locks.
        OSError: the file can not be made.
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
    """Whether a process holds the lock file. Who tries to take it meanwhile has to try again a moment later.

    Raises:
        OSError: the file is there and can not be read.
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
    """Open for writing: NFS has no exclusive lock for a file that is only read (EBADF)."""
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    if not shared:
        _open.add(handle)
    try:
        yield handle
    finally:
        if shared or handle in _open:  # in a forked process it is closed already
            _open.discard(handle)
            os.close(handle)


def _is_taken(handle: int, path: Path, vital: bool) -> bool:
    """Try to lock; a file that the holder before has removed meanwhile is no lock for those who come after."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        if vital:
            raise UserError(
                f"{path.parent}: this file system has no file locks ({os.strerror(error.errno)}), and two runs that "
                "write there at once would destroy each other's files; choose a folder on another file system"
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
    """Once a folder."""
    LOG.warning("%s: this file system has no file locks (%s); see to it that one run at a time uses it", folder, reason)
