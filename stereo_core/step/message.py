"""KFP's ExecutorInput message: the inputs of a step, and where its results go."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stereo_core.errors import UserError
from stereo_core.step.ports import Artifact, entries, input_artifacts, output_artifacts, part, typed
from stereo_core.values import from_json, with_integers


@dataclass(frozen=True)
class Message:
    """The parsed message of one task."""

    parameters: dict[str, Any]
    inputs: dict[str, Artifact]  # by port, not yet checked
    outputs: dict[str, Artifact]
    figures: dict[str, Path]  # output parameter -> its file
    output_file: Path  # executor_output.json


def read_message(verb: str, text: str) -> Message:
    """Parse the message of a task that runs `verb`.

    Raises:
        UserError: it is not a valid ExecutorInput (the error names the place), or the verb has no such output.
    """
    try:
        message = from_json(text)
    except ValueError as error:
        raise UserError(f"EXECUTOR_INPUT_JSON: not a valid ExecutorInput message: {error}") from None
    message = typed(message, dict, "the message")
    given, wanted = part(message, "inputs", dict), part(message, "outputs", dict)
    return Message(
        parameters=with_integers(part(given, "parameterValues", dict)),
        inputs=input_artifacts(verb, given),
        outputs=output_artifacts(verb, wanted),
        figures={name: _file(one) for name, one in entries(wanted, "parameters")},
        output_file=_file(wanted),
    )


def _file(holder: dict[str, Any]) -> Path:
    if not (name := part(holder, "outputFile", str)):
        raise UserError(
            "EXECUTOR_INPUT_JSON: not a valid ExecutorInput message: outputFile is missing. Pipelines start steps with "
            "it; by hand use `depth_net VERB`"
        )
    return Path(name)
