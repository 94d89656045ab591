"""A step's command: KFP's ExecutorInput message with Argo's references, escaped so that it arrives unchanged.

Two programs could change it: Argo replaces everything from `{{` to the next `}}`, and the kubelet replaces `$(NAME)` in
a container's command by environment variables and `$$` by `$`
(kubernetes.io/docs/tasks/inject-data-application/define-interdependent-environment-variables).
"""

from __future__ import annotations

import json
import re
from dataclasses import replace

from stereo_core.orchestration.argo.values import substituted
from stereo_core.orchestration.dag import LONGEST, Collected, GraphError, Parameter, Port, Task

INPUTS, OUTPUTS = "/stereo/inputs", "/stereo/outputs"


def argument(text: str, task: Task) -> str:
    """A part of the command, with KFP's placeholders replaced by Argo's references."""

    def reference(inner: str) -> str:
        if not inner:
            return executor_input(task)
        for pattern, target in _TARGETS:
            found = re.fullmatch(pattern, inner)
            if found:
                return found.expand(target)
        raise GraphError(
            f"task {task.name}: placeholder {{{{${inner}}}}} is not supported on Argo; a command can use the values of "
            "input parameters and the paths of artifacts and outputs"
        )

    return substituted(text, reference, f"task {task.name}, command")


_TARGETS = (
    (r"\.inputs\.parameters\['([^']+)'\]", r"{{=sprig.replace('$', '$$', inputs.parameters['\1'])}}"),
    (r"\.inputs\.artifacts\['([^']+)'\]\.(?:path|uri)", rf"{INPUTS}/\1"),
    (r"\.outputs\.artifacts\['([^']+)'\]\.(?:path|uri)", rf"{OUTPUTS}/\1"),
    (r"\.outputs\.parameters\['([^']+)'\]\.output_file", rf"{OUTPUTS}/\1"),
    (r"\.outputs\.output_file", f"{OUTPUTS}/executor_output.json"),
)


def ports_of(task: Task, port: Port) -> list[Port]:
    """Argo's ports for a port: a list port becomes one port for each artifact that the task gets."""
    if not port.many:
        return [port]
    given = task.artifacts.get(port.name, Collected(()))
    if not isinstance(given, Collected):
        raise GraphError(
            f"task {task.name}: input {port.name} takes a list of artifacts, but gets one; give it dsl.Collected of a "
            "loop's output"
        )
    return [replace(port, name=f"{port.name}-{index}") for index in range(len(given.rounds))]


def executor_input(task: Task) -> str:
    """KFP's ExecutorInput message, with Argo's references for the values.

    Outside of references no two braces are adjacent, because Argo replaces everything from `{{` to the next `}}`.
    """
    component = task.component
    parameters = [f"{json.dumps(p.name)}: {_as_json(p)}" for p in component.parameters.values()]
    artifacts = [f'{json.dumps(p.name)}: {{"artifacts": {_items(task, p)} }}' for p in component.artifacts.values()]
    outputs = {
        "parameters": {name: {"outputFile": f"{OUTPUTS}/{name}"} for name in component.output_parameters},
        "artifacts": {
            port.name: {
                "artifacts": [{"name": port.name, "type": port.type, "uri": f"{OUTPUTS}/{port.name}", "metadata": {}}]
            }
            for port in component.output_artifacts.values()
        },
        "outputFile": f"{OUTPUTS}/executor_output.json",
    }
    inputs = f'"parameterValues": {{ {", ".join(parameters)} }}, "artifacts": {{ {", ".join(artifacts)} }}'
    return f'{{"inputs": {{ {inputs} }}, "outputs": {json.dumps(outputs)} }}'


def _as_json(parameter: Parameter) -> str:
    if parameter.type == "STRING":
        return f"{{{{={_unexpanded(f'''toJson(inputs.parameters['{parameter.name}'])''')}}}}}"
    # The value is JSON already. If it is not, the step reports the error.
    return f"{{{{={_unexpanded(f'''inputs.parameters['{parameter.name}']''')}}}}}"


def _unexpanded(expression: str) -> str:
    """An expression that escapes `$` in JSON, so that the kubelet expands nothing. In JSON `$` occurs only in texts."""
    return rf"sprig.replace('$', '\\u0024', {expression})"


def _items(task: Task, port: Port) -> str:
    """The list of a port's artifacts; empty if an optional artifact is missing."""
    if port.required or port.many:
        items = (_item(one, f"{{{{={_metadata(one)}}}}}") for one in ports_of(task, port))
        return f"[{', '.join(items)}]"
    head, tail = _item(port, "|").split("|")
    empty = f"inputs.parameters['{port.name}-metadata'] == ''"
    return f"{{{{={empty} ? '[]' : '[{head}' + {_metadata(port)} + '{tail}]'}}}}"


def _metadata(port: Port) -> str:
    return _unexpanded(f"inputs.parameters['{port.name}-metadata']")


def _item(port: Port, metadata: str) -> str:
    start = json.dumps({"name": port.name, "type": port.type, "uri": f"{INPUTS}/{port.name}"}).removesuffix("}")
    return f'{start}, "metadata": {metadata} }}'


def check_length(task: Task, given: dict[str, str]) -> None:
    """Refuse parameter values that make the command-line argument too long.

    Args:
        task: The step.
        given: The known texts of its parameters.

    Raises:
        GraphError: names the longest parameter.
    """
    sizes = {name: len(json.dumps(text, ensure_ascii=False).encode()) for name, text in given.items()}
    if (whole := sum(sizes.values())) > LONGEST:
        name = max(sizes, key=lambda name: sizes[name])
        raise GraphError(
            f"task {task.name}, parameter {name}: {sizes[name]} bytes make the step's message {whole} bytes long, but"
            f" Argo before 3.7.10 can pass only {LONGEST} bytes; use a spec_file, or set --argo-version 3.7 if your"
            " Argo is 3.7.10 or newer"
        )
