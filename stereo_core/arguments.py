"""Paths as users write them on a command line."""

from __future__ import annotations

import os
from typing import Any

import click


def at_home(path: str) -> str:
    """Expand `~/` at the start to the user's home folder."""
    return os.path.expanduser(path) if path.startswith("~/") else path


class FilePath(click.Path):
    """A path on this machine. `~/` is the home folder, which no shell expands in `--output=~/x`."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if "://" in os.fspath(value):  # else a folder named s3: would be made here
            self.fail(f"{value}: expected a path on this machine, not a URI.", param, ctx)
        return super().convert(at_home(os.fspath(value)), param, ctx)
