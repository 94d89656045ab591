"""What a check found, and a table of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from rich.console import Console
from rich.table import Table

_COLOURS = {"ok": "green", "warning": "yellow", "problem": "bold red"}


@dataclass(frozen=True)
class Finding:
    """`text` says what is so, `mend` what to do about it."""

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
    """A table of (check, finding), in their order."""
    table = Table("check", "finding", "level", "mend", show_lines=True)
    name_before = None
    for name, finding in findings:
        level = f"[{_COLOURS[finding.level]}]{finding.level}[/]"
        table.add_row(name if name != name_before else "", _plain(finding.text), level, _plain(finding.mend))
        name_before = name
    console.print(table)


def _plain(text: str) -> str:
    """Text whose brackets, as in data_sources[0], are no markup."""
    return text.replace("[", r"\[")
