"""Tables on the terminal."""

from __future__ import annotations

import sys
from collections.abc import Mapping

from rich.console import Console
from rich.markup import escape
from rich.table import Column
from rich.table import Table as ConsoleTable

from stereo_core.report.html import Table, figure, metrics_tables

WIDTH = 140  # columns of a table in a file or a pipe


def stdout() -> Console:
    return Console(file=sys.stdout, width=None if sys.stdout.isatty() else WIDTH)


def print_table(table: Table, console: Console) -> None:
    """Print a table of texts and numbers."""
    columns = [Column(name, justify="right" if table.is_number(i) else "left") for i, name in enumerate(table.columns)]
    text = ConsoleTable(*columns, title=table.title)
    for row in table.rows:
        text.add_row(*(figure(cell) if isinstance(cell, int | float) else escape(str(cell)) for cell in row))
    console.print(text)


def print_figures(kpi: Mapping[str, float]) -> None:
    """Print the figures of a run as its page has them, but the accuracy with a row per metric: terminals are narrow."""
    for table in metrics_tables(kpi, {}):
        print_table(_turned(table) if table.title == "Accuracy" else table, stdout())


def _turned(table: Table) -> Table:
    """Rows as columns, without the metrics that the run does not have."""
    first, *rows = zip(*table.rows, strict=True)
    lines = [
        (name, *cells)
        for name, cells in zip(table.columns[1:], rows, strict=True)
        if any(value == value for value in cells)  # not NaN
    ]
    return Table(table.title, ("metric", *map(str, first)), lines)
