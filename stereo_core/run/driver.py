"""Initialise NVIDIA's driver without PyTorch."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from threading import Thread


def init_driver() -> None:
    """Initialise the driver, if there is one. It takes up to a second, in which other threads can run.

    PyTorch would hold the interpreter's lock meanwhile.
    """
    with suppress(OSError):
        ctypes.CDLL("libcuda.so.1").cuInit(0)


@contextmanager
def driver_started() -> Iterator[None]:
    """Initialise the driver while the block runs. Afterwards no thread is left: processes may be forked.

    If the block raises an error, such as Ctrl-C, nothing waits for the driver: one that is out of order may hang.
    """
    thread = Thread(target=init_driver, name="driver", daemon=True)
    thread.start()
    yield
    thread.join()
