"""Rules for one key that names a file or folder: set, there, of the right kind."""

from __future__ import annotations

import os
from collections.abc import Iterator

from stereo_core.spec import choice
from stereo_core.storage import is_uri

Complaint = tuple[str, str]
"""A dotted path and the broken rule."""

NEEDED = "is required"


def is_set(path: str, value: str) -> Iterator[Complaint]:
    """A required text."""
    if not value:
        yield path, NEEDED


def file(path: str, value: str, *, needed: bool = True) -> Iterator[Complaint]:
    """A file to read."""
    if needed:
        yield from is_set(path, value)
    if value and not is_uri(value) and not os.path.isfile(value):
        yield path, f"no such file: {value}"


def no_folder(path: str, value: str) -> Iterator[Complaint]:
    """For a file to write."""
    if value.endswith("/") or os.path.isdir(value):
        yield path, f"{value} is a folder; name a file in it"


def checkpoint(path: str, value: str, *, needed: bool = False) -> Iterator[Complaint]:
    """Like `file`, but FOLDER@CHOICE is possible too. Another checkpoint is never used instead."""
    if not value:
        yield from is_set(path, value) if needed else ()
        return
    try:
        file = choice.chosen(value)
    except choice.NoChoice as error:
        yield path, str(error)
        return
    if not is_uri(value) and not os.path.isfile(file):
        yield path, f"no such file: {value}{choice.beside(file)}"


def folder(path: str, value: str) -> Iterator[Complaint]:
    """A folder to read, required."""
    yield from is_set(path, value)
    if value and not is_uri(value) and not os.path.isdir(value):
        yield path, f"no such folder: {value}"
