"""status.json: what a run does, a JSON object a line, as TAO's tools read it."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from stereo_core.progress import since
from stereo_core.values import plain


class StatusLog:
    """Appends lines to `<folder>/status.json`.

    Every line has `date` (M/D/YYYY) and `time` (H:M:S), local and not padded, as TAO writes them, `timestamp` (ISO 8601
    with the zone), `status` (STARTED, RUNNING, SUCCESS or FAILURE), `verbosity`, `message` and, only where it is given,
    `kpi`. Lines are strict JSON: NaN and infinity are null.

    Args:
        folder: existing folder, or None to write nothing (ranks other than 0).
        secrets: texts that never reach the file.

    Raises:
        OSError: the file can not be written.
    """

    def __init__(self, folder: Path | None, secrets: Sequence[str] = ()) -> None:
        self.path = Path(folder) / "status.json" if folder is not None else None
        self._secrets = [secret for secret in secrets if secret]
        self._said, self._start = "", time.monotonic()
        if self.path is not None:
            self.path.open("ab").close()

    def started(self, message: str) -> None:
        self._write("STARTED", "INFO", message, {})

    def running(self, message: str, *, kpi: dict[str, float] | None = None, **progress: Any) -> None:
        """A line on the way; `progress` (epoch, step, max_epoch, eta, ...) becomes fields of the line."""
        self._write("RUNNING", "INFO", message, progress, kpi)

    def success(self, message: str, *, kpi: dict[str, float] | None = None) -> None:
        """The last line of a run that did its work."""
        self._write("SUCCESS", "INFO", message, {}, kpi)

    def failure(self, message: str) -> None:
        """The last line of a run that did not."""
        self._write("FAILURE", "ERROR", message, {})

    def where(self) -> str:
        """What was said last, and how long it is since the beginning; empty where nothing was said."""
        return f"{self._said.rstrip('.')} ({since(self._start)} since the start)" if self._said else ""

    def _write(self, status: str, verbosity: str, message: str, fields: dict, kpi: dict | None = None) -> None:
        if self.path is None:
            return
        self._said = message
        now = datetime.now().astimezone()
        line = {
            "date": f"{now.month}/{now.day}/{now.year}",
            "time": f"{now.hour}:{now.minute}:{now.second}",
            "timestamp": now.isoformat(timespec="milliseconds"),
            "status": status,
            "verbosity": verbosity,
            "message": message,
            **fields,
        }
        if kpi:
            line["kpi"] = both_spellings(kpi)
        text = json.dumps(plain(line), allow_nan=False, ensure_ascii=False)
        for secret in self._secrets:
            text = text.replace(json.dumps(secret, ensure_ascii=False)[1:-1], "***")
        # One write of one line: lines of processes that share the file do not mix.
        handle = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        try:
            os.write(handle, f"{text}\n".encode("utf-8", "backslashreplace"))
        finally:
            os.close(handle)


_METRIC = re.compile(r"(epe|bp\d|d1|rmse)(_pixel)?")


def both_spellings(kpi: dict[str, float]) -> dict[str, float]:
    """Metrics under the names of both TAO containers: `epe` and `val/epe`; `val_loss` and `val/loss`."""
    result = dict(kpi)
    for name, value in kpi.items():
        other = name
        if _METRIC.fullmatch(name):
            other = f"val/{name}"
        elif _METRIC.fullmatch(name.removeprefix("val/")):
            other = name.removeprefix("val/")
        elif name in ("val_loss", "val/loss"):
            other = "val/loss" if name == "val_loss" else "val_loss"
        result.setdefault(other, value)
    return result
