"""Runs an action in several processes of this node: starts them, forwards signals, and ends them together."""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import pickle
import signal
import socket
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

from stereo_core.errors import GpuError, UserError, is_gpu_error
from stereo_core.progress import heartbeat
from stereo_core.run.failure import reason
from stereo_core.run.outcome import Outcome
from stereo_core.run.perform import set_up_logging
from stereo_core.run.status import StatusLog
from stereo_core.run.termination import Terminated
from stereo_core.run.warned import collected
from stereo_core.training.distribution import Ranks

LOG = logging.getLogger(__name__)

Work = Callable[[Any, StatusLog, Ranks], Outcome]
"""spec, status, ranks -> outcome. It must be a module-level function, so that other processes can import it."""

_POLL_SECONDS = 0.2
_GRACE_SECONDS = 10  # that the other processes get to end after one has failed, unless the input is wrong


def in_ranks(work: Work, spec: object, status: StatusLog, ranks: Ranks) -> Outcome:
    """Run the work in every process of this node; returns the outcome of the first rank.

    With one process, or under torchrun, this process runs the work itself. Otherwise it starts a process for each
    rank and waits. It forwards SIGTERM and Ctrl-C to them, and the first failure ends them all.

    Raises:
        The first failed process's exception, with its traceback as a note; RuntimeError if a process was killed.
    """
    if ranks.local is not None or len(ranks.devices) == 1:
        return work(spec, status, replace(ranks, local=ranks.local or 0))
    if ranks.nodes == 1:
        ranks = replace(ranks, port=_free_port())
    LOG.info("%s", ranks)
    started: list[_Started] = []
    try:
        with _signals_go_on_to(started) as stopping, heartbeat(lambda: ""):  # rank 0 logs its own progress
            for local in range(len(ranks.devices)):
                started.append(_start(work, spec, status, replace(ranks, local=local)))
            _wait(started, lambda: all(one.ended for one in started) or any(one.error for one in started))
            if not any(one.error for one in started):
                return started[0].made()
            if not any(isinstance(one.error, UserError) for one in started):  # others may come from a lost connection
                _wait(started, lambda: all(one.ended for one in started), _GRACE_SECONDS)
    finally:
        for one in started:
            one.end()
    cause = _cause(started, bool(stopping))
    raise KeyboardInterrupt(str(cause).replace("SIGTERM", "Ctrl-C")) if signal.SIGINT in stopping else cause


class _Silent(RuntimeError):
    """A process ended without sending a result or an error."""


@dataclass
class _Started:
    """One process and what it has sent."""

    rank: int
    process: BaseProcess
    pipe: Connection
    outcome: Outcome | None = None
    error: BaseException | None = None
    time: float = 0.0

    @property
    def ended(self) -> bool:
        return self.outcome is not None or self.error is not None

    def made(self) -> Outcome:
        """What it has made; RuntimeError before it has ended well."""
        if self.outcome is None:
            raise RuntimeError(f"the process of rank {self.rank} ended without a result")
        return self.outcome

    def look(self) -> None:
        """Receive its result, or notice that it has ended. Its children keep the pipe open, so the pipe's end is no
        sign."""
        gone = self.process.exitcode is not None
        if self.pipe.poll():
            with contextlib.suppress(EOFError):
                self.time, self.error, self.outcome = self.pipe.recv()
                return
        if gone:
            self.time, self.error = time.monotonic(), _Silent(self._how_it_ended())

    def _how_it_ended(self) -> str:
        code = self.process.exitcode or 0
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        why = " (the system does this when memory runs out)" if code == -signal.SIGKILL else ""
        return f"the process of rank {self.rank} (pid {self.process.pid}) {how}{why}; the other ranks were stopped too"

    def end(self) -> None:
        """Wait for a process that has done its work; kill any other."""
        if self.outcome is not None:
            self.process.join(_GRACE_SECONDS)
        if self.process.is_alive():
            self.process.kill()
        self.process.join()
        self.pipe.close()


def _start(work: Work, spec: object, status: StatusLog, ranks: Ranks) -> _Started:
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=_rank, args=(there, work, spec, status, ranks), name=f"rank {ranks.rank}")
    process.start()
    there.close()
    return _Started(ranks.rank, process, here)


def _wait(started: list[_Started], until: Callable[[], bool], seconds: float = float("inf")) -> None:
    end = time.monotonic() + seconds
    while not until() and time.monotonic() < end:
        wait([one.pipe for one in started if not one.ended], _POLL_SECONDS)
        for one in started:
            if not one.ended:
                one.look()


def _cause(started: list[_Started], stopping: bool) -> BaseException:
    """The error that ended the run. The other processes only lost their connection to the one that failed."""
    failed = [one.error for one in sorted(started, key=lambda one: one.time) if one.error]
    silent = [error for error in failed if isinstance(error, _Silent)]
    stopped = [error for error in failed if isinstance(error, Terminated)]
    if stopping and (stopped or silent):
        return stopped[0] if stopped else Terminated("SIGTERM")
    return silent[0] if silent else failed[0]


@contextlib.contextmanager
def _signals_go_on_to(started: list[_Started]) -> Iterator[list[int]]:
    """Inside the `with` block, SIGTERM and the first Ctrl-C go to the processes as SIGTERM. Yields the list of the
    signals received."""
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield received
        return

    def pass_on(number: int, _: object) -> None:
        received.append(number)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        for one in started:
            one.process.terminate()

    before = {number: signal.signal(number, pass_on) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


# ---- in the started process


def _rank(pipe: Connection, work: Work, spec: object, status: StatusLog, ranks: Ranks) -> None:
    def stop(*_: object) -> None:
        raise Terminated("SIGTERM")

    try:
        signal.signal(signal.SIGTERM, stop)
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to all; the parent forwards it
        threading.Thread(target=_end_with_the_parent, daemon=True).start()
        set_up_logging(ranks.rank)
        with collected(status), heartbeat(status.where):
            outcome = work(spec, status if ranks.rank == 0 else StatusLog(None), ranks)
        pipe.send((time.monotonic(), None, outcome))
    except BaseException as error:
        pipe.send((time.monotonic(), _portable(error), None))


def _end_with_the_parent() -> None:
    if parent := multiprocessing.parent_process():
        parent.join()
    os._exit(1)


def _portable(error: BaseException) -> BaseException:
    """The error in a form that can be pickled, with its traceback as a note."""
    note = "".join(traceback.format_exception(error))
    try:
        error = pickle.loads(pickle.dumps(error))
    except Exception:
        error = (GpuError if is_gpu_error(error) else RuntimeError)(reason(error))
    error.add_note(note)
    return error
