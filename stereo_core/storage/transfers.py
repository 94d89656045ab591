"""Threads that move data side by side, and how they end when a signal arrives."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from multiprocessing.pool import ThreadPool
from typing import Any

PARALLEL = 4  # parts, or small objects, at once
MOMENT = 3.0  # s that transfers have to end when a signal arrives

leaving = threading.Event()
"""Set for a moment: transfers end at their next chunk, request or pause."""


def leave(wait: Callable[[float], Any]) -> None:
    """End the transfers of all threads; `wait` returns when they have ended or the seconds it is given are over."""
    leaving.set()
    try:
        wait(MOMENT)
    finally:
        leaving.clear()


def side_by_side(work: Callable[[Any], Any], items: Iterable) -> list:
    """What `work` gives for each item, PARALLEL at once; the first failure ends those that have not begun.

    A signal ends the others too. Those that wait for a server that says nothing are left behind: their threads go with
    the process.
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
