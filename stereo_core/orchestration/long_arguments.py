"""Commands with an argument longer than Linux allows: our launcher then reads its message from a file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from stereo_core.orchestration.dag import LAUNCHER, LONGEST, GraphError


def passable(command: list[str], place: Path, message: dict[str, Any]) -> list[str]:
    """The command in a form that can be started.

    Args:
        command: The complete command.
        place: The task's folder, which the command can read.
        message: The ExecutorInput.

    Raises:
        GraphError: an argument is too long and the image is not ours; names the longest parameter.
    """
    if all(len(part.encode()) <= LONGEST for part in command):
        return command
    if command[0] != LAUNCHER:
        given = message["inputs"]["parameterValues"]
        name = max(given, key=lambda one: len(json.dumps(given[one])), default="")
        raise GraphError(
            f"parameter {name}: too long; a command-line argument can have at most {LONGEST} bytes; pass a file instead"
        )
    file = place / "executor_input.json"
    file.write_text(command[-1])
    return [*command[:-1], f"@{file}"]
