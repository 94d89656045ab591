"""Log messages and progress of the libraries, and how to stop a build."""

from __future__ import annotations

import contextlib
import functools
import logging
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from stereo_core.progress import bars as progress_bars

LOG = logging.getLogger(__name__)


def logger(trt: Any, verbose: bool) -> Any:
    """The process's one TensorRT logger: it writes to ours and collects errors for exceptions, here from none.

    All TensorRT objects of a process must share one logger: it is "internally considered a singleton" (TensorRT 8,
    class ILogger). TensorRT-RTX 1.7 warns of a second one while it holds a lock. A garbage collection in that call to
    Python, if it frees an older builder, waits for the same lock, and the process hangs with Python's GIL held.
    """
    log = _logger(trt)
    log.verbose = verbose
    log.take_errors()
    return log


@functools.cache
def _logger(trt: Any) -> Any:
    class Logger(trt.ILogger):  # type: ignore[misc] # of whichever TensorRT
        def __init__(self) -> None:
            super().__init__()
            self.verbose = False
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in failures:
                LOG.error("%s", message)
                self.errors.append(message)
            elif self.verbose:
                LOG.log(logging.WARNING if severity == trt.ILogger.WARNING else logging.INFO, "%s", message)
            else:
                LOG.debug("%s", message)

        def take_errors(self) -> str:
            """The errors since the last call."""
            text = "; ".join(self.errors)
            self.errors.clear()
            return text

    failures = (trt.ILogger.INTERNAL_ERROR, trt.ILogger.ERROR)
    return Logger()


def in_a_thread(work: Callable[[], Any], stop: threading.Event) -> Any:
    """Do `work` in another thread; on Ctrl-C or SIGTERM, set `stop`, wait for the end and re-raise the exception.

    Python runs signal handlers only in the main thread. If TensorRT ran there, the exception would be raised in one of
    its callbacks to our logger, and be lost.
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
    """A progress monitor that also stops the build once `stop` is set."""

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc] # of whichever TensorRT
        def __init__(self) -> None:
            super().__init__()
            self._tasks: dict[str, Any] = {}

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            # Phases with the same name may overlap: they share a bar.
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
