"""The findings of checks, and a table of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from rich.console import Console
from rich.table import Table

_COLOURS = {"ok": "green", "warning": "yellow", "problem": "bold red"}


@dataclass(frozen=True)
class Finding:
    """`text` describes the finding, `mend` what to do about it."""

    level: Literal["ok", "warning", "problem"]
    text: str
    mend: str = ""


def ok(text: str) -> Finding:
    return Finding("ok", text)


def warning(text: str, mend: str = "") -> Finding:
    return Finding("warning", text, mend)


def problem(text: str, mend: str = "") -> Finding:
    return Finding("problem", text, mend)


def print_findings(findings: list[tuple[str, Finding]], console: Console) -> None:
    """Print a table of (check, finding), in the given order."""
    table = Table("check", "finding", "level", "what to do", show_lines=True)
    name_before = None
    for name, finding in findings:
        level = f"[{_COLOURS[finding.level]}]{finding.level}[/]"
        table.add_row(name if name != name_before else "", _unstyled(finding.text), level, _unstyled(finding.mend))
        name_before = name
    console.print(table)


def _unstyled(text: str) -> str:
    """Escape brackets, as in data_sources[0], so that they are not read as markup."""
    return text.replace("[", r"\[")
