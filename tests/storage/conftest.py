"""A place where the storage, the way to it or this machine fails, and what is looked at after every fault."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from objects import NEW, OLD, OTHER_PROCESS, PART, put, stored, written

from stereo_core import storage


class Bed:
    """An object and a file, by way of a proxy."""

    def __init__(self, server, proxy, tmp_path: Path, monkeypatch, on_a_small_disk) -> None:
        self.on_a_small_disk = on_a_small_disk
        self.server, self.proxy, self.tmp_path, self.patch = server, proxy, tmp_path, monkeypatch
        self.key = f"faults/{tmp_path.name}/object"
        self.uri = put(server, self.key, OLD)
        self.file = written(tmp_path / "file", NEW)
        self.others: list[bytes] = []  # what else may lie in the cache
        self._patience = storage.CLIENTS.patience

    def get(self) -> bytes:
        storage.forget()
        return storage.read(self.uri)

    def put(self) -> None:
        storage.upload(self.file, self.uri)

    def look(self) -> None:
        """See the object, so that the next answer is of the transfer."""
        storage.forget()
        storage.look(self.uri)

    def credentials(self, key: str, secret: str) -> None:
        self.patch.setenv("AWS_ACCESS_KEY_ID", key)
        self.patch.setenv("AWS_SECRET_ACCESS_KEY", secret)
        storage.CLIENTS.forget()

    def fails(self, kind: type[Exception], told: str, *works: Callable) -> None:
        for work in works:
            with pytest.raises(kind, match=told) as raised:
                work()
            assert not [word for word in ("127.0.0.1", "-one") if word in str(raised.value)], "no host, key or secret"

    def mend(self) -> None:
        self.proxy.pause, self.proxy.cuts, self.proxy.answers = 0.0, [], []
        self.patch.setenv("AWS_ENDPOINT_URL", self.proxy.url)
        self.patch.delenv("STEREO_CACHE_GIB", raising=False)
        self.patience()
        self.credentials("K", "S")

    def patience(self, **other) -> None:
        self.patch.setattr(storage.CLIENTS, "patience", replace(self._patience, **other))

    def other(self, *arguments: str | Path, **more) -> subprocess.Popen:
        """Another process, which knows the environment."""
        command = [sys.executable, OTHER_PROCESS, f"--part={PART}", *arguments]
        return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, **more)

    def midway(self, work: Callable, break_it: Callable) -> BaseException | None:
        """Break something once 2 MiB of the work have passed; returns what the work raised."""
        raised = []

        def run() -> None:
            try:
                work()
            except BaseException as error:
                raised.append(error)

        self.proxy.passed = 0
        thread = threading.Thread(target=run)
        thread.start()
        while self.proxy.passed < 2 * 2**20 and thread.is_alive():
            time.sleep(0.001)
        break_it()
        thread.join()
        return raised[0] if raised else None


@pytest.fixture
def bed(store, proxy, tmp_path, monkeypatch, on_a_small_disk):
    monkeypatch.setattr(storage.OBJECTS, "part", PART)
    """An object OLD under a key, and NEW in a file that is to take its place.

    Afterwards, the fault being over, `check` looks at what is in the bucket and in the cache and does the work again.
    """
    bed = Bed(store, proxy, tmp_path, monkeypatch, on_a_small_disk)
    yield bed
    check(bed)


def check(bed: Bed) -> None:
    assert bed.server.process.poll() is None
    assert stored(bed.server, bed.key) in (OLD, NEW), "what was there, or what took its place"
    whole = [OLD, NEW, *bed.others]
    for path in (bed.tmp_path / "cache").rglob("*"):
        if path.is_file() and not path.name.startswith(".") and path.suffix != ".lock":
            assert path.read_bytes() in whole, "a partial file under its final name"
    bed.mend()
    assert bed.get() in (OLD, NEW)
    bed.put()
    assert bed.get() == NEW == stored(bed.server, bed.key)
    folder = bed.uri.rpartition("/")[0]
    assert not [name for name in storage.children(folder, recursive=True) if name.startswith(("object.", ".object"))]
