"""Clients for object storage: server and credentials from the environment, timeouts, and error messages."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from stereo_core.errors import DataError, ExplainedError
from stereo_core.storage.transfers import PARALLEL

ENDPOINTS = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "S3_ENDPOINT")
FOR_NOW = (429, 500, 502, 503, 504)
HURRY = 8  # s without a byte before giving up, once a signal is to end the process


class StorageError(ExplainedError, OSError):
    """The storage, the network or the disk failed; a retry may succeed. The run fails with exit code 1."""


@dataclass(frozen=True)
class Patience:
    """Timeouts and retries.

    Attributes:
        connect: s until a connection must be open.
        silence: s without a byte before giving up.
        retries: number of retries of a request that was refused temporarily or got no answer.
        pauses: s to wait before each retry of a broken download.
        instance: s to wait for the metadata service that holds a cloud instance's credentials. Elsewhere nothing
            answers.
    """

    connect: float = 10
    silence: float = 30
    retries: int = 3
    pauses: tuple[float, ...] = (0.5, 2.0, 8.0)
    instance: float = 2


class Clients:
    """One client for each setting of the environment, created on first use.

    Each process has its own clients: connections do not survive a fork.
    """

    def __init__(self, patience: Patience | None = None) -> None:
        self.patience = patience or Patience()
        self._made: dict[tuple[Any, ...], Any] = {}

    def of(self, uri: str) -> Any:
        """The client for a URI's storage; DataError if the environment names no server or a wrong one."""
        if uri.startswith("minio://") and not endpoint():
            raise DataError(f"{uri}: the server's address is unknown; set AWS_ENDPOINT_URL")
        region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
        key = (endpoint(), region, os.getpid(), self.patience)
        if key not in self._made:
            self._made[key] = _connect(endpoint(), region, self.patience)
        return self._made[key]

    def forget(self) -> None:
        """Drop the clients: new ones read the credentials again."""
        self._made.clear()

    @contextlib.contextmanager
    def in_a_hurry(self) -> Iterator[None]:
        """Short timeouts and no retries inside the `with` block: after a signal there is little time left."""
        before = self.patience
        self.patience = replace(before, silence=min(before.silence, HURRY), retries=0)
        try:
            yield
        finally:
            self.patience = before


def endpoint() -> str:
    """The server's address; empty for AWS."""
    return next((os.environ[name] for name in ENDPOINTS if os.environ.get(name)), "")


def _connect(endpoint: str, region: str | None, patience: Patience) -> Any:
    from urllib.parse import urlsplit

    from minio import Minio

    logging.getLogger("urllib3").setLevel(logging.ERROR)  # its warnings name the endpoint
    parts = urlsplit(endpoint or f"https://s3.{region + '.' if region else ''}amazonaws.com")
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.username or parts.path.strip("/"):
        raise DataError(f"{' or '.join(ENDPOINTS)}: expected http://host:port or https://host, no path and no user")
    return Minio(
        parts.netloc,
        credentials=_credentials(region, patience),
        secure=parts.scheme == "https",
        region=region or ("us-east-1" if endpoint else None),
        http_client=_pool(patience),
    )


def _credentials(region: str | None, patience: Patience) -> Any:
    import urllib3
    from minio.credentials import providers

    token = os.environ.get("AWS_WEB_IDENTITY_TOKEN_FILE")
    if token and not os.path.isfile(token):
        raise DataError(f"AWS_WEB_IDENTITY_TOKEN_FILE={token}: no such file; correct or unset this variable")
    sts = os.environ.get("AWS_ENDPOINT_URL_STS") if token else None
    quick = urllib3.PoolManager(timeout=urllib3.Timeout(patience.instance), retries=urllib3.Retry(1))
    of_role = providers.IamAwsProvider(custom_endpoint=sts, http_client=quick, region=region)
    explicit = [providers.EnvAWSProvider(), providers.EnvMinioProvider(), providers.AWSConfigProvider()]
    return providers.ChainedProvider([*explicit, of_role])


def _pool(patience: Patience) -> Any:
    import certifi
    import urllib3

    from stereo_core.storage.http import Pool, Retry

    return Pool(
        blocksize=2**18,
        maxsize=2 * PARALLEL + PARALLEL**2,  # objects at once, and their parts
        timeout=urllib3.Timeout(connect=patience.connect, read=patience.silence),
        # Retry POST too: starting an upload twice is harmless, and `upload` checks the result of completing it.
        retries=Retry(patience.retries, backoff_factor=0.5, status_forcelist=FOR_NOW, allowed_methods=None),
        cert_reqs="CERT_REQUIRED",
        ca_certs=os.environ.get("SSL_CERT_FILE") or certifi.where(),
    )


_DENIED = {"AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken"}
_NO_BUCKET, _NO_OBJECT = "no such bucket; check its name", "no such object; check its key"
_MISSING = {
    "NoSuchBucket": _NO_BUCKET,
    "NoSuchKey": _NO_OBJECT,
    "NotFound": _NO_OBJECT,
    "InvalidBucketName": _NO_BUCKET,
}


@contextlib.contextmanager
def clear_errors(uri: str) -> Iterator[None]:
    """Translate the client's exceptions into DataError and StorageError, without hosts, keys or signatures."""
    import configparser

    from minio.error import MinioException, S3Error
    from urllib3.exceptions import HTTPError

    try:
        yield
    except S3Error as error:
        if error.code in _DENIED:
            what = "the access key or secret is wrong, or does not permit this; check the credentials and the policy"
            raise DataError(f"{uri}: access denied ({error.code}): {what}") from None
        if error.code in _MISSING:
            raise DataError(f"{uri}: {_MISSING[error.code]}") from None
        if error.code == "PreconditionFailed":
            raise StorageError(f"{uri}: the object changed during the run; run again") from None
        raise StorageError(
            f"{uri}: the storage refused the request (S3 error {error.code}); see the server's log"
        ) from None
    except (HTTPError, MinioException) as error:
        variable = next((name for name in ENDPOINTS if os.environ.get(name)), "")
        server = f"the server in {variable}" if variable else "AWS (AWS_ENDPOINT_URL is not set)"
        raise StorageError(
            f"{uri}: {server} cannot be reached or gave no valid answer ({type(error).__name__}); check its address "
            "and the network"
        ) from None
    except ValueError as error:
        if "fail to fetch credentials" in str(error):
            remedy = "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or write ~/.aws/credentials"
            raise DataError(f"{uri}: no credentials found; {remedy}") from None
        raise DataError(f"{uri}: {error}") from None
    except configparser.Error:  # its message would quote the file
        raise DataError(f"{uri}: cannot read the credentials file: expected [default] and key = value") from None
