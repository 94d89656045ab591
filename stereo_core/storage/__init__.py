"""s3://, aws:// and minio:// URIs -> files in a cache on this machine, and files -> objects.

An object is fetched in parts side by side, checked (our sha256, else its MD5, else its size) and only then has its name
in the cache; an upload completes or leaves nothing under its name. What a process has seen of an object holds for the
whole run: one that changes meanwhile is an error, never a mixture.

From the environment alone: AWS_ENDPOINT_URL_S3, AWS_ENDPOINT_URL or S3_ENDPOINT (none: AWS), AWS_REGION, credentials
(AWS_* or MINIO_* variables, ~/.aws/credentials, web identity (at AWS_ENDPOINT_URL_STS), the container's or instance's
role), STEREO_CACHE (a folder) and STEREO_CACHE_GIB. None of it is logged.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import logging
import math
import os
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from stereo_core.errors import DataError
from stereo_core.files import atomic_path, locked, sha256_of
from stereo_core.storage.transfers import PARALLEL, leaving, side_by_side

SCHEMES = ("s3://", "aws://", "minio://")
MOUNTS = {"s3://": "/s3/", "gs://": "/gcs/", "minio://": "/minio/"}  # where KFP's launcher puts remote artifacts
PART = 16 * 2**20  # bytes
RETRIES = 3  # of a request that was refused for now or got no answer
FOR_NOW = (429, 500, 502, 503, 504)
PAUSES = (0.5, 2.0, 8.0)  # s before another try of a download that broke off
CONNECT, SILENCE = 10, 30  # s: to connect, and without a byte
HURRY = 8  # s without a byte, when a signal is to end the process
INSTANCE = 2  # s for an answer of the service that has an instance's credentials: where there is none, nothing answers
ENDPOINTS = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "S3_ENDPOINT")
UNTOUCHED = 946684800  # 2000-01-01: when a file of the cache was changed last, until a program writes to it
SHA256 = "x-amz-meta-sha256"


class StorageError(OSError):
    """The storage, the way to it or the disk failed; another try may go well. The run has failed: exit 1."""


@dataclass(frozen=True)
class Entry:
    """What is known of an object: its size in bytes and its ETag, which changes with its contents."""

    size: int
    etag: str


def is_uri(path: Any) -> bool:
    """Whether a path names an object or a prefix in object storage."""
    return isinstance(path, str) and path.startswith(SCHEMES)


def bucket_of(uri: str) -> str:
    """The bucket of a URI.

    Raises:
        DataError: there is none, or a key and a secret stand before it, which the message leaves out.
    """
    scheme, _, rest = uri.partition("://")
    bucket = rest.partition("/")[0]
    if not bucket:
        raise DataError(f"{uri}: names no bucket; expected s3://bucket/key")
    if {"@", ":"} & set(bucket):
        raise DataError(
            f"{scheme}://...: @ or : in the bucket's name; write s3://bucket/key: credentials and the server's address "
            "come from the environment (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_ENDPOINT_URL)"
        )
    return bucket


def local_path(uri: str) -> Path:
    """Where an artifact's URI lies on this machine: s3:// and aws:// (the same), gs:// and minio:// under /s3, /gcs and
    /minio."""
    for scheme, mount in (MOUNTS | {"aws://": MOUNTS["s3://"]}).items():
        if uri.startswith(scheme):
            bucket_of(uri)  # refuses a secret in it before any message shows the URI
            return Path(mount) / uri.removeprefix(scheme)
    if "://" in uri and not uri.startswith("file://"):
        raise DataError(f"{uri}: scheme not supported; use a local path, {', '.join(MOUNTS)}, aws:// or file://")
    return Path(uri.removeprefix("file://"))


def split(uri: str) -> tuple[str, str]:
    """Bucket and key, without slashes at their ends.

    Raises:
        DataError: as `bucket_of`; or a key with an empty, `.` or `..` part, which no local path can stand for.
    """
    bucket = bucket_of(uri)
    key = uri.partition("://")[2].partition("/")[2].rstrip("/")
    if key and {"", ".", ".."} & set(key.split("/")):
        raise DataError(f"{uri}: an empty part, . or .. in the key; name the object as the bucket lists it")
    return bucket, key


# ---- reading


_seen: dict[tuple[str, str], Entry] = {}


def forget() -> None:
    """A new run begins: objects are looked at anew."""
    _seen.clear()


def look(uri: str) -> Entry:
    """Size and ETag of an object, as this run saw it first.

    Raises:
        DataError: no such bucket or object, or no right to read it.
        StorageError: the storage can not be reached.
    """
    from minio.error import S3Error

    bucket, key = split(uri)
    if (bucket, key) in _seen:
        return _seen[bucket, key]
    with _told(uri):
        client = _client(uri)
        try:
            found = client.stat_object(bucket, key)
        except S3Error as error:  # of a bucket that is not there the storage says the same
            if error.code == "NoSuchKey" and not client.bucket_exists(bucket):
                raise DataError(f"{uri}: no such bucket") from None
            raise
    return _seen.setdefault((bucket, key), Entry(found.size, found.etag))


def is_prefix(uri: str) -> bool:
    """Whether any object lies below a prefix. Raises as `look`."""
    bucket, key = split(uri)
    with _told(uri):
        return next(iter(_client(uri).list_objects(bucket, f"{key}/" if key else "")), None) is not None


def children(uri: str, *, recursive: bool = False, start: str = "") -> dict[str, Entry]:
    """The objects below a prefix by their names relative to it, sorted; without `recursive` only the nearest level.

    With `start` only the names that begin so are asked for.

    Raises:
        DataError, StorageError: as `look`; a prefix without objects is no error.
    """
    bucket, key = split(uri)
    prefix = f"{key}/" if key else ""
    with _told(uri):
        listed = [
            item
            for item in _client(uri).list_objects(bucket, prefix + start, recursive=recursive)
            if not item.is_dir and not item.object_name.endswith("/")
        ]
    for item in listed:
        _seen.setdefault((bucket, item.object_name), Entry(item.size, item.etag.strip('"')))
    return {item.object_name.removeprefix(prefix): _seen[bucket, item.object_name] for item in listed}


def tree(uri: str) -> dict[str, Entry]:
    """All objects below a prefix, as `children`; DataError where there is none."""
    found = children(uri, recursive=True)
    if not found:
        raise DataError(f"{uri}: no object below this prefix; mind capitals and the bucket's name")
    return found


def fetch(uri: str) -> Path:
    """The object as a file of the cache, whose name says nothing. It may be evicted once others are fetched.

    Raises:
        DataError: as `look`, or the object is larger than the cache may be.
        StorageError: the transfer failed again and again, the object changed during the run or is damaged, or there
            is no room on the disk.
    """
    bucket, key = split(uri)
    entry = look(uri)
    name = hashlib.sha256(f"{_endpoint()}\n{bucket}\n{key}\n{entry.etag}".encode()).hexdigest()
    target = cache() / "objects" / name[:2] / name
    try:
        if not _is_whole(target, entry):
            with locked(target):
                if not _is_whole(target, entry):
                    _make_room(uri, entry.size)
                    _fill(target, uri, entry)
        with contextlib.suppress(OSError):  # evicted just now, another user's, or a cache that is only read
            os.utime(target, (time.time(), UNTOUCHED))
    except OSError as error:
        if isinstance(error, StorageError):
            raise
        raise StorageError(f"{uri}: can not be written to the cache {cache()}: {error.strerror}") from None
    return target


def _fill(target: Path, uri: str, entry: Entry) -> None:
    try:
        _fetch_whole(target, uri, entry)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        _sweep(_limit(), entry.size)  # others have filled the disk before the cache was at its limit
        _fetch_whole(target, uri, entry)


def _fetch_whole(target: Path, uri: str, entry: Entry) -> None:
    with atomic_path(target) as temporary:
        _download(uri, entry, temporary)
        os.utime(temporary, (time.time(), UNTOUCHED))


def read(uri: str) -> bytes:
    """The object's contents, through the cache. Raises as `fetch`."""
    while True:
        with contextlib.suppress(FileNotFoundError):  # evicted by another process just now
            return fetch(uri).read_bytes()


def fetch_to(uri: str, path: Path, *, own: bool = False) -> Path:
    """The object at a path of its own, which an eviction does not touch: a link into the cache, or a copy.

    With `own` it is always a copy, so that it may be written to.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        with contextlib.suppress(FileNotFoundError):
            source = fetch(uri)
            if own or not _linked(source, path):
                with atomic_path(path) as temporary:
                    shutil.copyfile(source, temporary)
            return path


def _linked(source: Path, path: Path) -> bool:
    """Make `path` a hard link; False where the file system has none, or is another."""
    try:
        os.link(source, path)
    except FileNotFoundError:
        raise
    except OSError:
        return False
    return True


def fetch_tree(uri: str, folder: Path, *, own: bool = False) -> dict[str, Entry]:
    """All objects below a prefix, as files in a folder (see `fetch_to`); returns what they are.

    Raises:
        DataError: nothing is there; or as `fetch`.
        StorageError: as `fetch`.
    """
    found = tree(uri)
    for name in found:
        split(f"{uri.rstrip('/')}/{name}")  # refuses parts that lead out of the folder
    size = sum(entry.size for entry in found.values())
    with progress(uri, size) as advance:

        def fetch_one(name: str) -> None:
            fetch_to(f"{uri.rstrip('/')}/{name}", folder / name, own=own)
            advance(found[name].size)

        side_by_side(fetch_one, found)
    return found


def _download(uri: str, entry: Entry, path: Path) -> None:
    """Fill `path` with the object, all parts of one version, and check it."""
    spans = [(start, min(PART, entry.size - start)) for start in range(0, entry.size, PART)]
    each = side_by_side if len(spans) > 1 else map
    with _told(uri), progress(uri, entry.size) as advance:
        headers = list(each(lambda span: _part(uri, entry, path, *span, advance), spans))
    _check(uri, entry, path, headers[0] if headers else {})


def _part(uri: str, entry: Entry, path: Path, start: int, length: int, advance: Callable[[int], None]) -> Any:
    """Write one part at its place; goes on where a broken connection ended. Returns the response's headers."""
    with path.open("r+b") as file:  # its own: who waits for it may have left
        return _write_part(uri, entry, file.fileno(), start, length, advance)


def _write_part(uri: str, entry: Entry, file: int, start: int, length: int, advance: Callable[[int], None]) -> Any:
    from urllib3.exceptions import HTTPError, IncompleteRead

    from stereo_core.storage.http import go_on

    done = 0
    for pause in (*PAUSES, None):
        try:
            response = _client(uri).get_object(
                *split(uri), start + done, length - done, request_headers={"If-Match": f'"{entry.etag}"'}
            )
            with contextlib.closing(response):
                for data in response.stream(2**20):
                    os.pwrite(file, data, start + done)
                    done += len(data)
                    advance(len(data))
                    go_on()
            response.release_conn()
            if done == length:
                return response.headers
            raise IncompleteRead(done, length - done)
        except HTTPError:
            if pause is None or leaving.wait(pause):
                raise
    raise AssertionError("unreachable")


def _check(uri: str, entry: Entry, path: Path, headers: Any) -> None:
    wanted, found = headers.get(SHA256), ""
    if wanted:
        found = sha256_of(path)
    elif "-" not in entry.etag and headers.get("x-amz-server-side-encryption", "AES256") == "AES256":
        wanted = entry.etag  # of an object in one piece the MD5
        with path.open("rb") as file:
            found = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
    if entry.size and wanted and found != wanted:
        raise StorageError(f"{uri}: damaged: the checksum differs from the one it was stored with; upload it again")


# ---- writing


def upload(path: Path, uri: str) -> None:
    """Store a file, as long as it is now, under a URI, with its sha256, and make sure that it is there.

    Raises:
        DataError: no such bucket, or no right to write.
        StorageError: the transfer failed; under the URI lies what lay there before.
    """
    from minio.error import S3Error

    bucket, key = split(uri)
    with path.open("rb") as file, _told(uri), progress(uri, path.stat().st_size) as advance:
        size = os.fstat(file.fileno()).st_size
        digest = _digest_of_start(file, size)
        client = _client(uri)
        how = {"metadata": {"sha256": digest}, "part_size": PART, "num_parallel_uploads": PARALLEL}
        try:  # in a thread, which a signal gives time to remove the parts that are there
            side_by_side(lambda data: client.put_object(bucket, key, data, size, **how), [_Counted(file, advance)])
        except S3Error as error:  # NoSuchUpload: its end was told twice, because the first answer got lost
            if error.code != "NoSuchUpload":
                raise
        stored = client.stat_object(bucket, key)
    if (stored.size, stored.metadata.get(SHA256)) != (size, digest):
        raise StorageError(f"{uri}: what was stored is not {path}; another program may write there too")


def _digest_of_start(file: BinaryIO, size: int) -> str:
    """sha256 of the first bytes of a file, which may be growing; the next read begins at its start."""
    digest = hashlib.sha256()
    while size and (data := file.read(min(size, 2**20))):
        digest.update(data)
        size -= len(data)
    file.seek(0)
    return digest.hexdigest()


def copy(source: str, uri: str) -> None:
    """Have the storage copy an object that `upload` has stored. Raises as `upload`."""
    from minio.commonconfig import REPLACE, CopySource

    digest = stored_digest(source)
    with _told(uri):
        client, metadata = _client(uri), {"sha256": digest}  # said again, as it does not go along with more than 5 GiB
        client.copy_object(*split(uri), CopySource(*split(source)), metadata=metadata, metadata_directive=REPLACE)
    if stored_digest(uri) != digest:
        raise StorageError(f"{uri}: what was stored is no copy of {source}; another program may write there too")


def remove(uri: str) -> None:
    """Remove an object; one that is not there is no error. Raises as `upload`."""
    with _told(uri):
        _client(uri).remove_object(*split(uri))


def stored_digest(uri: str) -> str | None:
    """The sha256 of an object that `upload` stored; None where another program did. Raises as `look`."""
    with _told(uri):
        return _client(uri).stat_object(*split(uri)).metadata.get(SHA256)


class _Counted:
    """A file whose reader is told about."""

    def __init__(self, file: Any, advance: Callable[[int], None]) -> None:
        self.file, self.advance = file, advance

    def read(self, size: int = -1) -> bytes:
        from stereo_core.storage.http import go_on

        go_on()
        data = self.file.read(size)
        self.advance(len(data))
        return data


# ---- the cache


def cache() -> Path:
    """STEREO_CACHE, else `stereo-pipelines` in the user's cache folder."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("STEREO_CACHE") or Path(home, "stereo-pipelines"))


def _limit() -> int:
    """Bytes that the cache may hold: STEREO_CACHE_GIB, else 50 GiB."""
    text = os.environ.get("STEREO_CACHE_GIB") or "50"
    try:
        limit = float(text)
    except ValueError:
        limit = math.nan
    if not 0 < limit < math.inf:
        raise DataError(f"STEREO_CACHE_GIB={text}: not a size in GiB")
    return int(limit * 2**30)


def _is_whole(path: Path, entry: Entry) -> bool:
    """Whether the object is there as it was fetched: what another program writes to it changes size or time."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return False
    return (status.st_size, status.st_mtime) == (entry.size, UNTOUCHED)


PROCESSES = 64  # that may fetch at once without the cache growing over its limit
_room = 0  # bytes that this process may fetch before it looks through the cache again: its share of what is free
_sweeping = threading.Lock()


def _make_room(uri: str, size: int) -> None:
    """Evict what was not used for longest, where the cache may be full."""
    global _room
    limit = _limit()
    if size > 0.9 * limit:
        raise DataError(f"{uri}: {size} bytes do not go into the cache of {limit} bytes; raise STEREO_CACHE_GIB")
    with _sweeping:
        _room -= size
        if _room < 0:
            _room = (limit - size - _sweep(int(0.9 * limit) - size)) // PROCESSES


def _sweep(limit: int, room: int = 0) -> int:
    """Evict until the cache holds `limit` bytes at most and `room` less than now; returns what it holds."""
    files = []
    for path in (cache() / "objects").glob("*/*"):
        with contextlib.suppress(FileNotFoundError):
            if path.suffix != ".lock":
                status = path.stat()
                files.append((status.st_atime, status.st_size, path))
    total = sum(size for _, size, _ in files)
    limit = min(limit, total - room)
    for _, size, path in sorted(files):
        if total <= limit:
            break
        path.unlink(missing_ok=True)
        total -= size
    return total


# ---- the way there


def _endpoint() -> str:
    return next((os.environ[name] for name in ENDPOINTS if os.environ.get(name)), "")


def _client(uri: str) -> Any:
    """A client for the environment as it is, of this process: connections do not survive a fork."""
    if uri.startswith("minio://") and not _endpoint():
        raise DataError(f"{uri}: which server? Set AWS_ENDPOINT_URL")
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    return _connect(_endpoint(), region, os.getpid())


@functools.lru_cache(maxsize=4)
def _connect(endpoint: str, region: str | None, process: int) -> Any:
    from urllib.parse import urlsplit

    import certifi
    import urllib3
    from minio import Minio
    from minio.credentials import providers

    from stereo_core.storage.http import Pool, Retry

    logging.getLogger("urllib3").setLevel(logging.ERROR)  # its warnings name the endpoint
    parts = urlsplit(endpoint or f"https://s3.{region + '.' if region else ''}amazonaws.com")
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.username or parts.path.strip("/"):
        raise DataError(f"{' or '.join(ENDPOINTS)}: expected http://host:port or https://host, without path and user")
    quick = urllib3.PoolManager(timeout=urllib3.Timeout(INSTANCE), retries=urllib3.Retry(1))
    token = os.environ.get("AWS_WEB_IDENTITY_TOKEN_FILE")
    if token and not os.path.isfile(token):
        raise DataError(f"AWS_WEB_IDENTITY_TOKEN_FILE={token}: no such file")
    sts = os.environ.get("AWS_ENDPOINT_URL_STS") if token else None
    credentials = [providers.EnvAWSProvider(), providers.EnvMinioProvider(), providers.AWSConfigProvider()]
    credentials.append(providers.IamAwsProvider(custom_endpoint=sts, http_client=quick, region=region))
    http = Pool(
        blocksize=2**18,
        maxsize=2 * PARALLEL + PARALLEL**2,  # objects at once, and their parts
        timeout=urllib3.Timeout(connect=CONNECT, read=SILENCE),
        # POST too: one that begins an upload does no harm twice, and `upload` looks what became of one that ended it.
        retries=Retry(RETRIES, backoff_factor=0.5, status_forcelist=FOR_NOW, allowed_methods=None),
        cert_reqs="CERT_REQUIRED",
        ca_certs=os.environ.get("SSL_CERT_FILE") or certifi.where(),
    )
    return Minio(
        parts.netloc,
        credentials=providers.ChainedProvider(credentials),
        secure=parts.scheme == "https",
        region=region or ("us-east-1" if endpoint else None),
        http_client=http,
    )


@contextlib.contextmanager
def in_a_hurry() -> Iterator[None]:
    """While it lasts no answer is waited for long and nothing is tried again: who sent a signal does not wait long."""
    global SILENCE, RETRIES
    before = SILENCE, RETRIES
    SILENCE, RETRIES = min(SILENCE, HURRY), 0
    _connect.cache_clear()
    try:
        yield
    finally:
        SILENCE, RETRIES = before
        _connect.cache_clear()


_DENIED = {"AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken"}
_MISSING = {"NoSuchBucket": "no such bucket", "NoSuchKey": "no such object", "NotFound": "no such object"}
_MISSING |= {"InvalidBucketName": "no such bucket"}


@contextlib.contextmanager
def _told(uri: str) -> Iterator[None]:
    """The client's exceptions in our words, without hosts, keys or signatures."""
    import configparser

    from minio.error import MinioException, S3Error
    from urllib3.exceptions import HTTPError

    try:
        yield
    except S3Error as error:
        if error.code in _DENIED:
            what = "the key or the secret is wrong, or they give no right to do this"
            raise DataError(f"{uri}: access denied ({error.code}): {what}") from None
        if error.code in _MISSING:
            raise DataError(f"{uri}: {_MISSING[error.code]}") from None
        if error.code == "PreconditionFailed":
            raise StorageError(f"{uri}: the object was changed during the run; run again") from None
        raise StorageError(f"{uri}: the storage refused: {error.code}") from None
    except (HTTPError, MinioException) as error:
        said = next((name for name in ENDPOINTS if os.environ.get(name)), "")
        server = f"the storage that {said} names" if said else "the storage of AWS (no AWS_ENDPOINT_URL is set)"
        raise StorageError(f"{uri}: {server} does not answer as it should: {type(error).__name__}") from None
    except ValueError as error:
        if "fail to fetch credentials" in str(error):
            mend = "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or write ~/.aws/credentials"
            raise DataError(f"{uri}: no credentials found: {mend}") from None
        raise DataError(f"{uri}: {error}") from None
    except configparser.Error:  # whose message quotes the file
        raise DataError(f"{uri}: the credentials file can not be read: expected [default] and key = value") from None


@contextlib.contextmanager
def progress(uri: str, size: int) -> Iterator[Callable[[int], None]]:
    """A bar on a terminal for what takes a while; yields what is to be told of the bytes that came or went."""
    if size <= PART or not sys.stderr.isatty() or threading.current_thread() is not threading.main_thread():
        yield lambda count: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn

    columns = ("{task.description}", BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(uri.rstrip("/").rpartition("/")[2], total=size)
        yield lambda count: bar.advance(task, count)
