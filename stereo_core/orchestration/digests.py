"""Digests of imported data. Files are hashed in parallel, and only again if their size or time has changed."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path
from typing import Any

from stereo_core.files import atomic_path, sha256_of
from stereo_core.orchestration.dag import GraphError
from stereo_core.values import from_json

SETTLED = 2_000_000_000  # ns; a file changed more recently may change again without a new mtime


class Digests:
    """sha256 digests by (path, size, mtime_ns), stored in the file `memory`.

    Raises:
        GraphError: `memory` is damaged.
    """

    def __init__(self, memory: Path):
        self._memory = memory
        self._lock = threading.Lock()
        try:
            self._known: dict[str, list[Any]] = _entries(from_json(memory.read_text())) if memory.is_file() else {}
        except ValueError as error:
            raise GraphError(f"{memory}: {error}; remove the file (the digests are then computed again)") from None

    def sha256_of(self, path: Path) -> str:
        """See `stereo_core.files.sha256_of`."""
        digest = sha256_of(path, self._of_file)
        with self._lock, atomic_path(self._memory) as temporary:
            temporary.write_text(json.dumps(self._known))
        return digest

    def _of_file(self, path: Path) -> str:
        status = path.stat()
        state = [status.st_size, status.st_mtime_ns]
        known = self._known.get(str(path))
        if known and known[:2] == state:
            return str(known[2])
        digest = sha256_of(path)
        if time.time_ns() - status.st_mtime_ns > SETTLED:
            with self._lock:
                self._known[str(path)] = [*state, digest]
        return digest


def _entries(known: object) -> dict[str, list[Any]]:
    if not isinstance(known, dict) or not all(isinstance(one, list) and len(one) == 3 for one in known.values()):
        raise ValueError("not a table of digests")
    return known
