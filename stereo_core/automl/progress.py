"""The progress bar of a search on a terminal."""

from __future__ import annotations

import logging
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from stereo_core.automl.study import SearchStudy

LOG = logging.getLogger(__name__)


class SearchBar:
    """A bar with the finished trials, their total and the best value. If `console` is no terminal: log lines only."""

    def __init__(self, study: SearchStudy, console: Console | None = None) -> None:
        self.study = study
        self.console = console or Console(stderr=True)
        columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
        self.progress = Progress(*columns, console=self.console, redirect_stdout=False, redirect_stderr=False)
        self.task = self.progress.add_task("", total=study.settings.automl_max_recommendations)

    def __enter__(self) -> SearchBar:
        if self.console.is_terminal:
            self.progress.start()
        self.show()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.progress.stop()

    def say(self, line: str) -> None:
        """Print a line above the bar (or to the log) and update the bar."""
        if self.console.is_terminal:
            self.console.print(line, highlight=False, markup=False, soft_wrap=True)
        else:
            LOG.info("%s", line)
        self.show()

    def show(self) -> None:
        ended = len(self.study.trials()) - len(self.study.interrupted())
        self.progress.update(self.task, completed=ended, description=self.words())

    def words(self) -> str:
        best = self.study.best()
        return f"best {self.study.settings.metric} {best.value:.4f} (trial {best.number})" if best else "trials"
