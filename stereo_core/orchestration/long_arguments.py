"""Commands with an argument longer than Linux passes: our launcher reads its message from a file instead."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from stereo_core.orchestration.dag import LAUNCHER, LONGEST, GraphError


def passable(command: list[str], place: Path, message: dict[str, Any]) -> list[str]:
    """The command as it can be started.

    Args:
        command: With everything filled in.
        place: The task's folder, which it may read.
        message: The ExecutorInput.

    Raises:
        GraphError: too long, and of an image that is not ours; it names the longest parameter.
    """
    if all(len(part.encode()) <= LONGEST for part in command):
        return command
    if command[0] != LAUNCHER:
        given = message["inputs"]["parameterValues"]
        name = max(given, key=lambda one: len(json.dumps(given[one])), default="")
        raise GraphError(f"parameter {name}: too long; an argument of a command may have {LONGEST} bytes")
    file = place / "executor_input.json"
    file.write_text(command[-1])
    return [*command[:-1], f"@{file}"]
