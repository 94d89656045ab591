"""Processes of tasks: each starts in its own process group, is stopped as a group, and is found again by a mark."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

from stereo_core.orchestration.record import AGAIN

GRACE = 20.0  # seconds that a stopped task gets to write a checkpoint before it is killed
TIMED_OUT = 124  # exit code, as of timeout(1); not retried, because the next attempt would take as long
MARK = "STEREO_PIPELINES_RUN"  # variable in the environment of every process of a run; holds the run folder
POLL = 0.05  # seconds


def run_to_end(
    command: list[str], log: Path, environment: dict[str, str], limit: float | None, stop: threading.Event
) -> tuple[int, str]:
    """Run a command until it ends, reaches its time limit or `stop` is set; returns (exit code, what happened).

    Args:
        log: File to which its output is appended.
        limit: Time limit in seconds.
    """
    with log.open("ab") as file:
        if file.tell():
            file.write(f"{AGAIN}\n".encode())
            file.flush()
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
        )
    deadline = time.monotonic() + limit if limit else None
    while process.poll() is None:
        if stop.is_set() or (deadline and time.monotonic() > deadline):
            end(process)
            if stop.is_set():
                return process.returncode or 1, "stopped"
            return TIMED_OUT, f"stopped after {limit:g} s (its time limit)"
        time.sleep(POLL)
    if process.returncode < 0:
        return process.returncode, f"ended by {signal.Signals(-process.returncode).name}"
    return process.returncode, f"exit code {process.returncode}"


def end(process: subprocess.Popen[Any]) -> None:
    """Send SIGTERM to the task's process group, and SIGKILL to the remaining processes after GRACE seconds."""
    for signum, patience in ((signal.SIGTERM, GRACE), (signal.SIGKILL, None)):
        try:
            os.killpg(process.pid, signum)
        except ProcessLookupError:
            return
        try:
            process.wait(patience)
        except subprocess.TimeoutExpired:
            continue


def of_run(folder: Path) -> list[int]:
    """This user's processes with the run's mark in their environment."""
    mark, found = f"{MARK}={folder}".encode(), []
    for path in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):  # the process has ended, or belongs to another user
            if mark in path.read_bytes().split(b"\0"):
                found.append(int(path.parent.name))
    return found


def end_leftovers(folder: Path) -> None:
    """Stop processes that a killed run left behind: they would write to the folders of the next run's tasks."""
    for signum in (signal.SIGTERM, signal.SIGKILL):
        deadline = time.monotonic() + GRACE
        for pid in of_run(folder):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signum)
        while of_run(folder) and time.monotonic() < deadline:
            time.sleep(POLL)
