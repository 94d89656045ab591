"""KFP's ExecutorInput, as a step reads it: what it is given, and where its results are wanted."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stereo_core.errors import UserError
from stereo_core.step.ports import Artifact, entries, input_artifacts, output_artifacts, part, typed
from stereo_core.values import from_json, with_integers


@dataclass(frozen=True)
class Message:
    """What one task is told."""

    parameters: dict[str, Any]
    inputs: dict[str, Artifact]  # by port, not yet looked at
    outputs: dict[str, Artifact]
    figures: dict[str, Path]  # where the output parameters are wanted
    output_file: Path  # executor_output.json


def read_message(verb: str, text: str) -> Message:
    """The message of a task that runs `verb`.

    Raises:
        UserError: it is no ExecutorInput, names the place; or an output that the verb has not.
    """
    try:
        message = from_json(text)
    except ValueError as error:
        raise UserError(f"EXECUTOR_INPUT_JSON is no ExecutorInput message: {error}") from None
    message = typed(message, dict, "the whole")
    given, wanted = part(message, "inputs", dict), part(message, "outputs", dict)
    return Message(
        parameters=with_integers(part(given, "parameterValues", dict)),
        inputs=input_artifacts(verb, given),
        outputs=output_artifacts(verb, wanted),
        figures={name: _file(one) for name, one in entries(wanted, "parameters")},
        output_file=_file(wanted),
    )


def _file(holder: dict) -> Path:
    if not (name := part(holder, "outputFile", str)):
        raise UserError("EXECUTOR_INPUT_JSON is no ExecutorInput message: an outputFile is missing")
    return Path(name)
