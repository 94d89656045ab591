"""Objects as another program stores and reads them, and answers that no server gave."""

from __future__ import annotations

import time
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest

OTHER_PROCESS = Path(__file__).with_name("other_process.py")
PART = 5 * 2**20  # the least that a storage takes as a part


def random_bytes(size: int, seed: int = 0) -> bytes:
    return np.random.default_rng(seed).bytes(size)


OLD, NEW = random_bytes(PART + 2**20, 1), random_bytes(3 * PART + 17, 2)


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


def answer(status: str, body: str) -> bytes:
    """An HTTP answer of XML."""
    head = f"HTTP/1.1 {status}\r\nContent-Type: application/xml\r\nContent-Length: {len(body)}\r\nConnection: close"
    return f"{head}\r\n\r\n{body}".encode()


REFUSALS = {
    "expired": answer("403 Forbidden", "<Error><Code>ExpiredToken</Code><Message>The token is old</Message></Error>"),
    "busy": answer("503 Slow Down", "<Error><Code>SlowDown</Code></Error>"),
    "many": answer("429 Too Many Requests", "<Error><Code>TooManyRequests</Code></Error>"),
    "nowhere": answer("404 Not Found", "<Error><Code>NoSuchBucket</Code></Error>"),
    "over": answer("404 Not Found", "<Error><Code>NoSuchUpload</Code></Error>"),
    "none": b"",
    "broken": answer("500 Internal Server Error", "<Error><Code>InternalError</Code></Error>"),
}
