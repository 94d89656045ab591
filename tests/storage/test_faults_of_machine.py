"""Faults of this machine, and processes that end: nothing lost, nothing partial (`bed` checks), then it goes well."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
from objects import NEW, OLD, OTHER_PROCESS, PART, put, random_bytes, stored

from stereo_core import storage
from stereo_core.errors import DataError
from stereo_core.storage import StorageError
from stereo_core.storage.cache import sweep
from stereo_core.storage.transfers import MOMENT

pytestmark = [pytest.mark.service, pytest.mark.timeout(120)]


def test_disk_that_is_full(bed):
    """RLIMIT_FSIZE stands for it."""
    with bed.other(f"--largest-file={2**20}", "read", str(len(OLD)), bed.uri) as other:
        assert "StorageError" in (told := other.communicate()[1]) and "cannot be written to the cache" in told
    assert other.returncode == 1 and not [path for path in (bed.tmp_path / "cache").rglob("*") if path.is_file()]


def test_disk_that_others_have_filled(bed):
    """Long before the cache is at its limit: what was not used for longest goes, as it would there."""
    size = 6 * 2**20
    uris = [put(bed.server, f"{bed.key}-{number}", random_bytes(size, number)) for number in range(3)]
    read = [sys.executable, OTHER_PROCESS, "read", str(size), *uris]
    done = bed.on_a_small_disk(bed.tmp_path / "cache", "15m", *read)
    assert done.returncode == 0, done.stderr


def test_disk_that_is_full_where_a_tree_is_to_go(bed):
    uri, into = put(bed.server, f"{bed.key}-tree/a", OLD).removesuffix("/a"), bed.tmp_path / "small"
    bed.others.append(OLD)
    done = bed.on_a_small_disk(into, "3m", sys.executable, OTHER_PROCESS, "tree", uri, into)
    assert "No space left" in done.stdout and str(into) in done.stdout and done.stdout.endswith("[]\n"), done


def test_cache_that_is_no_folder(bed):
    bed.patch.setenv("STEREO_CACHE", str(bed.file))
    bed.fails(StorageError, "set STEREO_CACHE to another folder", bed.get)
    bed.patch.setenv("STEREO_CACHE", str(bed.tmp_path / "cache"))


def test_object_larger_than_the_cache(bed):
    bed.patch.setenv("STEREO_CACHE_GIB", str(1 / 1024))
    bed.fails(DataError, "raise STEREO_CACHE_GIB", bed.get)


def test_cache_over_its_limit(bed):
    """What another run reads stays readable while it is evicted; the limit holds."""
    bed.patch.setenv("STEREO_CACHE_GIB", str(10 / 1024))
    with storage.fetch(bed.uri).open("rb") as reader:
        for number in range(3):
            bed.others.append(random_bytes(4 * 2**20, number + 5))
            put(bed.server, f"{bed.key}-{number}", bed.others[-1])
            storage.fetch(f"{bed.uri}-{number}")
        assert reader.read() == OLD
    files = [path for path in (bed.tmp_path / "cache").rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 10 * 2**20


def test_several_processes_that_fetch_one_object(bed):
    bed.proxy.pause, bed.proxy.passed = 0.002, 0
    others = [bed.other("read", str(len(OLD)), bed.uri) for _ in range(3)]
    assert [other.wait() for other in others] == [0, 0, 0]
    assert bed.proxy.passed < 1.5 * len(OLD), "one of them fetched it"


def test_cache_over_its_limit_while_another_process_fetches(bed):
    """What it has not finished stays."""
    with midway(bed, "read", str(len(OLD)), bed.uri) as other:
        sweep(0)
        bed.proxy.pause = 0.0
    assert other.returncode == 0


@contextlib.contextmanager
def midway(bed, *arguments: str | Path) -> Iterator[subprocess.Popen]:
    """Another process, once 2 MiB of its work have passed."""
    bed.proxy.pause, bed.proxy.passed = 0.02, 0
    with bed.other(*arguments) as other:
        while bed.proxy.passed < 2 * 2**20:
            assert other.poll() is None
            time.sleep(0.005)
        yield other


def killed_midway(bed, *arguments: str | Path) -> None:
    with midway(bed, *arguments) as other:
        other.send_signal(signal.SIGKILL)
    assert other.returncode == -signal.SIGKILL


def terminated_midway(bed, *arguments: str | Path, break_it: Callable = lambda: None) -> None:
    with midway(bed, *arguments) as other:
        break_it()
        begin = time.monotonic()
        other.send_signal(signal.SIGTERM)
        assert "Terminated: SIGTERM" in other.communicate()[1]
    assert time.monotonic() - begin < 2 + MOMENT, "sooner than who sent it loses patience"


def test_client_stopped_in_the_middle_of_a_get_from_a_server_that_went_silent(bed):
    silent = partial(setattr, bed.proxy, "pause", 100)
    terminated_midway(bed, "read", str(len(OLD)), bed.uri, break_it=silent)


def test_client_stopped_in_the_middle_of_a_put(bed):
    """No part of it stays in the bucket, where nobody would see it."""
    bed.file.write_bytes(random_bytes(12 * PART))
    terminated_midway(bed, "upload", bed.file, bed.uri)
    bed.file.write_bytes(NEW)
    assert stored(bed.server, bed.key) == OLD
    assert bed.server.admin()._list_multipart_uploads("artifacts", prefix=bed.key).uploads == []


def test_client_killed_in_the_middle_of_a_get(bed):
    killed_midway(bed, "read", str(len(OLD)), bed.uri)


def test_client_killed_in_the_middle_of_a_put(bed):
    killed_midway(bed, "upload", bed.file, bed.uri)
    assert stored(bed.server, bed.key) == OLD


def test_server_killed_in_the_middle_of_a_get(bed):
    large = put(bed.server, f"{bed.key}-large", random_bytes(8 * PART))  # more than sockets hold
    storage.look(large)
    bed.proxy.pause = 0.02
    failed = bed.midway(lambda: storage.fetch(large), bed.server.kill)
    bed.server.start()
    assert isinstance(failed, StorageError)
    assert stored(bed.server, bed.key) == OLD, "it is still there"


def test_server_killed_in_the_middle_of_a_put(bed):
    failed = bed.midway(bed.put, bed.server.kill)
    bed.server.start()
    assert isinstance(failed, StorageError)
    assert stored(bed.server, bed.key) == OLD
