"""What ended a run, as Kubernetes shows it and as a person or a retry policy reads it: the termination message."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from stereo_core.errors import DataError, ModelError, UserError, is_gpu_error

FILE = "/dev/termination-log"  # Kubernetes puts it into each container; STEREO_TERMINATION_LOG names another
BYTES = 4096  # more, Kubernetes cuts off


class Terminated(BaseException):
    """SIGTERM arrived. Not an Exception, so that no handler for ordinary errors takes it for one."""


@contextlib.contextmanager
def sigterm_raises(received: list[int]) -> Iterator[None]:
    """SIGTERM raises Terminated, so that files are closed and the status is written. Only the main thread can.

    The signal is also noted in `received`.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: Any) -> None:
        received.append(number)
        raise Terminated("SIGTERM")

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def explain(error: BaseException, reason: str) -> None:
    """Write `<class>: <reason>` to the termination message, where there is a file for it that can be written."""
    path = Path(os.environ.get("STEREO_TERMINATION_LOG", FILE))
    if path.exists() and os.access(path, os.W_OK):
        path.write_bytes(f"{error_class(error)}: {reason}\n".encode()[:BYTES])


def error_class(error: BaseException) -> str:
    """user error, data error (a model file's too), GPU error, interruption or failure."""
    if isinstance(error, DataError | ModelError):
        return "data error"
    if isinstance(error, UserError):
        return "user error"
    if not isinstance(error, Exception):  # Ctrl-C, SIGTERM
        return "interruption"
    return "GPU error" if is_gpu_error(error) else "failure"
