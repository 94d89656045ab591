"""Shows a run on the console: a live table on a terminal, otherwise one line per change; tables at the end."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console
from rich.live import Live
from rich.table import Column, Table

from stereo_core.orchestration.page import metrics_table, size
from stereo_core.orchestration.record import AGAIN, DONE, ENDED, Made, Record, TaskRun
from stereo_core.progress import heartbeat
from stereo_core.report.console import print_table

COLOURS = {"running": "cyan", "succeeded": "green", "reused": "green", "failed": "red", "stopped": "yellow"}
WIDTH = 120  # width of the tables when the output is a file or a pipe
TAIL = 15  # lines of a failed step's log


@contextlib.contextmanager
def heard_or_not() -> Iterator[None]:
    """Ignore errors of printing: the run goes on when its output is closed (`| head -1`, a closed terminal)."""
    try:
        yield
    except (OSError, SystemExit):  # rich raises SystemExit for a broken pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class Progress:
    """Shows each change of a run; pass `show` as the run's `on_change`."""

    def __init__(self, console: Console | None = None):
        self.console = console or Console()
        self._run: Record | None = None
        self._seen: dict[str, tuple[str, str]] = {}
        self._beat = contextlib.ExitStack()
        self._live = Live(get_renderable=self._table, console=self.console, refresh_per_second=4, transient=True)

    def __enter__(self) -> Progress:
        self._beat.enter_context(heartbeat(self._running, self._say))
        return self

    def __exit__(self, *error: object) -> None:
        self.close()
        self._beat.close()

    def _running(self) -> str:
        """The running steps and their durations; empty on a terminal, where the table shows them."""
        if self.console.is_terminal or self._run is None:
            return ""
        running = [f"{name} for {_seconds(task)}" for name, task in self._run.tasks.items() if task.state == "running"]
        return f"running: {', '.join(running)}" if running else ""

    def _say(self, text: str) -> None:
        with heard_or_not():
            self.console.print(f"{datetime.now():%H:%M:%S} {text}", highlight=False, markup=False, soft_wrap=True)

    def show(self, run: Record) -> None:
        self._run = run
        with heard_or_not():
            self._show(run)

    def _show(self, run: Record) -> None:
        if self.console.is_terminal:
            self._live.start()
            return
        for name, task in run.tasks.items():
            now = (task.state, task.message)
            if now != self._seen.get(name, ("waiting", "")) and task.state != "skipped":  # the summary gives the reason
                took = f" after {task.seconds:.1f} s" if task.state in ENDED and task.seconds else ""
                warned = _warnings(run, name) if task.state in ENDED else ""
                note = f": {task.message}" if task.message else ""
                self._say(f"{name} {task.state}{took}{warned}{note}")
            self._seen[name] = now

    def close(self) -> None:
        with heard_or_not():
            self._live.stop()

    def _table(self) -> Table:
        table = Table("step", "state", "time")
        if run := self._run:
            for name, task in run.tasks.items():
                table.add_row(run.label(name), _state(task), _seconds(task))
        return table


def _state(task: TaskRun) -> str:
    return _coloured(task.state)


def _coloured(state: str) -> str:
    colour = COLOURS.get(state)
    return f"[{colour}]{state}[/]" if colour else state


def _code(task: TaskRun) -> str:
    """The exit code, and the number of attempts if there were several."""
    code = "" if task.exit_code is None else str(task.exit_code)
    return f"{code} (attempt {task.attempts})" if task.attempts > 1 else code


def _warnings(run: Record, name: str) -> str:
    """The number of a step's warnings, for the end of its line."""
    count = len(run.warnings(name))
    return f", {count} warning{'s' * (count != 1)}" if count else ""


def _seconds(task: TaskRun) -> str:
    if task.state == "running" and task.started:
        return f"{time.time() - datetime.fromisoformat(task.started).astimezone(UTC).timestamp():.0f} s"
    return f"{task.seconds:.1f} s" if task.seconds else ""


def runs_table(runs: list[Record], console: Console | None = None) -> None:
    """Print one line per run: folder, pipeline, state, times, finished steps, warnings."""
    columns = ("pipeline", "state", "started (UTC)", "changed (UTC)", "steps done", "warnings")
    table = Table(Column("run", overflow="fold"), *columns)
    for run in runs:
        done = sum(task.state in DONE for task in run.tasks.values())
        times = (text[:19].replace("T", " ") for text in (run.started, run.changed))
        count = sum(len(run.warnings(name)) for name in run.tasks)
        steps = f"{done} of {len(run.tasks)}"
        table.add_row(str(run.folder), run.pipeline, _coloured(run.state), *times, steps, str(count or ""))
    _console(console).print(table)


def _console(console: Console | None) -> Console:
    return console or Console(width=None if sys.stdout.isatty() else WIDTH)


def summary(run: Record, console: Console | None = None) -> None:
    """Print the steps (state, time, exit code, artifacts), reasons for skipped steps, warnings, metrics and the last
    lines of failed steps' logs."""
    console = _console(console)
    title = f"{run.pipeline} in {run.folder}"
    table = Table("step", "state", "time", "exit code", "artifact", "size", title=title)
    for name, task in run.tasks.items():
        ports: list[tuple[str, Made | None]] = [(port, made) for port, made in task.results().items() if made.bytes]
        for i, (port, made) in enumerate(ports or [("", None)]):
            head = (run.label(name), _state(task), _seconds(task), _code(task)) if i == 0 else ("",) * 4
            table.add_row(*head, port, size(made.bytes) if made else "")
    console.print(table)
    for name, task in run.tasks.items():
        if task.state == "skipped" or (task.state in DONE and task.message):
            console.print(f"{name} {task.state}: {task.message}", highlight=False, markup=False, soft_wrap=True)
    for name in run.tasks:
        for text in run.warnings(name):
            line = f"{name}: warning: {text}"
            console.print(line, style="yellow", highlight=False, markup=False, soft_wrap=True)
    measured = metrics_table(run)
    if measured:
        print_table(measured, console)
    for name, task in run.tasks.items():
        if task.state == "failed":
            log = run.place(name) / "log.txt"
            begun = task.attempts and log.is_file()  # otherwise the log is from an earlier run
            where = f"; see its log: {log}" if begun else ""
            console.print(
                f"{name} failed: {task.message}{where}", style="red", highlight=False, markup=False, soft_wrap=True
            )
            console.print(_tail(log) if begun else "", highlight=False, markup=False, soft_wrap=True)


def _tail(log: Path) -> str:
    """The last lines of the last attempt."""
    return "\n".join(log.read_text(errors="replace").rpartition(f"{AGAIN}\n")[2].splitlines()[-TAIL:])
