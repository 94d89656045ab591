"""status.json: what a run does, a JSON object a line, as TAO's tools read it."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from stereo_core.progress import since
from stereo_core.values import from_json, plain

NAME = "status.json"
LOOP = "Starting Training Loop."  # TAO's second STARTED line of a training
MOST = 20  # different warnings of a run that are kept


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
        self.path = Path(folder) / NAME if folder is not None else None
        self._secrets = [secret for secret in secrets if secret]
        self._warned: set[str] = set()
        self._said, self._start = "", time.monotonic()
        if self.path is not None:
            self.path.open("ab").close()

    def started(self, message: str) -> None:
        self._write("STARTED", "INFO", message, {})

    def running(self, message: str, *, kpi: dict[str, float] | None = None, **progress: Any) -> None:
        """A line on the way; `progress` (epoch, step, max_epoch, eta, ...) becomes fields of the line."""
        self._write("RUNNING", "INFO", message, progress, kpi)

    def warning(self, message: str) -> None:
        """A line of verbosity WARNING, once for each text, whichever of the run's processes comes first; beyond MOST of
        them the log alone has it (see `count_more`)."""
        for secret in self._secrets:
            message = message.replace(secret, "***")
        if message in self._warned:
            return
        self._warned.add(message)
        known = self.warnings
        if message not in known and len(known) < MOST:
            self._write("RUNNING", "WARNING", message, {})

    def count_more(self) -> None:
        """A line for the warnings of this process that are beyond MOST."""
        if more := len(self._warned.difference(self.warnings)):
            self._write("RUNNING", "WARNING", f"further warnings, which stand in the log alone: {more}", {})

    @property
    def warnings(self) -> list[str]:
        """What the run has warned of so far."""
        return warnings_in(self.path.parent) if self.path is not None else []

    def success(self, message: str, *, kpi: dict[str, float] | None = None) -> None:
        """The last line of a run that did its work."""
        self._write("SUCCESS", "INFO", message, {}, kpi)

    def failure(self, message: str) -> None:
        """The last line of a run that did not."""
        self._write("FAILURE", "ERROR", message, {})

    def where(self) -> str:
        """What was said last, and how long it is since the beginning; empty where nothing was said."""
        return f"{self._said.rstrip('.')} ({since(self._start)} since the start)" if self._said else ""

    def _write(
        self, status: str, verbosity: str, message: str, fields: dict[str, Any], kpi: dict[str, Any] | None = None
    ) -> None:
        if self.path is None:
            return
        if verbosity != "WARNING":
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


def warnings_in(folder: Path) -> list[str]:
    """What the last run in a results folder warned of, each text once; empty where none has its record there."""
    found: list[str] = []
    for line in lines_of(folder):
        message = line.get("message", "")
        if line.get("status") == "STARTED" and message != LOOP:
            found.clear()
        elif line.get("verbosity") == "WARNING":
            found.append(message)
    return list(dict.fromkeys(found))


def lines_of(folder: Path) -> Iterator[dict[str, Any]]:
    """The whole lines of a results folder's status.json, which may be written to at the moment."""
    path = folder / NAME
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    return filter(None, map(read_line, text.split("\n")))


def read_line(text: str | bytes) -> dict[str, Any] | None:
    """A line of a status.json, `kpi` with its numbers alone; None for what is no line, as one that is being written."""
    try:
        line = from_json(text)
    except ValueError:
        return None
    if not isinstance(line, dict):
        return None
    kpi = line.get("kpi")
    numbers = kpi.items() if isinstance(kpi, dict) else ()
    return line | {"kpi": {name: value for name, value in numbers if _is_number(value)}}


def _is_number(value: Any) -> bool:
    return isinstance(value, float) or (type(value) is int and abs(value) < 1 << 63)


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
