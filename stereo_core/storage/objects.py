"""Objects of a storage: what there is, and their contents to and from files."""

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
from stereo_core.storage.client import Clients, StorageError, told
from stereo_core.storage.transfers import PARALLEL, PART, go_on, leaving, progress, side_by_side
from stereo_core.storage.uris import split

SHA256 = "x-amz-meta-sha256"


@dataclass(frozen=True)
class Entry:
    """What is known of an object: its size in bytes and its ETag, which changes with its contents."""

    size: int
    etag: str


class Objects:
    """The objects that clients reach. What was seen of one holds until `forget`.

    Args:
        part: bytes of a part of a transfer.
    """

    def __init__(self, clients: Clients, part: int = PART) -> None:
        self._clients, self.part = clients, part
        self._seen: dict[tuple[str, str], Entry] = {}

    def forget(self) -> None:
        """A new run begins: objects are looked at anew."""
        self._seen.clear()

    def look(self, uri: str) -> Entry:
        """Size and ETag of an object, as this run saw it first.

        Raises:
            DataError: no such bucket or object, or no right to read it.
            StorageError: the storage can not be reached.
        """
        from minio.error import S3Error

        bucket, key = split(uri)
        if (bucket, key) in self._seen:
            return self._seen[bucket, key]
        with told(uri):
            client = self._clients.of(uri)
            try:
                found = client.stat_object(bucket, key)
            except S3Error as error:  # of a bucket that is not there the storage says the same
                if error.code == "NoSuchKey" and not client.bucket_exists(bucket):
                    raise DataError(f"{uri}: no such bucket") from None
                raise
        return self._seen.setdefault((bucket, key), Entry(found.size, found.etag))

    def is_prefix(self, uri: str) -> bool:
        """Whether any object lies below a prefix. Raises as `look`."""
        bucket, key = split(uri)
        with told(uri):
            return next(iter(self._clients.of(uri).list_objects(bucket, f"{key}/" if key else "")), None) is not None

    def children(self, uri: str, *, recursive: bool = False, start: str = "") -> dict[str, Entry]:
        """The objects below a prefix by their names relative to it, sorted; without `recursive` only the nearest level.

        With `start` only the names that begin so are asked for.

        Raises:
            DataError, StorageError: as `look`; a prefix without objects is no error.
        """
        bucket, key = split(uri)
        prefix = f"{key}/" if key else ""
        with told(uri):
            listed = [
                item
                for item in self._clients.of(uri).list_objects(bucket, prefix + start, recursive=recursive)
                if not item.is_dir and not item.object_name.endswith("/")
            ]
        for item in listed:
            self._seen.setdefault((bucket, item.object_name), Entry(item.size, item.etag.strip('"')))
        return {item.object_name.removeprefix(prefix): self._seen[bucket, item.object_name] for item in listed}

    def tree(self, uri: str) -> dict[str, Entry]:
        """All objects below a prefix, as `children`; DataError where there is none."""
        found = self.children(uri, recursive=True)
        if not found:
            raise DataError(f"{uri}: no object below this prefix; mind capitals and the bucket's name")
        return found

    def download(self, uri: str, entry: Entry, path: Path) -> None:
        """Fill `path` with the object, all parts of one version, and check it."""
        spans = [(start, min(self.part, entry.size - start)) for start in range(0, entry.size, self.part)]
        each = side_by_side if len(spans) > 1 else map
        with told(uri), progress(uri, entry.size, self.part) as advance:
            headers = list(each(lambda span: self._part(uri, entry, path, span[0], span[1], advance), spans))
        _check(uri, entry, path, headers[0] if headers else {})

    def _part(self, uri: str, entry: Entry, path: Path, start: int, length: int, advance: Callable[[int], None]) -> Any:
        """Write one part at its place; goes on where a broken connection ended. Returns the response's headers."""
        from urllib3.exceptions import HTTPError, IncompleteRead

        done = 0
        with path.open("r+b") as file:  # its own: who waits for it may have left
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
        """The response with some bytes of an object, as long as it is the one that was seen."""
        same = {"If-Match": f'"{entry.etag}"'}
        return self._clients.of(uri).get_object(*split(uri), start, length, request_headers=same)

    def upload(self, path: Path, uri: str) -> None:
        """Store a file, as long as it is now, under a URI, with its sha256, and make sure that it is there.

        Raises:
            DataError: no such bucket, or no right to write.
            StorageError: the transfer failed; under the URI lies what lay there before.
        """
        from minio.error import S3Error

        bucket, key = split(uri)
        with path.open("rb") as file, told(uri), progress(uri, path.stat().st_size, self.part) as advance:
            size = os.fstat(file.fileno()).st_size
            digest = _digest_of_start(file, size)
            client = self._clients.of(uri)
            how = {"metadata": {"sha256": digest}, "part_size": self.part, "num_parallel_uploads": PARALLEL}
            try:  # in a thread, which a signal gives time to remove the parts that are there
                side_by_side(lambda data: client.put_object(bucket, key, data, size, **how), [_Counted(file, advance)])
            except S3Error as error:  # NoSuchUpload: its end was told twice, because the first answer got lost
                if error.code != "NoSuchUpload":
                    raise
            stored = client.stat_object(bucket, key)
        if (stored.size, stored.metadata.get(SHA256)) != (size, digest):
            raise StorageError(f"{uri}: what was stored is not {path}; another program may write there too")

    def copy(self, source: str, uri: str) -> None:
        """Have the storage copy an object that `upload` has stored. Raises as `upload`."""
        from minio.commonconfig import REPLACE, CopySource

        digest = self.stored_digest(source)
        with told(uri):
            metadata = {"sha256": digest}  # said again, as it does not go along with more than 5 GiB
            client = self._clients.of(uri)
            client.copy_object(*split(uri), CopySource(*split(source)), metadata=metadata, metadata_directive=REPLACE)
        if self.stored_digest(uri) != digest:
            raise StorageError(f"{uri}: what was stored is no copy of {source}; another program may write there too")

    def remove(self, uri: str) -> None:
        """Remove an object; one that is not there is no error. Raises as `upload`."""
        with told(uri):
            self._clients.of(uri).remove_object(*split(uri))

    def stored_digest(self, uri: str) -> str | None:
        """The sha256 of an object that `upload` stored; None where another program did. Raises as `look`."""
        with told(uri):
            digest: str | None = self._clients.of(uri).stat_object(*split(uri)).metadata.get(SHA256)
            return digest


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


def _digest_of_start(file: BinaryIO, size: int) -> str:
    """sha256 of the first bytes of a file, which may be growing; the next read begins at its start."""
    digest = hashlib.sha256()
    while size and (data := file.read(min(size, 2**20))):
        digest.update(data)
        size -= len(data)
    file.seek(0)
    return digest.hexdigest()


class _Counted:
    """A file whose reader is told about."""

    def __init__(self, file: Any, advance: Callable[[int], None]) -> None:
        self.file, self.advance = file, advance

    def read(self, size: int = -1) -> bytes:
        go_on()
        data: bytes = self.file.read(size)
        self.advance(len(data))
        return data
