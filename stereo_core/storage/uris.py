"""Supported URIs, their parts, and their local paths."""

from __future__ import annotations

from pathlib import Path
from typing import TypeGuard
from urllib.parse import unquote

from stereo_core.errors import DataError

SCHEMES = ("s3://", "aws://", "minio://")
MOUNTS = {"s3://": "/s3/", "gs://": "/gcs/", "minio://": "/minio/"}  # where KFP's launcher mounts remote artifacts
REFERENCE = "reference.json"
"""File in the artifact of a data set by reference: its uri, number of files, bytes, and a digest of all names and ETags
(for a local folder: names and times)."""


def is_uri(path: object) -> TypeGuard[str]:
    """Whether a value is a URI of an object or a prefix in object storage."""
    return isinstance(path, str) and path.startswith(SCHEMES)


def bucket_of(uri: str) -> str:
    """The bucket of a URI.

    Raises:
        DataError: there is no bucket, or credentials are part of the URI (the message does not repeat them).
    """
    scheme, _, rest = uri.partition("://")
    bucket = rest.partition("/")[0]
    if not bucket:
        raise DataError(f"{uri}: the bucket is missing; expected s3://bucket/key")
    if {"@", ":"} & set(bucket):
        raise DataError(
            f"{scheme}://...: @ or : in the bucket's name; write s3://bucket/key. Credentials and the server's address "
            "come from the environment (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_ENDPOINT_URL)"
        )
    return bucket


def local_path(uri: str) -> Path:
    """The local path of an artifact's URI: s3:// and aws:// are mounted at /s3, gs:// at /gcs, minio:// at /minio.

    In a file:// URI, as browsers and `Path.as_uri` write it, %20 is a blank; in the keys of objects % is a character.

    Raises:
        DataError: another scheme, a file:// URI of another machine, or see `bucket_of`.
    """
    for scheme, mount in (MOUNTS | {"aws://": MOUNTS["s3://"]}).items():
        if uri.startswith(scheme):
            bucket_of(uri)  # refuses credentials in the URI before a message can show them
            return Path(mount) / uri.removeprefix(scheme)
    if "://" in uri and not uri.startswith("file://"):
        raise DataError(f"{uri}: scheme not supported; use a local path, {', '.join(MOUNTS)}, aws:// or file://")
    if not uri.startswith("file://"):
        return Path(uri)
    path = uri.removeprefix("file://").removeprefix("localhost")
    if not path.startswith("/"):
        raise DataError(
            f"{uri}: names a machine, {path.partition('/')[0]}; write file:// and an absolute path, such as file:///data"
        )
    return Path(unquote(path))


def split(uri: str) -> tuple[str, str]:
    """Bucket and key, without trailing slashes.

    Raises:
        DataError: see `bucket_of`; or a key with an empty, `.` or `..` part, which has no local path.
    """
    bucket = bucket_of(uri)
    key = uri.partition("://")[2].partition("/")[2].rstrip("/")
    if key and {"", ".", ".."} & set(key.split("/")):
        raise DataError(f"{uri}: the key has an empty part, . or ..; write the key as the bucket lists it")
    return bucket, key
