"""Faults of the storage, of the way to it and of this machine: nothing is lost, no partial file, and then it goes well.

Each fault has a function. It begins with OLD under a key, and NEW in a file that is to take its place; afterwards, the
fault being over, `check` looks at what is in the bucket and in the cache and does the work again.
"""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from objects import answer, put, random_bytes, stored, written

from stereo_core import storage
from stereo_core.errors import DataError
from stereo_core.storage import StorageError
from stereo_core.storage.transfers import MOMENT

pytestmark = [pytest.mark.service, pytest.mark.timeout(120)]
PART = 5 * 2**20
OLD, NEW = random_bytes(PART + 2**20, 1), random_bytes(3 * PART + 17, 2)
FAULTS: dict[str, Callable] = {}
SILENCE = storage.SILENCE
REFUSALS = {
    "expired": answer("403 Forbidden", "<Error><Code>ExpiredToken</Code><Message>The token is old</Message></Error>"),
    "busy": answer("503 Slow Down", "<Error><Code>SlowDown</Code></Error>"),
    "many": answer("429 Too Many Requests", "<Error><Code>TooManyRequests</Code></Error>"),
    "nowhere": answer("404 Not Found", "<Error><Code>NoSuchBucket</Code></Error>"),
    "over": answer("404 Not Found", "<Error><Code>NoSuchUpload</Code></Error>"),
    "none": b"",
    "broken": answer("500 Internal Server Error", "<Error><Code>InternalError</Code></Error>"),
}


def fault(function: Callable) -> Callable:
    FAULTS[function.__name__] = function
    return function


class Bed:
    """An object and a file, by way of a proxy."""

    def __init__(self, server, proxy, tmp_path: Path, monkeypatch, on_a_small_disk) -> None:
        self.on_a_small_disk = on_a_small_disk
        self.server, self.proxy, self.tmp_path, self.patch = server, proxy, tmp_path, monkeypatch
        self.key = f"faults/{tmp_path.name}/object"
        self.uri = put(server, self.key, OLD)
        self.file = written(tmp_path / "file", NEW)
        self.others: list[bytes] = []  # what else may lie in the cache

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
        storage._connect.cache_clear()

    def fails(self, kind: type[Exception], told: str, *works: Callable) -> None:
        for work in works:
            with pytest.raises(kind, match=told) as raised:
                work()
            assert not [word for word in ("127.0.0.1", "-one") if word in str(raised.value)], "no host, key or secret"

    def mend(self) -> None:
        self.proxy.pause, self.proxy.cuts, self.proxy.answers = 0.0, [], []
        self.patch.setenv("AWS_ENDPOINT_URL", self.proxy.url)
        self.patch.delenv("STEREO_CACHE_GIB", raising=False)
        self.patch.setattr(storage, "SILENCE", SILENCE)
        self.credentials("K", "S")

    def python(self, line: str, before: str = "") -> subprocess.Popen:
        """Another process, which knows the environment."""
        code = f"{before}\nfrom pathlib import Path\nfrom stereo_core import storage\nstorage.PART = {PART}\n{line}"
        return subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True)

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
    monkeypatch.setattr(storage, "PART", PART)
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


# ---- rights and names


@fault
def wrong_secret(bed):
    bed.credentials("K", "not-this-one")
    bed.fails(DataError, "access denied", bed.get, bed.put, lambda: storage.children("s3://artifacts"))


@fault
def unknown_key(bed):
    bed.credentials("unknown-one", "S")
    bed.fails(DataError, "access denied", bed.get, bed.put)


@fault
def read_only_key(bed):
    bed.credentials("RK", "RS")
    assert bed.get() == OLD
    bed.fails(DataError, "access denied", bed.put, lambda: storage.remove(bed.uri))
    assert stored(bed.server, bed.key) == OLD


@fault
def no_credentials(bed):
    bed.patch.setenv("HOME", str(bed.tmp_path))
    bed.patch.setattr(storage, "INSTANCE", 0.1)
    bed.credentials("", "")
    bed.fails(DataError, "no credentials found", bed.get)


@fault
def missing_bucket(bed):
    bed.fails(DataError, "s3://nowhere/x: no such bucket", lambda: storage.fetch("s3://nowhere/x"))
    bed.proxy.answers = [REFUSALS["nowhere"]]  # this server would make the bucket
    bed.fails(DataError, "s3://nowhere/x: no such bucket", lambda: storage.upload(bed.file, "s3://nowhere/x"))
    bed.fails(DataError, "s3://nowhere: no such bucket", lambda: storage.children("s3://nowhere"))


@fault
def missing_object(bed):
    bed.fails(DataError, "s3://artifacts/none: no such object", lambda: storage.fetch("s3://artifacts/none"))
    bed.fails(DataError, "no object below this prefix", lambda: storage.fetch_tree(f"{bed.uri}/none", bed.tmp_path))


@fault
def odd_characters_in_a_key(bed):
    for number, name in enumerate(("ä ö/ü#1 %41+?&=.png", "a'b\"c;$(x)d", "~/-_.!*()", "日本/左.pfm")):
        data = f"data {number}".encode()
        bed.others.append(data)
        storage.upload(written(bed.tmp_path / "small", data), f"{bed.uri}-odd/{name}")
        assert storage.read(f"{bed.uri}-odd/{name}") == data
        assert name in storage.children(f"{bed.uri}-odd", recursive=True)


@fault
def keys_that_lead_out_of_the_folder(bed):
    item = (
        "<Contents><Key>tree/{}</Key><LastModified>2026-01-01T00:00:00.000Z</LastModified><ETag>x</ETag><Size>1</Size>"
    )
    for name in ("../../escaped", "a/../../escaped", "/escaped"):
        listing = f"<Name>artifacts</Name>{item.format(name)}</Contents><IsTruncated>false</IsTruncated>"
        xml = f'<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">{listing}</ListBucketResult>'
        bed.proxy.answers = [answer("200 OK", xml)]
        into = bed.tmp_path / "in/tree"
        bed.fails(
            DataError, "an empty part, . or .. in the key", lambda i=into: storage.fetch_tree("s3://artifacts/tree", i)
        )
        assert not list(bed.tmp_path.rglob("escaped"))


# ---- the way there


@fault
def no_server(bed):
    bed.patch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    bed.fails(StorageError, "does not answer", bed.get, bed.put)


@fault
def slow_server(bed):
    """One that takes longer than it may be silent, in pieces."""
    bed.patch.setattr(storage, "SILENCE", 1.5)
    bed.patch.setattr(storage, "PAUSES", ())
    bed.look()
    bed.proxy.pause, begin = 0.05, time.monotonic()
    assert storage.read(bed.uri) == OLD
    assert time.monotonic() - begin > 2 * storage.SILENCE


@fault
def silent_server(bed):
    bed.patch.setattr(storage, "SILENCE", 0.3)
    bed.look()
    bed.proxy.pause = 2
    bed.fails(StorageError, "does not answer as it should", lambda: storage.fetch(bed.uri))


@fault
def download_that_breaks_off_once(bed):
    bed.look()
    bed.proxy.passed, bed.proxy.cuts = 0, [2**20, 2**19]
    assert storage.read(bed.uri) == OLD
    assert not bed.proxy.cuts and bed.proxy.passed < 8 * 2**20, "what had arrived was not asked for again"


@fault
def download_that_always_breaks_off(bed):
    bed.look()
    bed.proxy.cuts = [65536] * 40
    bed.fails(StorageError, "does not answer as it should", lambda: storage.fetch(bed.uri))


@fault
def upload_that_is_never_answered(bed):
    bed.proxy.answers = [None, None] + [b""] * 40
    bed.fails(StorageError, "does not answer as it should", bed.put)
    assert stored(bed.server, bed.key) == OLD


@fault
def upload_that_breaks_off_once(bed):
    bed.proxy.answers = [None, None, b""]
    bed.put()
    assert stored(bed.server, bed.key) == NEW


@fault
def upload_whose_first_or_last_request_fails_once(bed):
    """One to begin it, four parts, one to end it."""
    for before, refusal in ((0, "busy"), (5, "none"), (5, "many")):
        bed.proxy.answers = [None] * before + [REFUSALS[refusal]]
        bed.put()
        assert bed.proxy.answers == [] and stored(bed.server, bed.key) == NEW


@fault
def upload_whose_last_answer_is_lost(bed):
    """To the second asking AWS says that there is no such upload; this server does not."""
    bed.proxy.losing, bed.proxy.answers = 1, [None] * 5 + [REFUSALS["over"]]
    bed.put()
    assert bed.proxy.losing == 0 and bed.proxy.answers == [] and stored(bed.server, bed.key) == NEW


@fault
def busy_for_a_moment(bed):
    bed.proxy.answers = [REFUSALS["busy"]]
    assert bed.get() == OLD


@fault
def busy_for_good(bed):
    bed.proxy.answers = [REFUSALS["busy"]] * 40
    bed.fails(StorageError, "the storage", bed.get, bed.put)


@fault
def server_error_in_the_middle_of_an_upload(bed):
    bed.proxy.answers = [None, None, REFUSALS["broken"]]
    bed.put()
    assert stored(bed.server, bed.key) == NEW


@fault
def token_that_expires_in_the_middle_of_a_get(bed):
    bed.look()
    bed.proxy.answers = [None, REFUSALS["expired"]]
    bed.fails(DataError, "access denied .ExpiredToken", lambda: storage.fetch(bed.uri))


@fault
def token_that_expires_in_the_middle_of_a_put(bed):
    bed.proxy.answers = [None, None, REFUSALS["expired"]]
    bed.fails(DataError, "access denied .ExpiredToken", bed.put)
    assert stored(bed.server, bed.key) == OLD


# ---- contents


@fault
def object_that_changes_in_the_middle_of_a_run(bed):
    bed.look()
    put(bed.server, bed.key, NEW)
    bed.fails(StorageError, "was changed during the run", lambda: storage.fetch(bed.uri))


@fault
def object_that_changes_between_two_runs(bed):
    assert bed.get() == OLD
    put(bed.server, bed.key, NEW)
    assert bed.get() == NEW


@fault
def object_that_is_not_what_was_stored(bed):
    uri = put(bed.server, f"{bed.key}-wrong", b"damaged", metadata={"sha256": hashlib.sha256(b"genuine").hexdigest()})
    bed.fails(StorageError, "checksum differs", lambda: storage.fetch(uri))


@fault
def bits_that_flip_on_the_way(bed):
    """Of an object that another program stored: its MD5 tells."""
    pwrite = os.pwrite
    bed.patch.setattr(storage.os, "pwrite", lambda file, data, start: pwrite(file, b"1" + data[1:], start))
    uri = put(bed.server, f"{bed.key}-bits", b"0" * 100)
    bed.fails(StorageError, "checksum differs", lambda: storage.fetch(uri))
    bed.patch.setattr(storage.os, "pwrite", pwrite)


@fault
def truncated_file_in_the_cache(bed):
    bed.look()
    os.truncate(storage.fetch(bed.uri), 4)
    assert bed.get() == OLD


@fault
def cache_that_another_program_writes_to(bed):
    bed.look()
    path = storage.fetch_to(bed.uri, bed.tmp_path / "mine")
    with path.open("r+b") as file:
        file.write(b"changed")
    assert bed.get() == OLD


# ---- this machine


@fault
def disk_that_is_full(bed):
    """RLIMIT_FSIZE stands for it."""
    limit = "import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
    with bed.python(
        f"storage.fetch({bed.uri!r})", f"{limit}resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, 2**20))"
    ) as p:
        assert "StorageError" in (told := p.communicate()[1]) and "can not be written to the cache" in told
    assert p.returncode == 1 and not [path for path in (bed.tmp_path / "cache").rglob("*") if path.is_file()]


@fault
def disk_that_others_have_filled(bed):
    """Long before the cache is at its limit: what was not used for longest goes, as it would there."""
    uris = [put(bed.server, f"{bed.key}-{number}", random_bytes(6 * 2**20, number)) for number in range(3)]
    code = (
        f"from stereo_core import storage\nfor uri in {uris}: size = len(storage.read(uri))\nassert size == 6 * 2**20"
    )
    done = bed.on_a_small_disk(bed.tmp_path / "cache", "15m", sys.executable, "-c", code)
    assert done.returncode == 0, done.stderr


@fault
def disk_that_is_full_where_a_tree_is_to_go(bed):
    uri, into = put(bed.server, f"{bed.key}-tree/a", OLD).removesuffix("/a"), bed.tmp_path / "small"
    code = (
        f"import os\nfrom pathlib import Path\nfrom stereo_core import storage\ninto = Path({str(into)!r})\n"
        f"try: storage.fetch_tree({uri!r}, into)\nexcept OSError as error: print(error, os.listdir(into))"
    )
    bed.others.append(OLD)
    done = bed.on_a_small_disk(into, "3m", sys.executable, "-c", code)
    assert "No space left" in done.stdout and str(into) in done.stdout and done.stdout.endswith("[]\n"), done


@fault
def cache_that_is_no_folder(bed):
    bed.patch.setenv("STEREO_CACHE", str(bed.file))
    bed.fails(StorageError, "can not be written to the cache", bed.get)
    bed.patch.setenv("STEREO_CACHE", str(bed.tmp_path / "cache"))


@fault
def object_larger_than_the_cache(bed):
    bed.patch.setenv("STEREO_CACHE_GIB", str(1 / 1024))
    bed.fails(DataError, "raise STEREO_CACHE_GIB", bed.get)


@fault
def cache_over_its_limit(bed):
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


@fault
def several_processes_that_fetch_one_object(bed):
    bed.proxy.pause, bed.proxy.passed = 0.002, 0
    others = [bed.python(f"assert len(storage.read({bed.uri!r})) == {len(OLD)}") for _ in range(3)]
    assert [other.wait() for other in others] == [0, 0, 0]
    assert bed.proxy.passed < 1.5 * len(OLD), "one of them fetched it"


def killed_midway(bed: Bed, line: str) -> None:
    bed.proxy.pause, bed.proxy.passed = 0.02, 0
    with bed.python(line) as other:
        while bed.proxy.passed < 2 * 2**20:
            assert other.poll() is None
            time.sleep(0.005)
        other.send_signal(signal.SIGKILL)
    assert other.returncode == -signal.SIGKILL


def terminated_midway(bed: Bed, line: str, break_it: Callable = lambda: None) -> None:
    before = "from stereo_core.run.termination import sigterm_raises\nheard = sigterm_raises([])\nheard.__enter__()"
    bed.proxy.pause, bed.proxy.passed = 0.02, 0
    with bed.python(line, before) as other:
        while bed.proxy.passed < 2 * 2**20:
            assert other.poll() is None
            time.sleep(0.005)
        break_it()
        begin = time.monotonic()
        other.send_signal(signal.SIGTERM)
        assert "Terminated: SIGTERM" in other.communicate()[1]
    assert time.monotonic() - begin < 2 + MOMENT, "sooner than who sent it loses patience"


@fault
def client_stopped_in_the_middle_of_a_get_from_a_server_that_went_silent(bed):
    terminated_midway(bed, f"storage.fetch({bed.uri!r})", lambda: setattr(bed.proxy, "pause", 100))


@fault
def client_stopped_in_the_middle_of_a_put(bed):
    """No part of it stays in the bucket, where nobody would see it."""
    bed.file.write_bytes(random_bytes(12 * PART))
    terminated_midway(bed, f"storage.upload(Path({str(bed.file)!r}), {bed.uri!r})")
    bed.file.write_bytes(NEW)
    assert stored(bed.server, bed.key) == OLD
    assert bed.server.admin()._list_multipart_uploads("artifacts", prefix=bed.key).uploads == []


@fault
def client_killed_in_the_middle_of_a_get(bed):
    killed_midway(bed, f"storage.fetch({bed.uri!r})")


@fault
def client_killed_in_the_middle_of_a_put(bed):
    killed_midway(bed, f"storage.upload(Path({str(bed.file)!r}), {bed.uri!r})")
    assert stored(bed.server, bed.key) == OLD


@fault
def server_killed_in_the_middle_of_a_get(bed):
    large = put(bed.server, f"{bed.key}-large", random_bytes(8 * PART))  # more than sockets hold
    storage.look(large)
    bed.proxy.pause = 0.02
    failed = bed.midway(lambda: storage.fetch(large), bed.server.kill)
    bed.server.start()
    assert isinstance(failed, StorageError)
    assert stored(bed.server, bed.key) == OLD, "it is still there"


@fault
def server_killed_in_the_middle_of_a_put(bed):
    failed = bed.midway(bed.put, bed.server.kill)
    bed.server.start()
    assert isinstance(failed, StorageError)
    assert stored(bed.server, bed.key) == OLD


@pytest.mark.parametrize("name", FAULTS)
def test_nothing_is_lost_and_nothing_is_partial(name, bed):
    FAULTS[name](bed)


def test_there_are_twenty_faults():
    assert len(FAULTS) >= 20
