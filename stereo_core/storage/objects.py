"""Objects in a bucket: list them, download them, upload them."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from stereo_core.errors import DataError
from stereo_core.files import sha256_of
from stereo_core.storage.client import Clients, StorageError, clear_errors
from stereo_core.storage.transfers import PARALLEL, PART, go_on, leaving, progress, side_by_side
from stereo_core.storage.uris import split

SHA256 = "x-amz-meta-sha256"


@dataclass(frozen=True)
class Entry:
    """An object's size in bytes and its ETag, which changes with its contents."""

    size: int
    etag: str


class Objects:
    """Access to objects. The first version seen of an object counts until `forget`.

    Args:
        part: size in bytes of one part of a transfer.
    """

    def __init__(self, clients: Clients, part: int = PART) -> None:
        self._clients, self.part = clients, part
        self._seen: dict[tuple[str, str], Entry] = {}

    def forget(self) -> None:
        """Forget all versions seen: a new run begins."""
        self._seen.clear()

    def look(self, uri: str) -> Entry:
        """Size and ETag of the version of an object that this run saw first.

        Raises:
            DataError: no such bucket or object, or no permission to read it.
            StorageError: the storage cannot be reached.
        """
        from minio.error import S3Error

        bucket, key = split(uri)
        if (bucket, key) in self._seen:
            return self._seen[bucket, key]
        with clear_errors(uri):
            client = self._clients.of(uri)
            try:
                found = client.stat_object(bucket, key)
            except S3Error as error:  # the storage gives the same code for a missing bucket
                if error.code == "NoSuchKey" and not client.bucket_exists(bucket):
                    raise DataError(f"{uri}: no such bucket") from None
                raise
        return self._seen.setdefault((bucket, key), Entry(found.size, found.etag))

    def is_prefix(self, uri: str) -> bool:
        """Whether there is any object below a prefix. Raises the errors of `look`."""
        bucket, key = split(uri)
        with clear_errors(uri):
            return next(iter(self._clients.of(uri).list_objects(bucket, f"{key}/" if key else "")), None) is not None

    def children(self, uri: str, *, recursive: bool = False, start: str = "") -> dict[str, Entry]:
        """The objects below a prefix, sorted, by their names relative to it. Without `recursive` only one level.

        With `start` only names that begin with it are listed.

        Raises:
            DataError, StorageError: see `look`. A prefix without objects is not an error.
        """
        bucket, key = split(uri)
        prefix = f"{key}/" if key else ""
        with clear_errors(uri):
            listed = [
                item
                for item in self._clients.of(uri).list_objects(bucket, prefix + start, recursive=recursive)
                if not item.is_dir and not item.object_name.endswith("/")
            ]
        for item in listed:
            self._seen.setdefault((bucket, item.object_name), Entry(item.size, item.etag.strip('"')))
        return {item.object_name.removeprefix(prefix): self._seen[bucket, item.object_name] for item in listed}

    def tree(self, uri: str) -> dict[str, Entry]:
        """All objects below a prefix, like `children`; DataError if there is none."""
        found = self.children(uri, recursive=True)
        if not found:
            raise DataError(f"{uri}: no object below this prefix; check the bucket's name and upper and lower case")
        return found

    def download(self, uri: str, entry: Entry, path: Path) -> None:
        """Download the object to `path`, every part from the same version, and check it."""
        spans = [(start, min(self.part, entry.size - start)) for start in range(0, entry.size, self.part)]
        each = side_by_side if len(spans) > 1 else map
        with clear_errors(uri), progress(uri, entry.size, self.part) as advance:
            headers = list(each(lambda span: self._part(uri, entry, path, span[0], span[1], advance), spans))
        _check(uri, entry, path, headers[0] if headers else {})

    def _part(self, uri: str, entry: Entry, path: Path, start: int, length: int, advance: Callable[[int], None]) -> Any:
        """Download one part to its place in the file, resuming after broken connections. Returns the headers."""
        from urllib3.exceptions import HTTPError, IncompleteRead

        done = 0
        with path.open("r+b") as file:  # opened here: the waiting caller may have ended already
            for pause in (*self._clients.patience.pauses, None):
                try:
                    response = self._span(uri, entry, start + done, length - done)
                    with contextlib.closing(response):
                        for data in response.stream(2**20):
                            os.pwrite(file.fileno(), data, start + done)
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

    def _span(self, uri: str, entry: Entry, start: int, length: int) -> Any:
        """The response with a range of bytes; fails if the object's version has changed."""
        same = {"If-Match": f'"{entry.etag}"'}
        return self._clients.of(uri).get_object(*split(uri), start, length, request_headers=same)

    def upload(self, path: Path, uri: str) -> None:
        """Upload a file (its present length) with its sha256, and check the stored object.

        Raises:
            DataError: no such bucket, or no permission to write.
            StorageError: the transfer failed; the object under the URI is unchanged.
        """
        from minio.error import S3Error

        bucket, key = split(uri)
        with path.open("rb") as file, clear_errors(uri), progress(uri, path.stat().st_size, self.part) as advance:
            size = os.fstat(file.fileno()).st_size
            digest = _digest_of_start(file, size)
            client = self._clients.of(uri)
            how = {"metadata": {"sha256": digest}, "part_size": self.part, "num_parallel_uploads": PARALLEL}
            try:  # in a thread: after a signal it gets time to remove the uploaded parts
                side_by_side(lambda data: client.put_object(bucket, key, data, size, **how), [_Counted(file, advance)])
            except S3Error as error:  # NoSuchUpload: it was completed twice, because the first answer got lost
                if error.code != "NoSuchUpload":
                    raise
            stored = client.stat_object(bucket, key)
        if (stored.size, stored.metadata.get(SHA256)) != (size, digest):
            raise StorageError(
                f"{uri}: the stored object differs from {path}; another program may write there too: end it, and run "
                "again"
            )

    def copy(self, source: str, uri: str) -> None:
        """Copy an object that `upload` stored, on the server. Raises the errors of `upload`."""
        from minio.commonconfig import REPLACE, CopySource

        digest = self.stored_digest(source)
        with clear_errors(uri):
            metadata = {"sha256": digest}  # set again: a copy of more than 5 GiB loses it
            client = self._clients.of(uri)
            client.copy_object(*split(uri), CopySource(*split(source)), metadata=metadata, metadata_directive=REPLACE)
        if self.stored_digest(uri) != digest:
            raise StorageError(
                f"{uri}: the stored object differs from {source}; another program may write there too: end it, and run "
                "again"
            )

    def remove(self, uri: str) -> None:
        """Remove an object; a missing one is not an error. Raises the errors of `upload`."""
        with clear_errors(uri):
            self._clients.of(uri).remove_object(*split(uri))

    def stored_digest(self, uri: str) -> str | None:
        """The sha256 of an object that `upload` stored; None if another program did. Raises the errors of `look`."""
        with clear_errors(uri):
            digest: str | None = self._clients.of(uri).stat_object(*split(uri)).metadata.get(SHA256)
            return digest


def _check(uri: str, entry: Entry, path: Path, headers: Any) -> None:
    wanted, found = headers.get(SHA256), ""
    if wanted:
        found = sha256_of(path)
    elif "-" not in entry.etag and headers.get("x-amz-server-side-encryption", "AES256") == "AES256":
        wanted = entry.etag  # the MD5, for an object uploaded in one piece
        with path.open("rb") as file:
            found = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
    if entry.size and wanted and found != wanted:
        raise StorageError(f"{uri}: the object is damaged: its checksum does not match; upload it again")


def _digest_of_start(file: BinaryIO, size: int) -> str:
    """sha256 of the first `size` bytes of a file, which may be growing; rewinds the file."""
    digest = hashlib.sha256()
    while size and (data := file.read(min(size, 2**20))):
        digest.update(data)
        size -= len(data)
    file.seek(0)
    return digest.hexdigest()


class _Counted:
    """A file that reports the bytes read from it."""

    def __init__(self, file: Any, advance: Callable[[int], None]) -> None:
        self.file, self.advance = file, advance

    def read(self, size: int = -1) -> bytes:
        go_on()
        data: bytes = self.file.read(size)
        self.advance(len(data))
        return data
