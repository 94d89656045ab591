"""Warnings in the log of a run -> its record, where pages, tables and reports find them."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator

from stereo_core.run.status import StatusLog


class _Collector(logging.Handler):
    def __init__(self, status: StatusLog, told: Callable[[str], str]) -> None:
        super().__init__(logging.WARNING)
        self.status, self.told = status, told

    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno != logging.WARNING:  # an error ends the run, and its last line says it
            return
        try:
            self.status.warning(self.told(record.getMessage()))
        except OSError:
            self.handleError(record)


@contextlib.contextmanager
def collected(status: StatusLog, told: Callable[[str], str] = str) -> Iterator[None]:
    """While it lasts, what our loggers warn of becomes lines of status.json, each once.

    Args:
        told: gives a text with the names that the user knows.
    """
    logger, handler = logging.getLogger("stereo_core"), _Collector(status, told)
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        status.count_more()
