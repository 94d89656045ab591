"""Read and write in threads while the caller computes: in order, and with few items in memory."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

from stereo_core.cores import usable_cores

Item = TypeVar("Item")
Result = TypeVar("Result")

MOST_THREADS = 8  # each holds an image and its results
WAITING = 2  # items prepared in advance for a thread or the caller
_END: Any = object()


def ahead(items: Iterable[Item]) -> Iterator[Item]:
    """The items in order, read in a thread up to WAITING items in advance.

    The first item is read in the caller's thread, where a loader that has not started its processes can do so. If an
    item cannot be read, its error is raised in its place.
    """
    iterator, pool = iter(items), ThreadPoolExecutor(1, "ahead")
    taken: deque[Future[Any]] = deque()
    try:
        item = next(iterator, _END)
        while item is not _END:
            while len(taken) < WAITING:
                taken.append(pool.submit(next, iterator, _END))
            yield item
            item = taken.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def mapped(function: Callable[[Item], Result], items: Iterable[Item], threads: int | None = None) -> Iterator[Result]:
    """`function(item)` of every item, in the items' order, computed in threads.

    Items are read in the caller's thread. At most threads + WAITING of them are in progress or finished but not yet
    consumed. If `items` or a function raises an error, the items read before it are finished, and their results come
    first.

    Args:
        threads: number of threads; None: the number of cores, at most MOST_THREADS.
    """
    threads = threads or min(usable_cores(), MOST_THREADS)
    in_hand: deque[Future[Result]] = deque()
    failed: list[Exception] = []
    with ThreadPoolExecutor(threads, "mapped") as pool:
        for item in _until_an_error(items, failed):
            in_hand.append(pool.submit(function, item))
            del item  # only the thread holds it, and only while it works on it
            while in_hand and (len(in_hand) >= threads + WAITING or in_hand[0].done()):
                yield in_hand.popleft().result()
        while in_hand:
            yield in_hand.popleft().result()
    if failed:
        raise failed[0]


def _until_an_error(items: Iterable[Item], failed: list[Exception]) -> Iterator[Item]:
    try:
        yield from items
    except Exception as error:
        failed.append(error)
