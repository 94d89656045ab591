"""urllib3 classes whose requests, uploads and pauses stop when transfers are to end (transfers.leaving)."""

from __future__ import annotations

import io
from typing import Any

import urllib3

from stereo_core.storage.transfers import go_on, leaving


class Retry(urllib3.Retry):
    """A retry policy whose pauses stop when transfers are to end."""

    def sleep(self, response: Any = None) -> None:
        leaving.wait(self.get_backoff_time())
        go_on()


class _Body(io.BytesIO):
    def read(self, size: int | None = -1) -> bytes:
        go_on()
        return super().read(size)


class Pool(urllib3.PoolManager):
    """A connection pool. While transfers are to end it refuses new requests, except for clean-up (DELETE)."""

    def urlopen(  # type: ignore[override] # as urllib3's own PoolManager
        self, method: str, url: str, redirect: bool = True, **how: Any
    ) -> Any:
        if method != "DELETE":
            go_on()
        if isinstance(how.get("body"), bytes):
            how["body"] = _Body(how["body"])
        return super().urlopen(method, url, redirect, **how)
