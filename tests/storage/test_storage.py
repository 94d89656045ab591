"""Objects and files: what arrives is whole and right, or nothing arrives and the reason is told."""

from __future__ import annotations

import contextlib
import hashlib
import os
import sys
import time

import pytest
from objects import PART, answer, cached, put, random_bytes, stored, written

from stereo_core import storage
from stereo_core.storage.client import Patience
from stereo_core.storage.objects import SHA256

pytestmark = [pytest.mark.service, pytest.mark.timeout(120)]


@pytest.mark.parametrize("size", [0, 1, PART - 1, 3 * PART + 17])
def test_there_and_back(store, tmp_path, monkeypatch, size):
    monkeypatch.setattr(storage.OBJECTS, "part", PART)
    data = random_bytes(size)
    storage.upload(written(tmp_path / "file", data), f"aws://artifacts/back/{size}")
    assert stored(store, f"back/{size}") == data
    assert storage.fetch(f"minio://artifacts/back/{size}").read_bytes() == data
    found = store.admin().stat_object("artifacts", f"back/{size}")
    assert found.metadata[SHA256] == hashlib.sha256(data).hexdigest()


def test_parts_travel_side_by_side(store, tmp_path, monkeypatch, proxy):
    """Each on a connection of its own: one after the other they would share one."""
    monkeypatch.setattr(storage.OBJECTS, "part", PART)
    proxy.pause, uri = 0.05, "s3://artifacts/parts"
    storage.upload(written(tmp_path / "file", random_bytes(3 * PART + 17)), uri)
    assert store.admin().stat_object("artifacts", "parts").etag.endswith("-4")
    assert proxy.connections >= 3
    storage.look(uri)
    storage.CLIENTS.forget()
    proxy.connections, proxy.pause = 0, 0.002
    storage.fetch(uri)
    assert proxy.connections >= 3


@pytest.mark.parametrize(
    ("faults", "seconds"),
    [
        ({"cuts": [1000] * 5}, 0.3 + 0.6),
        ({"answers": [answer("503 Slow Down", "<Error><Code>SlowDown</Code></Error>")] * 2}, 1),
    ],
)
def test_another_try_waits_longer_each_time(store, monkeypatch, proxy, faults, seconds):
    monkeypatch.setattr(storage.CLIENTS, "patience", Patience(pauses=(0.3, 0.6), retries=2))
    uri = put(store, "pauses", random_bytes(2**20))
    storage.look(uri)
    vars(proxy).update(faults)
    begin = time.monotonic()
    with contextlib.suppress(storage.StorageError):
        storage.fetch(uri)
    assert time.monotonic() - begin >= seconds


def test_one_object_has_a_bar_on_a_terminal(store, tmp_path, monkeypatch, terminal):
    monkeypatch.setattr(storage.OBJECTS, "part", PART)
    monkeypatch.setattr(sys, "stderr", terminal)
    storage.upload(written(tmp_path / "file", bytes(2 * PART)), "s3://artifacts/shown-up")
    assert "shown-up" in terminal.getvalue() and "10.5/10.5 MB" in terminal.getvalue()
    terminal.truncate(0)
    storage.fetch("s3://artifacts/shown-up")
    assert "shown-up" in terminal.getvalue() and "10.5/10.5 MB" in terminal.getvalue()


def test_a_cached_object_is_not_fetched_again(store, tmp_path, proxy):
    uri = put(store, "again", random_bytes(2**20))
    first = storage.fetch(uri)
    storage.forget()
    passed = proxy.passed
    assert storage.fetch(uri) == first
    assert proxy.passed - passed < 4096, "a question, not the object"


def test_an_object_that_changed_is_fetched_anew(store, tmp_path):
    uri = put(store, "changes", b"old contents")
    assert storage.read(uri) == b"old contents"
    put(store, "changes", b"new contents")
    storage.forget()
    assert storage.read(uri) == b"new contents"


def test_a_tree(store, tmp_path):
    for name in ("a.txt", "b/c.txt", "b/d/e.txt"):
        put(store, f"tree/{name}", name.encode())
    put(store, "tree-beside/f.txt", b"f")
    found = storage.fetch_tree("s3://artifacts/tree/", tmp_path / "tree")
    files = {path.relative_to(tmp_path / "tree").as_posix() for path in (tmp_path / "tree").rglob("*.txt")}
    assert files == set(found) == {"a.txt", "b/c.txt", "b/d/e.txt"}
    assert (tmp_path / "tree/b/c.txt").read_bytes() == b"b/c.txt"
    assert set(storage.children("s3://artifacts/tree/b")) == {"c.txt"}


def test_a_tree_has_a_bar_on_a_terminal(store, tmp_path, monkeypatch, terminal):
    monkeypatch.setattr(storage.OBJECTS, "part", 100)
    monkeypatch.setattr(sys, "stderr", terminal)
    for name in "ab":
        put(store, f"shown/{name}", bytes(300))
    storage.fetch_tree("s3://artifacts/shown", tmp_path / "shown")
    assert "shown" in terminal.getvalue() and "600/600 bytes" in terminal.getvalue()


def test_least_recently_used_goes_first(store, tmp_path, monkeypatch):
    monkeypatch.setenv("STEREO_CACHE_GIB", str(1 / 1024))  # 1 MiB
    sizes = (300_000, 300_000, 300_000, 500_000)
    uris = [put(store, f"lru/{number}", random_bytes(size, number)) for number, size in enumerate(sizes)]
    paths = []
    for age, uri in enumerate(uris[:3]):
        paths.append(storage.fetch(uri))
        os.utime(paths[-1], (age, paths[-1].stat().st_mtime))
    storage.fetch(uris[0])
    kept = storage.fetch_to(uris[2], tmp_path / "mine")
    os.utime(paths[2], (2, paths[2].stat().st_mtime))
    storage.fetch(uris[3])
    assert [path.exists() for path in paths] == [True, False, False]
    assert kept.read_bytes() == random_bytes(300_000, 2), "what a run uses is not evicted"
    assert sum(path.stat().st_size for path in cached(tmp_path)) <= 2**20
