"""Passes a run's logged warnings on to its record or its page."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator

from stereo_core.run.status import StatusLog


class _Collector(logging.Handler):
    def __init__(self, tell: Callable[[str], None]) -> None:
        super().__init__(logging.WARNING)
        self.tell = tell

    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno != logging.WARNING:  # an error ends the run and becomes its last line
            return
        try:
            self.tell(record.getMessage())
        except OSError:
            self.handleError(record)


@contextlib.contextmanager
def passed_on(tell: Callable[[str], None]) -> Iterator[None]:
    """Inside the `with` block, `tell` receives the text of each warning of this library's loggers."""
    logger, handler = logging.getLogger("stereo_core"), _Collector(tell)
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)


@contextlib.contextmanager
def collected(status: StatusLog, reword: Callable[[str], str] = str) -> Iterator[None]:
    """Inside the `with` block, each warning of this library's loggers is also written to status.json, once. Pages,
    tables and reports read it there.

    Args:
        reword: replaces local paths in a text by the user's names.
    """
    try:
        with passed_on(lambda text: status.warning(reword(text))):
            yield
    finally:
        status.count_more()
