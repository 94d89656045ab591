"""The termination message: why a run ended, as Kubernetes shows it to people and to retry policies."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from stereo_core.errors import DataError, ModelError, UserError, is_gpu_error

FILE = "/dev/termination-log"  # Kubernetes mounts it into each container; STEREO_TERMINATION_LOG overrides it
BYTES = 4096  # Kubernetes cuts longer messages


class Terminated(BaseException):
    """SIGTERM arrived. Not an Exception, so that handlers of ordinary errors do not catch it."""


@contextlib.contextmanager
def sigterm_raises() -> Iterator[None]:
    """SIGTERM raises Terminated, so that files are closed and the status is written. Works in the main thread only."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    received: list[int] = []

    def stop(number: int, frame: Any) -> None:
        received.append(number)
        raise Terminated("SIGTERM")

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    except BaseException as error:
        if received and not isinstance(error, Terminated):  # a library, e.g. during its import, replaced it
            raise Terminated("SIGTERM") from error
        raise
    finally:
        signal.signal(signal.SIGTERM, before)


def explain(error: BaseException, reason: str) -> None:
    """Write `<class>: <reason>` to the termination message file, if there is one and it is writable."""
    path = Path(os.environ.get("STEREO_TERMINATION_LOG", FILE))
    if path.exists() and os.access(path, os.W_OK):
        path.write_bytes(f"{error_class(error)}: {reason}\n".encode(errors="replace")[:BYTES])


def error_class(error: BaseException) -> str:
    """One of: user error, data error (also for model files), GPU error, interruption, failure."""
    if isinstance(error, DataError | ModelError):
        return "data error"
    if isinstance(error, UserError):
        return "user error"
    if not isinstance(error, Exception):  # Ctrl-C, SIGTERM
        return "interruption"
    return "GPU error" if is_gpu_error(error) else "failure"
