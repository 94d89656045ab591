"""What a URI may be, its parts, and where it lies on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import TypeGuard

from stereo_core.errors import DataError

SCHEMES = ("s3://", "aws://", "minio://")
MOUNTS = {"s3://": "/s3/", "gs://": "/gcs/", "minio://": "/minio/"}  # where KFP's launcher puts remote artifacts
REFERENCE = "reference.json"
"""In the folder of a data set that stays where it is: its uri, files, bytes, and a digest of all names and ETags (of a
folder: times)."""


def is_uri(path: object) -> TypeGuard[str]:
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
