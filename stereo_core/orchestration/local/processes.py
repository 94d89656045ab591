"""Processes of tasks: started in a group of their own, stopped as a group, found again by a mark."""

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

GRACE = 20.0  # seconds that a stopped task has to leave a checkpoint before it is killed
TIMED_OUT = 124  # as timeout(1) says it; no interruption: the next attempt would take as long
MARK = "STEREO_PIPELINES_RUN"  # in the environment of every process of a run: its folder
POLL = 0.05  # seconds


def run_to_end(
    command: list[str], log: Path, environment: dict[str, str], limit: float | None, stop: threading.Event
) -> tuple[int, str]:
    """Run a command to its end, to its time limit or until `stop` is set; returns (exit code, what happened).

    Args:
        log: What it prints is added to this file.
        limit: Seconds.
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
    """SIGTERM to the task's whole process group, SIGKILL to what is left of it after GRACE seconds."""
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
    """This user's processes that have the run's mark in their environment."""
    mark, found = f"{MARK}={folder}".encode(), []
    for path in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):  # it has ended, or is another user's
            if mark in path.read_bytes().split(b"\0"):
                found.append(int(path.parent.name))
    return found


def end_leftovers(folder: Path) -> None:
    """Stop what an engine that was killed left running: it would write where the next run's tasks do."""
    for signum in (signal.SIGTERM, signal.SIGKILL):
        deadline = time.monotonic() + GRACE
        for pid in of_run(folder):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signum)
        while of_run(folder) and time.monotonic() < deadline:
            time.sleep(POLL)
