"""Tar shards: a data set of many small files packed into few large ones and read without unpacking.

`fetch_dataset mode=pack` writes a packed folder of uncompressed shards `shard-00000-of-00012.tar` and so on, each with
an index `<shard>.index`: one line with the number of files, then one line per file: `offset size crc32 name`, the
name relative to the folder that was packed. A packed folder, or an object prefix with the same content, replaces the
original folder as data_root; annotation lists stay unchanged. A file in it has the path
`<folder>/<shard>/<name>`.

A shard is opened for each read, so any number of threads and processes may read at once.
"""

from __future__ import annotations

import functools
import io
import os
import posixpath
import re
import tarfile
import zlib
from collections.abc import Callable, Collection, Iterator
from multiprocessing.pool import ThreadPool
from pathlib import Path

from stereo_core import storage
from stereo_core.errors import DataError
from stereo_core.files import atomic_path

INDEX = ".index"
_SHARD = re.compile(r"shard-(\d{5})-of-(\d{5})\.tar")
_INDEX = re.compile(_SHARD.pattern + re.escape(INDEX))
_MEMBER = re.compile(r"((?:.*/)?shard-\d{5}-of-\d{5}\.tar)/(.+)", re.DOTALL)
_NUMBER = re.compile(r"[0-9]{1,19}")
_HEADER = "# shard of {} files: offset size crc32 name"
_AGAIN = "copy the shard and its index again, or pack the shards again"
_BATCH = 64  # files read concurrently while packing

Place = tuple[int, int, int]
"""Offset in the shard and size in bytes, and CRC-32 of the contents."""


# ---- reading


def parts(path: str | Path) -> tuple[str, str] | None:
    """Split a path into its shard and the name in it; None if the path does not point into a shard."""
    match = _MEMBER.fullmatch(os.fspath(path))
    return (match[1], match[2]) if match else None


def loose(path: str) -> str:
    """The path without its shard: where the file was before packing."""
    found = parts(path)
    return posixpath.join(posixpath.dirname(found[0]), found[1]) if found else path


def read(shard: str, name: str) -> bytes:
    """The contents of a file in a shard.

    Raises:
        DataError: no such shard or file, a truncated shard, or contents that differ from the packed ones.
        StorageError: as storage.fetch.
    """
    if name not in listed(shard):
        raise DataError(f"{shard}/{name}: the shard contains no such file; correct the path, or pack the shards again")
    offset, size, crc = _index(shard)[name]
    data = _bytes_of(shard, offset, size)
    if len(data) < size:
        raise DataError(f"{shard}/{name}: the shard is truncated, {len(data)} of the file's {size} bytes; {_AGAIN}")
    if zlib.crc32(data) != crc:
        raise DataError(f"{shard}/{name}: the file is damaged: its checksum differs from the index; {_AGAIN}")
    return data


def is_shard(path: str) -> bool:
    """Whether a path has the name of a shard."""
    return _SHARD.fullmatch(os.path.basename(path)) is not None


def listed(shard: str) -> Collection[str]:
    """The files in a shard; DataError if its index is missing or cannot be used."""
    return _index(shard).keys()


def fault(shard: str, name: str) -> str:
    """What is wrong with a file in a shard, as far as the index shows without reading the file."""
    try:
        if name not in listed(shard):
            return "the shard contains no such file"
        offset, size, _ = _index(shard)[name]
        there = storage.look(shard).size if storage.is_uri(shard) else os.path.getsize(shard)
    except (DataError, OSError) as error:
        return str(error)
    return "the file is empty" if not size else "the shard is truncated" if offset + size > there else ""


def packed(root: str) -> dict[str, str]:
    """Name below `root` -> path into a shard, for a packed folder or a folder in one; empty if nothing is packed.

    Raises:
        DataError: a shard is missing, there are shards of two packings, or an index cannot be used.
        StorageError: as storage.children.
    """
    home, below = _home(root)
    found: dict[str, str] = {}
    for shard in _shards(home):
        inside = {name[len(below) :]: f"{shard}/{name}" for name in _index(shard) if name.startswith(below)}
        if found.keys() & inside.keys():
            twice = min(found.keys() & inside.keys())
            raise DataError(f"{shard}{INDEX}: {twice} is in another shard too; pack the shards again")
        found |= inside
    return found


def _home(root: str) -> tuple[str, str]:
    """`root` or its nearest existing parent folder, and the rest of `root` with a trailing slash."""
    home, below = root.rstrip("/") or root or ".", ""
    while not _is_there(home):
        below = f"{os.path.basename(home)}/{below}"
        home = os.path.dirname(home) or "."
    return home, below


def _is_there(folder: str) -> bool:
    if storage.is_uri(folder):
        return not storage.split(folder)[1] or storage.is_prefix(folder)
    return folder in (".", "/") or os.path.isdir(folder)


def _shards(home: str) -> list[str]:
    try:
        names = storage.children(home, start="shard-") if storage.is_uri(home) else os.listdir(home)
    except OSError as error:
        if isinstance(error, storage.StorageError):
            raise
        return []
    found = sorted(match.groups() for name in names if (match := _INDEX.fullmatch(name)))
    totals = {int(total) for _, total in found}
    if len(totals) > 1:
        first, second = sorted(totals)[:2]
        raise DataError(
            f"{home}: contains shards of two packings, one of {first} shards and one of {second}; remove the files "
            f"shard-*-of-{first:05d}* or shard-*-of-{second:05d}*"
        )
    missing = set(range(max(totals, default=0))) - {int(number) for number, _ in found}
    if missing:
        raise DataError(f"{home}: {len(missing)} of {max(totals)} shards are missing, the first one is number "
                        f"{min(missing)}; copy it again, or pack the shards again")  # fmt: skip
    return [os.path.join(home, f"shard-{number}-of-{total}.tar") for number, total in found]


def _bytes_of(shard: str, offset: int, size: int) -> bytes:
    """The bytes of a span, or as many as there are."""
    while True:
        try:
            with (storage.fetch(shard) if storage.is_uri(shard) else Path(shard)).open("rb") as file:
                there = os.fstat(file.fileno()).st_size  # the index may be wrong
                file.seek(min(offset, there))
                return file.read(min(size, there))
        except storage.StorageError:
            raise
        except OSError as error:
            evicted = storage.is_uri(shard) and isinstance(error, FileNotFoundError)  # by another process just now
            if not evicted:
                raise DataError(f"{shard}: cannot read the shard: {error.strerror}") from error


def _index(shard: str) -> dict[str, Place]:
    """The index of a shard; it is read again only if it changed."""
    path = shard + INDEX
    if storage.is_uri(path):
        return _parsed(path, storage.look(path))
    try:
        status = os.stat(path)
    except OSError as error:
        raise DataError(f"{path}: cannot read the index: {error.strerror}") from error
    return _parsed(path, (status.st_ino, status.st_mtime_ns, status.st_size))


@functools.cache
def _parsed(path: str, version: object) -> dict[str, Place]:
    data = storage.read(path) if storage.is_uri(path) else Path(path).read_bytes()
    header, *lines = data.decode("utf-8", "surrogateescape").removesuffix("\n").split("\n")
    entries = {}
    for number, line in enumerate(lines, start=2):
        offset, size, crc, name = (line.split(" ", 3) + [""] * 4)[:4]
        leads_out = posixpath.normpath(f"/{name}") != f"/{name}"
        if not name or leads_out or not all(map(_NUMBER.fullmatch, (offset, size, crc))):
            raise DataError(f"{path}:{number}: expected 'offset size crc32 name'; {_AGAIN}")
        entries[name] = (int(offset), int(size), int(crc))
    if header != _HEADER.format(len(entries)):
        raise DataError(f"{path}: the index is truncated, or the file is no index; {_AGAIN}")
    return entries


# ---- writing


def pack(sizes: dict[str, int], contents: Callable[[str], bytes], folder: Path, limit: int) -> list[Path]:
    """Pack files, in the order of their names, into shards; earlier shards in the folder are deleted. Returns the
    shards.

    Equal files give byte-identical shards. Readers reject the folder as incomplete until the last shard is written.

    Args:
        sizes: name -> bytes, names relative with `/`.
        contents: the contents of a name; called from several threads.
        limit: maximum bytes of a shard, unless a single file is larger.

    Raises:
        DataError: a name contains a line break.
        OSError: the folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for old in sorted(folder.glob("shard-*-of-*.tar*"), reverse=True):  # an index before its shard
        old.unlink()
    groups = list(_groups(sizes, limit))
    shards = [folder / f"shard-{number:05d}-of-{len(groups):05d}.tar" for number in range(len(groups))]
    with storage.progress(str(folder), sum(sizes.values())) as advance:

        def counted(name: str) -> bytes:
            data = contents(name)
            advance(len(data))
            return data

        for shard, names in zip(shards, groups, strict=True):
            _write(shard, names, counted)
    return shards


def _groups(sizes: dict[str, int], limit: int) -> Iterator[list[str]]:
    names: list[str] = []
    filled = 0
    for name in sorted(sizes):
        if "\n" in name or "\r" in name:
            raise DataError(
                f"{name!r}: the index of a shard cannot hold a file name with a line break; rename the file"
            )
        if names and filled + sizes[name] > limit:
            yield names
            names, filled = [], 0
        names.append(name)
        filled += sizes[name]
    if names:
        yield names


def _write(shard: Path, names: list[str], contents: Callable[[str], bytes]) -> None:
    lines = [_HEADER.format(len(names))]
    with atomic_path(shard) as temporary, tarfile.open(temporary, "w") as tar, ThreadPool(storage.PARALLEL) as pool:
        for start in range(0, len(names), _BATCH):
            batch = names[start : start + _BATCH]
            for name, data in zip(batch, pool.map(contents, batch), strict=True):
                entry = tarfile.TarInfo(name)
                entry.size = len(data)
                tar.addfile(entry, io.BytesIO(data))
                offset = tar.offset - -(-len(data) // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
                lines.append(f"{offset} {len(data)} {zlib.crc32(data)} {name}")
    with atomic_path(f"{shard}{INDEX}") as temporary:
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8", errors="surrogateescape")
