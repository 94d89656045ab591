"""KFP's messages: a task's ExecutorInput, its command line, and its executor_output.json."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from stereo_core.files import sha256_of, size_of
from stereo_core.orchestration.dag import Component, GraphError, Task
from stereo_core.orchestration.record import Made
from stereo_core.values import with_integers

OUTPUT = "executor_output.json"  # file in the task's folder in which it may describe its outputs


def executor_input(
    component: Component, folder: Path, place: Path, parameters: dict[str, Any], inputs: dict[str, Any]
) -> dict[str, Any]:
    """The ExecutorInput of a task.

    Args:
        folder: The run's folder.
        place: The task's folder, for its outputs.
        parameters: Values by name.
        inputs: Lists of `Made` by port.
    """

    def item(name: str, kind: dict[str, Any], path: Path, metadata: dict[str, Any]) -> dict[str, Any]:
        return {"name": name, "type": kind, "uri": str(path), "metadata": metadata}

    return {
        "inputs": {
            "parameterValues": parameters,
            "artifacts": {
                port: {"artifacts": [item(port, made.type, folder / made.path, made.metadata) for made in many]}
                for port, many in inputs.items()
            },
        },
        "outputs": {
            "parameters": {name: {"outputFile": str(place / name)} for name in component.output_parameters},
            "artifacts": {
                port.name: {"artifacts": [item(port.name, port.type, place / port.name, {})]}
                for port in component.output_artifacts.values()
            },
            "outputFile": str(place / OUTPUT),
        },
    }


def command_of(task: Task, message: dict[str, Any]) -> list[str]:
    """The task's command line, with KFP's placeholders replaced by the values of the message.

    Raises:
        GraphError: an unknown placeholder.
    """
    container = task.container
    return [_filled(part, message, task.name) for part in (*container.command, *container.args)]


def _filled(text: str, message: dict[str, Any], task: str) -> str:
    def value(match: re.Match[str]) -> str:
        inner = match.group(1)
        if not inner:
            return json.dumps(message)
        for pattern, path in _PATHS.items():
            found = re.fullmatch(pattern, inner)
            if found:
                return _text_at(message, [found["name"] if key == "{name}" else key for key in path])
        raise GraphError(
            f"task {task}: placeholder {match.group(0)} is not supported by stereo-pipelines; a command can use the "
            "values of input parameters and the paths of artifacts and outputs"
        )

    return _PLACEHOLDER.sub(value, text)


def _text_at(message: dict[str, Any], path: list[Any]) -> str:
    item = message
    for key in path:
        item = item[key]
    return item if isinstance(item, str) else json.dumps(item)


_PLACEHOLDER = re.compile(r"\{\{\$(.*?)\}\}")
_URI = ("{name}", "artifacts", 0, "uri")
_PATHS = {
    r"\.inputs\.parameters\['(?P<name>[^']+)'\]": ("inputs", "parameterValues", "{name}"),
    r"\.inputs\.artifacts\['(?P<name>[^']+)'\]\.(?:path|uri)": ("inputs", "artifacts", *_URI),
    r"\.outputs\.artifacts\['(?P<name>[^']+)'\]\.(?:path|uri)": ("outputs", "artifacts", *_URI),
    r"\.outputs\.parameters\['(?P<name>[^']+)'\]\.output_file": ("outputs", "parameters", "{name}", "outputFile"),
    r"\.outputs\.output_file": ("outputs", "outputFile"),
}


def outputs_of(component: Component, folder: Path, place: Path) -> dict[str, Any]:
    """A task's outputs: `parameters` and `artifacts` for its record, with digests of the files.

    Raises:
        ValueError: an output parameter's file cannot be read.
    """
    file = place / OUTPUT
    described = json.loads(file.read_text()) if file.is_file() else {}
    parameters = with_integers(described.get("parameterValues", {}))
    for parameter in component.output_parameters.values():
        path = place / parameter.name
        if path.is_file():
            text = path.read_text()
            parameters[parameter.name] = text if parameter.type == "STRING" else with_integers(json.loads(text))
    artifacts = {}
    for port in component.output_artifacts.values():
        items = described.get("artifacts", {}).get(port.name, {}).get("artifacts") or [{}]
        artifacts[port.name] = _made(port.type, folder, place / port.name, items[0].get("metadata", {}))
    return {"parameters": parameters, "artifacts": artifacts}


def _made(kind: dict[str, Any], folder: Path, path: Path, metadata: dict[str, Any]) -> Made:
    there = path.exists()
    digest, size = (sha256_of(path), size_of(path)) if there else ("", 0)
    return Made(kind, str(path.relative_to(folder)), digest, size, metadata)
