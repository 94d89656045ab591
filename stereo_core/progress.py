"""Where a long action is: bars on a terminal, a log line every half minute where there is none."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress, ProgressColumn, Task

LOG = logging.getLogger(__name__)

SECONDS = 30.0  # between two lines
MEGABYTE = 1e6

_tellers: list[Callable[[], str]] = []
"""Who can say where the work is. The innermost, the last one, speaks for all."""
_running = threading.Event()
"""Set while a thread asks them."""


@contextlib.contextmanager
def heartbeat(tell: Callable[[], str], say: Callable[[str], None] = LOG.info) -> Iterator[None]:
    """While it lasts, say every SECONDS what `tell` of the innermost heartbeat gives; an empty text is not said.

    Args:
        tell: where the work is; called from a thread of its own.
        say: where the lines go; that of the outermost heartbeat counts.
    """
    _tellers.append(tell)
    try:
        with contextlib.nullcontext() if _running.is_set() else _beating(say):
            yield
    finally:
        _tellers.remove(tell)


@contextlib.contextmanager
def _beating(say: Callable[[str], None]) -> Iterator[None]:
    ended = threading.Event()

    def beat() -> None:
        while not ended.wait(SECONDS):
            if text := _tellers[-1]():
                say(text)

    thread = threading.Thread(target=beat, name="heartbeat", daemon=True)
    thread.start()
    _running.set()
    try:
        yield
    finally:
        _running.clear()
        ended.set()
        thread.join()


@contextlib.contextmanager
def bars(*columns: str | ProgressColumn) -> Iterator[Progress]:
    """rich's bars on stderr, gone at the end, where that is a terminal; else log lines that say the same.

    A task with a field `unit=MEGABYTE` counts bytes.
    """
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    shown = console.is_terminal
    with (
        Progress(*columns, console=console, transient=True, disable=not shown) as progress,
        heartbeat(lambda: "" if shown else _words(progress.tasks)),
    ):
        yield progress


def _words(tasks: list[Task]) -> str:
    """The counts of all tasks, since when the first goes on, and where there is but one for how long still."""
    if not tasks:
        return ""
    elapsed, first = tasks[0].elapsed or 0.0, tasks[0]
    text = f"{', '.join(map(_count, tasks))}; {lasting(elapsed)} so far"
    if len(tasks) > 1 or not first.completed or not first.remaining:
        return text
    return f"{text}, about {lasting(elapsed / first.completed * first.remaining)} to go"


def _count(task: Task) -> str:
    unit = task.fields.get("unit", 1)
    of = f": {task.completed / unit:.0f} of {task.total / unit:.0f}" if task.total is not None else ""
    return f"{task.description}{of}{' MB' if unit == MEGABYTE else ''}"


def lasting(seconds: float) -> str:
    """A time as h:mm:ss."""
    return str(timedelta(seconds=round(seconds)))


def since(start: float) -> str:
    """The time since `start` of time.monotonic, as h:mm:ss."""
    return lasting(time.monotonic() - start)
