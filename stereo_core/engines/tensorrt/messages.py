"""What the libraries say while they work, and how a build is stopped."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from stereo_core.progress import bars as progress_bars

LOG = logging.getLogger(__name__)


def logger(trt: Any, verbose: bool) -> Any:
    """A TensorRT logger that writes to ours and remembers errors for the exceptions they lead to."""

    class Logger(trt.ILogger):  # type: ignore[misc] # of whichever TensorRT
        def __init__(self) -> None:
            super().__init__()
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            level = levels[severity]
            LOG.log(level, "%s", message)
            if level == logging.ERROR:
                self.errors.append(message)

        def said(self) -> str:
            """The errors since the last call."""
            text = "; ".join(self.errors)
            self.errors.clear()
            return text

    chat = logging.INFO if verbose else logging.DEBUG
    levels = {
        trt.ILogger.INTERNAL_ERROR: logging.ERROR,
        trt.ILogger.ERROR: logging.ERROR,
        trt.ILogger.WARNING: logging.WARNING if verbose else logging.DEBUG,
        trt.ILogger.INFO: chat,
        trt.ILogger.VERBOSE: chat,
    }
    return Logger()


def in_a_thread(work: Callable[[], Any], stop: threading.Event) -> Any:
    """Do `work` in a thread of its own; on Ctrl-C or SIGTERM set `stop`, wait for its end and go on with the exception.

    Python runs signal handlers in the main thread alone. Were TensorRT working there, the exception would arise in one
    of its calls back to our logger, and be lost.
    """
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(work)
        try:
            return future.result()
        except BaseException:
            stop.set()
            raise


@contextlib.contextmanager
def progress(trt: Any, stop: threading.Event) -> Iterator[Any]:
    """A progress monitor, which also ends the build once `stop` is set."""

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc] # of whichever TensorRT
        def __init__(self) -> None:
            super().__init__()
            self._tasks: dict[str, Any] = {}

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            # Phases of one name may overlap: they share a bar.
            if phase_name not in self._tasks:
                self._tasks[phase_name] = bars.add_task(phase_name, total=num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            if phase_name in self._tasks:
                bars.update(self._tasks[phase_name], completed=step + 1)
            return not stop.is_set()

        def phase_finish(self, phase_name: str) -> None:
            if phase_name in self._tasks:
                bars.remove_task(self._tasks.pop(phase_name))

    with progress_bars() as bars:
        yield Monitor()
