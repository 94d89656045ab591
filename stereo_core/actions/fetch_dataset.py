"""fetch_dataset: provide a data set from object storage as a folder: its files, the files packed in a few tar shards,
or a note through which steps read the objects lazily."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from stereo_core import storage
from stereo_core.data import shards
from stereo_core.data.trees import Tree
from stereo_core.errors import DataError, SpecError
from stereo_core.files import atomic_path
from stereo_core.run.outcome import Outcome
from stereo_core.storage import REFERENCE, is_uri
from stereo_core.values import counted, from_json


def run(spec: Any, status: Any) -> Outcome:
    """Fetch every object below `uri`, pack the files, or write a note that refers to them.

    Raises:
        DataError, StorageError: as storage.fetch_tree.
    """
    folder, uri = Path(spec.results_dir), spec.uri.rstrip("/")
    if spec.mode == "pack":
        sizes = _sizes(uri, folder)
        made = shards.pack(sizes, lambda name: _contents(f"{uri}/{name}"), folder, spec.shard_mib * 2**20)
        message = f"{counted(len(sizes), 'file')} of {uri} packed in {counted(len(made), 'shard')} in {folder}"
        return Outcome(message, artifacts={"images": folder})
    if spec.mode == "copy":
        found = storage.fetch_tree(uri, folder)
        return Outcome(f"{counted(len(found), 'file')} of {uri} fetched to {folder}", artifacts={"images": folder})
    note = describe(uri)
    with atomic_path(folder / REFERENCE) as temporary:
        temporary.write_text(json.dumps(note, indent=2) + "\n", encoding="utf-8")
    return Outcome(f"{counted(note['files'], 'file')} stay in {uri}", artifacts={"images": folder})


def _sizes(uri: str, folder: Path) -> dict[str, int]:
    """The files below a folder or prefix, with their sizes in bytes.

    Raises:
        DataError: there are none, or they are already packed.
        SpecError: the shards would be written among them.
    """
    if is_uri(uri):
        sizes = {name: entry.size for name, entry in storage.tree(uri).items()}
    elif folder.resolve().is_relative_to(Path(uri).resolve()):
        raise SpecError(f"results_dir: {folder} is inside {uri}, which is to be packed; choose a folder outside it")
    else:
        sizes = {name[1:]: os.path.getsize(uri + name) for name in Tree(uri).find((), "")}
    if not sizes:
        raise DataError(f"{uri}: there is no file below this folder; check uri")
    if shards.packed(uri):
        raise DataError(f"{uri}: the folder already contains shards, so it is already packed; use it as it is")
    return sizes


def _contents(path: str) -> bytes:
    return storage.read(path) if is_uri(path) else Path(path).read_bytes()


def describe(uri: str) -> dict[str, Any]:
    """The note about a prefix or a folder; modification times of a folder's files identify their contents.

    Raises:
        DataError: there is no file; or as storage.children.
    """
    found = storage.tree(uri) if is_uri(uri) else _files(Path(uri))
    if not found:
        raise DataError(f"{uri}: there is no file below this folder; check uri")
    listing = "".join(f"{name}\0{entry.etag}\n" for name, entry in sorted(found.items()))
    digest = hashlib.sha256(os.fsencode(listing)).hexdigest()
    return {"uri": uri, "files": len(found), "bytes": sum(e.size for e in found.values()), "sha256": digest}


def _files(folder: Path) -> dict[str, storage.Entry]:
    paths = ((path.relative_to(folder).as_posix(), path.stat()) for path in folder.rglob("*") if path.is_file())
    return {name: storage.Entry(status.st_size, str(status.st_mtime_ns)) for name, status in paths}


def referred(folder: Path) -> str:
    """The URI that a folder's note refers to; for a folder without a note, its own path.

    Raises:
        DataError: the note cannot be read, or the objects have changed since it was written.
    """
    file = folder / REFERENCE
    if not file.is_file():
        return str(folder)
    try:
        note = from_json(file.read_text(encoding="utf-8"))
        uri = str(note["uri"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise DataError(f"{file}: this is not a note of fetch_dataset ({reason}); run fetch_dataset again") from None
    try:
        here = describe(uri)
    except (OSError, ValueError) as error:  # no folder can have this name
        cause = getattr(error, "strerror", None) or error
        raise DataError(f"{file}: {uri[:60]!r} cannot be read ({cause}); run fetch_dataset again") from None
    if here != note:
        raise DataError(f"{uri}: objects were added, removed or changed since fetch_dataset; run it again")
    return uri
