"""Reading and writing in threads beside the work between them: in order, and with few items in memory."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

from stereo_core.cores import usable_cores

Item = TypeVar("Item")
Result = TypeVar("Result")

MOST_THREADS = 8  # each holds an image and what is made of it
WAITING = 2  # items that are ready before a thread, or their user, asks for them
_END: Any = object()


def ahead(items: Iterable[Item]) -> Iterator[Item]:
    """The items in their order, taken in a thread, up to WAITING of them before they are asked for.

    The first is taken in the caller's thread, where a loader can start its processes and watch over them. An error
    comes in the place of the item that was not to be had.
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

    Items are taken in the caller's thread. At most threads + WAITING of them are in hand, at work or done and not asked
    for, whichever side is the slower one. Whatever was taken is finished, also where `items` ends in an error: the
    results before it come first, as they do before the error of a function.

    Args:
        threads: how many; None: as many as there are cores, MOST_THREADS at most.
    """
    threads = threads or min(usable_cores(), MOST_THREADS)
    in_hand: deque[Future[Result]] = deque()
    failed: list[Exception] = []
    with ThreadPoolExecutor(threads, "mapped") as pool:
        for item in _until_an_error(items, failed):
            in_hand.append(pool.submit(function, item))
            del item  # the thread alone holds it, and only as long as it works on it
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
