"""`stereo-pipelines` in the test's own process: a process of its own would import for a second, each time."""

import contextlib
import io
import signal
import subprocess
import sys
from pathlib import Path
from unittest import mock

from stereo_core.orchestration import cli


def command(*arguments: object, cwd: Path | None = None) -> subprocess.CompletedProcess:
    """Exit code, stdout and stderr of a command line. An exception that a user would see as a traceback is raised."""
    line = ["stereo-pipelines", *map(str, arguments)]
    before = {number: signal.getsignal(number) for number in cli.SIGNALS}
    stdout, stderr = (io.TextIOWrapper(io.BytesIO(), "utf-8", write_through=True) for _ in range(2))
    try:
        with (
            mock.patch.object(sys, "argv", line),
            contextlib.chdir(cwd or Path.cwd()),
            contextlib.redirect_stdout(stdout),
            contextlib.redirect_stderr(stderr),
        ):
            cli.main()
    except SystemExit as end:
        return subprocess.CompletedProcess(line, end.code or 0, *map(_text, (stdout, stderr)))
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    raise AssertionError("main() returned without an exit code")


def _text(stream: io.TextIOWrapper) -> str:
    stream.seek(0)
    return stream.read()
