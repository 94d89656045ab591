"""fetch_dataset: a data set in object storage as a folder: its files, or a note from which steps read it lazily."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from stereo_core import storage
from stereo_core.actions import Outcome
from stereo_core.errors import DataError
from stereo_core.files import atomic_path

REFERENCE = "reference.json"
"""The note: uri, files, bytes, and a digest of all names and ETags."""


def run(spec: Any, status: Any) -> Outcome:
    """Fetch every object below `uri`, or note what is there.

    Raises:
        DataError, StorageError: as storage.fetch_tree.
    """
    folder, uri = Path(spec.results_dir), spec.uri.rstrip("/")
    if spec.mode == "copy":
        found = storage.fetch_tree(uri, folder)
        return Outcome(f"{len(found)} files of {uri} in {folder}", artifacts={"images": folder})
    note = describe(uri)
    with atomic_path(folder / REFERENCE) as temporary:
        temporary.write_text(json.dumps(note, indent=2) + "\n", encoding="utf-8")
    return Outcome(f"{note['files']} files stay in {uri}", artifacts={"images": folder})


def describe(uri: str) -> dict[str, Any]:
    """What a note says of a prefix.

    Raises:
        DataError: nothing is there; or as storage.children.
    """
    found = storage.children(uri, recursive=True)
    if not found:
        raise DataError(f"{uri}: no object below this prefix; mind capitals and the bucket's name")
    listing = "".join(f"{name}\0{entry.etag}\n" for name, entry in sorted(found.items()))
    digest = hashlib.sha256(listing.encode()).hexdigest()
    return {"uri": uri, "files": len(found), "bytes": sum(e.size for e in found.values()), "sha256": digest}


def referred(folder: Path) -> str:
    """The URI that a folder's note refers to; of a folder without a note its own path.

    Raises:
        DataError: the objects are no longer those that the note was written for.
    """
    if not (folder / REFERENCE).is_file():
        return str(folder)
    note = json.loads((folder / REFERENCE).read_text(encoding="utf-8"))
    if describe(note["uri"]) != note:
        raise DataError(f"{note['uri']}: objects were added, removed or changed since fetch_dataset; run it again")
    return note["uri"]
