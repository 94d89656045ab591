"""Copies a run's logged warnings into status.json, where pages, tables and reports find them."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator

from stereo_core.run.status import StatusLog


class _Collector(logging.Handler):
    def __init__(self, status: StatusLog, reword: Callable[[str], str]) -> None:
        super().__init__(logging.WARNING)
        self.status, self.reword = status, reword

    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno != logging.WARNING:  # an error ends the run and becomes its last line
            return
        try:
            self.status.warning(self.reword(record.getMessage()))
        except OSError:
            self.handleError(record)


@contextlib.contextmanager
def collected(status: StatusLog, reword: Callable[[str], str] = str) -> Iterator[None]:
    """Inside the `with` block, each warning of this library's loggers is also written to status.json, once.

    Args:
        reword: replaces local paths in a text by the user's names.
    """
    logger, handler = logging.getLogger("stereo_core"), _Collector(status, reword)
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        status.count_more()
