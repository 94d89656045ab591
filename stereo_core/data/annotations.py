"""Annotation lists: a text file with one stereo sample a line.

Columns are separated by blanks: `left right [disparity [mask]]`. A path that contains a blank, or begins with `#` or
`"`, is written in double quotes; a quote inside it is doubled (`"it""s here/im0.png"`). Blank lines and lines that
begin with `#` are ignored. Without quotes the columns are exactly what `line.split()` gives.
"""

from __future__ import annotations

import os
import posixpath
import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import chain, islice
from pathlib import Path

from stereo_core import storage
from stereo_core.data import shards
from stereo_core.errors import DataError
from stereo_core.files import LFS_POINTER, atomic_path, is_lfs_pointer
from stereo_core.values import counted

COLUMNS = ("left", "right", "disparity", "mask")

_FIELD = re.compile(r'"((?:[^"]|"")*)"(?=\s|$)|([^\s"]\S*)')
_DOUBTFUL = re.compile(r'\s|^["#]|^$')


@dataclass(frozen=True, slots=True)
class Sample:
    """One line of an annotation list; paths are resolved, None where the line has no such column."""

    left: str
    right: str
    disparity: str | None
    mask: str | None
    file: str
    line: int

    @property
    def where(self) -> str:
        """`file:line`, for error messages."""
        return f"{self.file}:{self.line}"


def read_annotations(data_file: str | Path, data_root: str | Path = "") -> list[Sample]:
    """Read a list of samples with 2, 3 or 4 columns.

    Relative paths are resolved against `data_root`, or against the list's own folder when `data_root` is empty. Paths
    and `data_root` may be object URIs. If that folder is packed (see `shards`), paths below it point into its shards.

    Raises:
        DataError: the file is missing, is not UTF-8 text, has no sample, or a line has a wrong number of columns; the
            folder's shards are incomplete.
    """
    data_file = os.fspath(data_file)
    root = os.fspath(data_root) if data_root else os.path.dirname(data_file)
    try:
        with open(data_file, encoding="utf-8-sig", errors="surrogateescape") as file:
            samples = [
                _parse(line, root, data_file, number)
                for number, line in enumerate(file, start=1)
                if line.strip() and not line.lstrip().startswith("#")
            ]
    except OSError as error:
        raise DataError(f"{data_file}: cannot read the annotation list: {error.strerror}") from error
    if not samples:
        raise DataError(f"{data_file}: the annotation list is empty; expected lines 'left right [disparity [mask]]'")
    files = shards.packed(root)
    return [_in_shards(sample, root, files) for sample in samples] if files else samples


def _in_shards(sample: Sample, root: str, files: dict[str, str]) -> Sample:
    """Replace the paths of packed files by their paths in the shards."""
    paths = {name: path for name in COLUMNS if (path := getattr(sample, name)) is not None}
    below = os.path.join(root, "")
    into = {name: files.get(posixpath.normpath(path.removeprefix(below)), path) for name, path in paths.items()}
    return replace(sample, **into)


def _parse(line: str, root: str, file: str, number: int) -> Sample:
    if number == 1 and is_lfs_pointer(line.encode("utf-8", "surrogateescape")):
        raise DataError(f"{file}: {LFS_POINTER}")
    fields = split_line(line)
    if fields is None:
        raise DataError(
            f"{file}:{number}: a quote is not closed, or stands inside a path; quote the whole path and double each "
            "quote in it"
        )
    if not 2 <= len(fields) <= len(COLUMNS):
        raise DataError(
            f"{file}:{number}: the line has {counted(len(fields), 'column')}; expected 'left right [disparity [mask]]'"
            " (put paths that contain blanks in double quotes)"
        )
    if "\0" in line:
        raise DataError(f"{file}:{number}: contains a zero byte, so this is not an annotation list; correct data_file")
    paths = [field if storage.is_uri(field) else os.path.join(root, field) for field in fields]
    left, right, *rest = paths
    disparity, mask, *_ = (*rest, None, None)
    return Sample(left, right, disparity, mask, file, number)


def split_line(line: str) -> list[str] | None:
    """The fields of one line, unquoted; None when a quote has no end."""
    if '"' not in line:
        return line.split()
    fields, rest = [], line.strip()
    while rest:
        match = _FIELD.match(rest)
        if match is None:
            return None
        quoted, bare = match.groups()
        fields.append(bare if quoted is None else quoted.replace('""', '"'))
        rest = rest[match.end() :].lstrip()
    return fields


def quote(path: str) -> str:
    """A path as it is written in an annotation list."""
    if "\n" in path or "\r" in path:
        raise DataError(f"{path!r}: an annotation list cannot hold a file name with a line break; rename the file")
    if not _DOUBTFUL.search(path):
        return path
    return '"' + path.replace('"', '""') + '"'


def write_annotations(path: str | Path, rows: Iterable[Sequence[str]]) -> None:
    """Write one line per row (2 to 4 paths); the file is replaced atomically."""
    rows = iter(rows)
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8", errors="surrogateescape") as file:
        while batch := list(islice(rows, 4096)):
            file.write(_lines(batch))


def _lines(rows: Sequence[Sequence[str]]) -> str:
    text = "\n".join(map(" ".join, rows))
    unquoted = '"' not in text and "#" not in text and text.split() == list(chain.from_iterable(rows))
    return (text if unquoted else "\n".join(" ".join(map(quote, row)) for row in rows)) + "\n"


def check_files(samples: Sequence[Sample]) -> None:
    """Check that every file of every sample exists. Each folder is listed only once: cheap on a network file system.

    Raises:
        DataError: files are missing; the message names the first ones with their lines, and the count.
    """
    listings: dict[str, Collection[str]] = {}
    missing = []
    for sample in samples:
        for column in COLUMNS:
            path = getattr(sample, column)
            if path is not None and not _exists(path, listings):
                missing.append(f"{sample.where}: no such {column} file: {path}")
    if missing:
        more = f"\n... and {len(missing) - 5} more" if len(missing) > 5 else ""
        of_windows = all("\\" in line for line in missing)
        mend = "write / instead of \\ in the paths" if of_windows else "correct the lines"
        raise DataError("\n".join(missing[:5]) + more + f"\n{mend}, or set data_root of the data source")


def _exists(path: str, listings: dict[str, Collection[str]]) -> bool:
    folder, name = shards.parts(path) or os.path.split(path)
    if folder not in listings:
        listings[folder] = _listing(folder)
    # on a file system that ignores case, a name that is not listed may still open
    return name in listings[folder] or os.path.exists(path)


def _listing(folder: str) -> Collection[str]:
    if shards.is_shard(folder):
        return shards.listed(folder)
    if storage.is_uri(folder):
        return frozenset(storage.children(folder))
    try:
        return frozenset(os.listdir(folder or "."))
    except OSError:
        return frozenset()
