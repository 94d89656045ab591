"""Parallel transfers: their threads, how a signal ends them, and their progress bar."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterable, Iterator
from multiprocessing.pool import ThreadPool
from typing import Any

from stereo_core.progress import MEGABYTE, bars

PART = 16 * 2**20  # bytes
PARALLEL = 4  # parts, or small objects, at the same time
MOMENT = 3.0  # s that transfers get to end when a signal arrives

leaving = threading.Event()
"""While set, transfers end at their next chunk, request or pause."""


def go_on() -> None:
    """Raise urllib3's HTTPError if transfers are to end."""
    from urllib3.exceptions import HTTPError

    if leaving.is_set():
        raise HTTPError("the run is being stopped")


def leave(wait: Callable[[float], Any]) -> None:
    """End the transfers of all threads. `wait(seconds)` must return when they have ended or the time is over."""
    leaving.set()
    try:
        wait(MOMENT)
    finally:
        leaving.clear()


def side_by_side(work: Callable[[Any], Any], items: Iterable[Any]) -> list[Any]:
    """Results of `work` for each item, PARALLEL at a time. After the first failure no further item is started.

    A signal ends the running ones too. A thread that waits for a silent server is abandoned: it ends with the process.
    """
    failed = threading.Event()

    def one(item: Any) -> Any:
        if failed.is_set():
            return None
        try:
            return work(item)
        except BaseException:
            failed.set()
            raise

    with ThreadPool(PARALLEL) as pool:
        results = pool.map_async(one, items, chunksize=1)
        try:
            return results.get()
        finally:
            if not results.ready():  # a signal
                failed.set()
                leave(results.wait)


@contextlib.contextmanager
def progress(uri: str, size: int, least: int = PART) -> Iterator[Callable[[int], None]]:
    """A progress bar (or log lines) for more than `least` bytes; yields a function to call with each byte count."""
    if size <= least or threading.current_thread() is not threading.main_thread():
        yield lambda count: None
        return
    from rich.progress import BarColumn, DownloadColumn, TimeRemainingColumn, TransferSpeedColumn

    columns = ("{task.description}", BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with bars(*columns) as bar:
        task = bar.add_task(uri.rstrip("/").rpartition("/")[2], total=size, unit=MEGABYTE)
        yield lambda count: bar.advance(task, count)
