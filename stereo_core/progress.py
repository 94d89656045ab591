"""Progress of a long action: bars on a terminal, otherwise a log line every 30 seconds."""

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

SECONDS = 30.0  # between two log lines
MEGABYTE = 1e6

_descriptions: list[Callable[[], str]] = []
"""The progress texts of all open heartbeats. Only the innermost (last) one is logged."""
_running = threading.Event()
"""Set while the logging thread runs."""


@contextlib.contextmanager
def heartbeat(describe: Callable[[], str], write: Callable[[str], None] = LOG.info) -> Iterator[None]:
    """Log a progress text every SECONDS inside the `with` block. Of nested heartbeats the innermost gives the text.

    Args:
        describe: returns the progress text; called from another thread. An empty text is not logged.
        write: receives each line; only the outermost heartbeat's counts.
    """
    _descriptions.append(describe)
    try:
        with contextlib.nullcontext() if _running.is_set() else _beating(write):
            yield
    finally:
        _descriptions.remove(describe)


@contextlib.contextmanager
def _beating(write: Callable[[str], None]) -> Iterator[None]:
    ended = threading.Event()

    def beat() -> None:
        while not ended.wait(SECONDS):
            if text := _descriptions[-1]():
                write(text)

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
    """rich's progress bars on stderr if that is a terminal, otherwise log lines with the same content.

    The bars disappear at the end. A task with a field `unit=MEGABYTE` counts bytes.
    """
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    shown = console.is_terminal
    with (
        # without auto_refresh `track` counts itself; with it a thread counts, which ends at once where nothing is shown
        Progress(*columns, console=console, transient=True, disable=not shown, auto_refresh=shown) as progress,
        heartbeat(lambda: "" if shown else _words(progress.tasks)),
    ):
        yield progress


def _words(tasks: list[Task]) -> str:
    """The counts of all tasks and the time so far; with a single task also the estimated time left."""
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
    """A duration as h:mm:ss."""
    return str(timedelta(seconds=round(seconds)))


def since(start: float) -> str:
    """The time since `start` (of time.monotonic) as h:mm:ss."""
    return lasting(time.monotonic() - start)
