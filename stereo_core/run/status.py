"""status.json: the log of a run, one JSON object per line, in the format that TAO's tools read."""

from __future__ import annotations

import errno
import json
import os
import re
import time
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from stereo_core.progress import since
from stereo_core.values import from_json, json_ready

NAME = "status.json"
LOOP = "Starting Training Loop."  # TAO's second STARTED line of a training run
MOST = 20  # distinct warnings of a run that are kept


class StatusLog:
    """Appends lines to `<folder>/status.json`.

    Every line has `date` (M/D/YYYY) and `time` (H:M:S), both local and not zero-padded as TAO writes them, `timestamp`
    (ISO 8601 with time zone), `status` (STARTED, RUNNING, SUCCESS or FAILURE), `verbosity`, `message` and optionally
    `kpi`. Lines are strict JSON: NaN and infinity are null.

    Args:
        folder: existing folder, or None to write nothing (ranks other than 0).
        secrets: texts that are never written to the file.

    Raises:
        OSError: the file cannot be written.
    """

    def __init__(self, folder: Path | None, secrets: Sequence[str] = ()) -> None:
        self.path = Path(folder) / NAME if folder is not None else None
        self._secrets = [secret for secret in secrets if secret]
        self._warned: set[str] = set()
        self._last, self._start = "", time.monotonic()
        if self.path is not None:
            self.path.open("ab").close()

    def started(self, message: str) -> None:
        self._write("STARTED", "INFO", message, {})

    def running(self, message: str, *, kpi: dict[str, float] | None = None, **progress: Any) -> None:
        """A line about progress; `progress` (epoch, step, max_epoch, eta, ...) becomes fields of the line."""
        self._write("RUNNING", "INFO", message, progress, kpi)

    def warning(self, message: str) -> None:
        """A line of verbosity WARNING. Each text is written once, even if several processes of the run log it. After
        MOST different texts, further ones are only logged (see `count_more`)."""
        for secret in self._secrets:
            message = message.replace(secret, "***")
        if message in self._warned:
            return
        self._warned.add(message)
        known = self.warnings
        if message not in known and len(known) < MOST:
            self._write("RUNNING", "WARNING", message, {})

    def count_more(self) -> None:
        """A line that counts this process's warnings after the first MOST."""
        if more := len(self._warned.difference(self.warnings)):
            self._write("RUNNING", "WARNING", f"further warnings, only in the log: {more}", {})

    @property
    def warnings(self) -> list[str]:
        """The run's warnings so far."""
        return warnings_in(self.path.parent) if self.path is not None else []

    def success(self, message: str, *, kpi: dict[str, float] | None = None) -> None:
        """The last line of a run that succeeded."""
        self._write("SUCCESS", "INFO", message, {}, kpi)

    def failure(self, message: str) -> None:
        """The last line of a run that failed."""
        self._write("FAILURE", "ERROR", message, {})

    def where(self) -> str:
        """The last message and the time since the start; empty before the first message."""
        return f"{self._last.rstrip('.')} ({since(self._start)} since the start)" if self._last else ""

    def _write(
        self, status: str, verbosity: str, message: str, fields: dict[str, Any], kpi: dict[str, Any] | None = None
    ) -> None:
        if self.path is None:
            return
        if verbosity != "WARNING":
            self._last = message
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
        text = json.dumps(json_ready(line), allow_nan=False, ensure_ascii=False)
        for secret in self._secrets:
            text = text.replace(json.dumps(secret, ensure_ascii=False)[1:-1], "***")
        _append(self.path, f"{text}\n".encode("utf-8", "backslashreplace"))


def _append(path: Path, line: bytes) -> None:
    """Append a line in a single write, so that lines of several processes do not mix: the whole line or nothing."""
    handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    try:
        written = os.write(handle, line)
        if written < len(line):  # the disk is full; the next line would continue this one
            os.ftruncate(handle, os.fstat(handle).st_size - written)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    except OSError as error:
        error.filename = str(path)
        raise
    finally:
        os.close(handle)


def warnings_in(folder: Path) -> list[str]:
    """The warnings of the last run in a results folder, each text once; empty if there is no status.json."""
    found: list[str] = []
    for line in lines_of(folder):
        message = line.get("message", "")
        if line.get("status") == "STARTED" and message != LOOP:
            found.clear()
        elif line.get("verbosity") == "WARNING":
            found.append(message)
    return list(dict.fromkeys(found))


def beginning(verb: str) -> str:
    """The message of the first line of a run."""
    return "Starting DepthNet dataset convert" if verb == "convert" else f"Starting Depth Net {verb}."


def last_of(folder: Path, verbs: Sequence[str]) -> dict[str, Any]:
    """The last line of the last run of one of these verbs in a results folder; empty if status.json has none."""
    first, own = [beginning(verb) for verb in verbs], False
    last: dict[str, Any] = {}
    for line in lines_of(folder):
        if line.get("status") == "STARTED" and line.get("message") != LOOP:
            own = line.get("message") in first
        last = line if own else last
    return last


def lines_of(folder: Path) -> Iterator[dict[str, Any]]:
    """The complete lines of a results folder's status.json, which another process may be writing."""
    path = folder / NAME
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    return filter(None, map(read_line, text.split("\n")))


def read_line(text: str | bytes) -> dict[str, Any] | None:
    """A line of status.json, with only the numbers of `kpi`; None if it is not a complete JSON object."""
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
    """Metrics under the names that TAO's two containers use: `epe` and `val/epe`; `val_loss` and `val/loss`."""
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
