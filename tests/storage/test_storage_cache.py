"""The cache keeps to its size; needs no server."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from stereo_core.errors import DataError
from stereo_core.files import atomic_path
from stereo_core.storage import CLIENTS, Objects
from stereo_core.storage.cache import Cache, limit, sweep

LOCK_HOLDER = Path(__file__).parents[1] / "lock_holder.py"


@pytest.fixture
def objects(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("STEREO_CACHE", str(tmp_path))
    folder = tmp_path / "objects" / "00"
    folder.mkdir(parents=True)
    return folder


def test_many_processes_keep_to_the_limit(objects, monkeypatch):
    """Each with what it knows of the cache, in turn."""
    most, size, held = 10**6, 4000, []
    monkeypatch.setenv("STEREO_CACHE_GIB", str(most / 2**30))
    caches = [Cache(Objects(CLIENTS)) for _ in range(64)]
    for number in range(7 * 64):
        caches[number % 64]._make_room("s3://b/x", size)
        (objects / str(number)).write_bytes(bytes(size))
        held.append(size * len(os.listdir(objects)))
    assert 0.85 * most < max(held) <= most


def test_an_unfinished_file_stays_while_its_process_lives_and_goes_after_it(objects):
    """Of a process that was killed nothing stays that could never be evicted."""
    whole, target = objects / ("a" * 64), objects / ("b" * 64)
    whole.write_bytes(b"whole")
    holder = [sys.executable, LOCK_HOLDER, f"{target}.lock"]
    with atomic_path(target) as unfinished, subprocess.Popen(holder, stdin=-1, stdout=-1, text=True) as other:
        unfinished.write_bytes(b"half")
        assert other.stdout.readline() == "held\n"
        assert sweep(0) == 4 and not whole.exists() and unfinished.read_bytes() == b"half"
        other.kill()
        other.wait()
        assert sweep(0) == 0 and not unfinished.exists()
        target.touch()
        unfinished.touch()


def test_size_of_the_cache(monkeypatch):
    monkeypatch.setenv("STEREO_CACHE_GIB", "much")
    with pytest.raises(DataError, match="STEREO_CACHE_GIB=much"):
        limit()
