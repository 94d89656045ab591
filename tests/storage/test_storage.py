"""Objects and files: what arrives is whole and right, or nothing arrives and the reason is told."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import threading
import time
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest

from stereo_core import storage
from stereo_core.errors import DataError
from stereo_core.storage import StorageError

pytestmark = [pytest.mark.service, pytest.mark.timeout(120)]
PART = 5 * 2**20


def random_bytes(size: int, seed: int = 0) -> bytes:
    return np.random.default_rng(seed).bytes(size)


def put(server, key: str, data: bytes, **more) -> str:
    """An object by another program: without our checksum."""
    server.admin().put_object("artifacts", key, BytesIO(data), len(data), **more)
    return f"s3://artifacts/{key}"


def stored(server, key: str) -> bytes | None:
    from minio.error import S3Error

    for _ in range(100):
        try:
            return server.admin().get_object("artifacts", key).data
        except S3Error as error:
            if error.code == "NoSuchKey":
                return None
            assert error.code == "InternalError", "its volumes are being loaded"
            time.sleep(0.2)
    return pytest.fail("the server did not come back")


def cached(folder: Path) -> list[Path]:
    """Every file in the cache, partial ones too."""
    return sorted(path for path in (folder / "cache").rglob("*") if path.is_file())


def written(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("size", [0, 1, PART - 1, 3 * PART + 17])
def test_there_and_back(store, tmp_path, monkeypatch, size):
    monkeypatch.setattr(storage, "PART", PART)
    data = random_bytes(size)
    storage.upload(written(tmp_path / "file", data), f"aws://artifacts/back/{size}")
    assert stored(store, f"back/{size}") == data
    assert storage.fetch(f"minio://artifacts/back/{size}").read_bytes() == data
    found = store.admin().stat_object("artifacts", f"back/{size}")
    assert found.metadata[storage.SHA256] == hashlib.sha256(data).hexdigest()


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


def test_an_object_that_changes_during_a_run_is_an_error(store, tmp_path):
    uri = put(store, "moving", b"old contents")
    storage.look(uri)
    put(store, "moving", b"new contents")
    with pytest.raises(StorageError, match="was changed during the run"):
        storage.fetch(uri)
    assert not cached(tmp_path)


def test_a_truncated_file_in_the_cache_is_replaced(store, tmp_path):
    uri = put(store, "short", b"0123456789")
    path = storage.fetch(uri)
    os.truncate(path, 4)
    assert storage.read(uri) == b"0123456789"


def test_damage_is_found_by_our_checksum(store, tmp_path):
    uri = put(store, "wrong", b"damaged", metadata={"sha256": hashlib.sha256(b"genuine").hexdigest()})
    with pytest.raises(StorageError, match="checksum differs"):
        storage.fetch(uri)
    assert not cached(tmp_path)


def test_damage_on_the_way_is_found_by_the_md5(store, tmp_path, monkeypatch):
    """Bytes written wrongly, by the disk or the way there, of an object that another program stored."""
    uri, pwrite = put(store, "bits", b"0" * 100), os.pwrite
    monkeypatch.setattr(storage.os, "pwrite", lambda file, data, start: pwrite(file, b"1" + data[1:], start))
    with pytest.raises(StorageError, match="checksum differs"):
        storage.fetch(uri)
    assert not cached(tmp_path)


def test_a_dropped_connection_is_taken_up_where_it_ended(store, tmp_path, proxy):
    data = random_bytes(4 * 2**20)
    uri = put(store, "dropped", data)
    storage.look(uri)
    proxy.passed, proxy.cuts = 0, [2**20, 2**20]
    assert storage.fetch(uri).read_bytes() == data
    assert not proxy.cuts and proxy.passed < 6 * 2**20, "what had arrived was not asked for again"


def test_a_connection_that_always_drops_ends_in_an_error(store, tmp_path, proxy):
    uri = put(store, "drops", random_bytes(4 * 2**20))
    storage.look(uri)
    proxy.cuts = [65536] * 40
    with pytest.raises(StorageError, match="does not answer as it should"):
        storage.fetch(uri)
    assert not cached(tmp_path)


def test_a_truncated_answer_of_one_part_of_many(store, tmp_path, proxy, monkeypatch):
    monkeypatch.setattr(storage, "PART", 2**20)
    data = random_bytes(5 * 2**20 + 3)
    uri = put(store, "parts", data)
    storage.look(uri)
    proxy.cuts = [300_000]
    assert storage.fetch(uri).read_bytes() == data


def test_a_slow_server_is_waited_for(store, tmp_path, proxy):
    data = random_bytes(2**20)
    uri = put(store, "slow", data)
    proxy.pause = 0.05
    assert storage.read(uri) == data


def test_a_silent_server_ends_in_an_error(store, tmp_path, proxy, monkeypatch):
    uri = put(store, "silent", random_bytes(2**20))
    monkeypatch.setattr(storage, "SILENCE", 0.3)
    storage.look(uri)
    proxy.pause = 2
    with pytest.raises(StorageError, match="does not answer as it should"):
        storage.fetch(uri)
    assert not cached(tmp_path)


def test_no_server_is_a_failure_that_does_not_name_it(store, tmp_path, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(StorageError, match="does not answer") as told:
        storage.look("s3://artifacts/x")
    assert "127.0.0.1" not in str(told.value)


@pytest.mark.parametrize("key, secret", [("K", "not-this-one"), ("unknown-one", "S")])
def test_wrong_credentials(store, tmp_path, monkeypatch, key, secret):
    uri = put(store, "guarded", b"x")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", secret)
    storage._connect.cache_clear()
    for action in (lambda: storage.fetch(uri), lambda: storage.children("s3://artifacts")):
        with pytest.raises(DataError, match="access denied") as told:
            action()
        assert "-one" not in str(told.value), "neither key nor secret is told"
    assert not cached(tmp_path)


def test_a_read_only_key_reads_and_does_not_write(store, tmp_path, monkeypatch):
    uri = put(store, "readable", b"x")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "RK")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "RS")
    storage._connect.cache_clear()
    assert storage.read(uri) == b"x"
    with pytest.raises(DataError, match="access denied"):
        storage.upload(written(tmp_path / "file", b"y"), uri)
    assert stored(store, "readable") == b"x"


def test_credentials_of_a_file(store, tmp_path, monkeypatch):
    uri = put(store, "by-file", b"x")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    lines = "[default]\naws_access_key_id = K\naws_secret_access_key = S\n"
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(written(tmp_path / "credentials", lines.encode())))
    storage._connect.cache_clear()
    assert storage.read(uri) == b"x"


def test_missing_bucket_and_object(store, tmp_path):
    with pytest.raises(DataError, match="s3://artifacts/none: no such object"):
        storage.fetch("s3://artifacts/none")
    with pytest.raises(DataError, match="s3://nowhere/x: no such"):
        storage.fetch("s3://nowhere/x")
    with pytest.raises(DataError, match="s3://nowhere: no such bucket"):
        storage.children("s3://nowhere")
    with pytest.raises(DataError, match="no object below this prefix"):
        storage.fetch_tree("s3://artifacts/none", tmp_path / "tree")


def test_a_tree(store, tmp_path):
    for name in ("a.txt", "b/c.txt", "b/d/e.txt"):
        put(store, f"tree/{name}", name.encode())
    put(store, "tree-beside/f.txt", b"f")
    found = storage.fetch_tree("s3://artifacts/tree/", tmp_path / "tree")
    files = {path.relative_to(tmp_path / "tree").as_posix() for path in (tmp_path / "tree").rglob("*.txt")}
    assert files == set(found) == {"a.txt", "b/c.txt", "b/d/e.txt"}
    assert (tmp_path / "tree/b/c.txt").read_bytes() == b"b/c.txt"
    assert set(storage.children("s3://artifacts/tree/b")) == {"c.txt"}


def test_the_disk_is_full(store, tmp_path):
    """RLIMIT_FSIZE stands for it: the write of a large file fails, in a process of its own."""
    uri = put(store, "large", random_bytes(3 * 2**20))
    code = (
        "import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, 2**20));"
        f"from stereo_core import storage; storage.fetch({uri!r})"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ended.returncode == 1 and "StorageError: s3://artifacts/large: can not be written to" in ended.stderr
    assert not cached(tmp_path)
    assert len(storage.read(uri)) == 3 * 2**20, "with room it goes well"


def test_least_recently_used_goes_first(store, tmp_path, monkeypatch):
    monkeypatch.setenv("STEREO_CACHE_GIB", str(1 / 1024))  # 1 MiB
    sizes = (300_000, 300_000, 300_000, 500_000)
    uris = [put(store, f"lru/{number}", random_bytes(size, number)) for number, size in enumerate(sizes)]
    paths = []
    for age, uri in enumerate(uris[:3]):
        paths.append(storage.fetch(uri))
        os.utime(paths[-1], (age, age))
    storage.fetch(uris[0])
    kept = storage.fetch_to(uris[2], tmp_path / "mine")
    os.utime(paths[2], (2, 2))
    storage.fetch(uris[3])
    assert [path.exists() for path in paths] == [True, False, False]
    assert kept.read_bytes() == random_bytes(300_000, 2), "what a run uses is not evicted"
    assert sum(path.stat().st_size for path in cached(tmp_path)) <= 2**20


def test_an_object_larger_than_the_cache(store, tmp_path, monkeypatch):
    uri = put(store, "giant", random_bytes(2**20))
    monkeypatch.setenv("STEREO_CACHE_GIB", str(1 / 1024))
    with pytest.raises(DataError, match="raise STEREO_CACHE_GIB"):
        storage.fetch(uri)


def test_two_processes_fetch_one_object_once(store, tmp_path, proxy):
    data = random_bytes(6 * 2**20)
    uri = put(store, "shared", data)
    proxy.pause = 0.002
    code = f"from stereo_core import storage; assert len(storage.read({uri!r})) == {len(data)}"
    others = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(3)]
    assert [other.wait() for other in others] == [0, 0, 0]
    assert proxy.passed < 1.5 * len(data)
    assert len(cached(tmp_path)) == 1


def test_kill_9_of_the_client_leaves_no_object_in_the_cache(store, tmp_path, proxy):
    data = random_bytes(6 * 2**20)
    uri = put(store, "killed", data)
    proxy.pause = 0.05
    code = f"from stereo_core import storage; storage.fetch({uri!r})"
    with subprocess.Popen([sys.executable, "-c", code]) as other:
        while proxy.passed < 2**20:
            assert other.poll() is None
            time.sleep(0.01)
        other.kill()
    proxy.pause = 0
    assert all(path.name.startswith(".") or path.suffix == ".lock" for path in cached(tmp_path))
    assert storage.read(uri) == data


def test_the_server_dies_in_the_middle_of_a_get(store, tmp_path, proxy):
    data = random_bytes(8 * 2**20)
    uri = put(store, "dies-get", data)
    storage.look(uri)
    proxy.pause, proxy.passed = 0.05, 0
    failed = in_the_middle(lambda: storage.fetch(uri), proxy, store)
    assert isinstance(failed, StorageError)
    assert not cached(tmp_path)
    proxy.pause = 0
    store.start()
    assert stored(store, "dies-get") == data, "it is still there"
    assert storage.read(uri) == data


def test_the_server_dies_in_the_middle_of_a_put(store, tmp_path, proxy, monkeypatch):
    monkeypatch.setattr(storage, "PART", PART)
    put(store, "dies-put", b"what was there before")
    data = random_bytes(4 * PART)
    file = written(tmp_path / "file", data)
    proxy.passed = 0
    failed = in_the_middle(lambda: storage.upload(file, "s3://artifacts/dies-put"), proxy, store)
    assert isinstance(failed, StorageError)
    store.start()
    assert stored(store, "dies-put") == b"what was there before"
    storage.upload(file, "s3://artifacts/dies-put")
    assert stored(store, "dies-put") == data


def in_the_middle(work, proxy, server) -> BaseException | None:
    """Kill the server once 2 MiB of the work have passed; returns what the work raised."""
    raised = []

    def run() -> None:
        try:
            work()
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    while proxy.passed < 2 * 2**20 and thread.is_alive():
        time.sleep(0.001)
    server.kill()
    thread.join()
    return raised[0] if raised else None
