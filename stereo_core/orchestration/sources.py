"""Resolves the inputs of the IR's tasks at each level of a nested pipeline."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from stereo_core.orchestration.dag import (
    PLACEHOLDER,
    Comparison,
    Component,
    Constant,
    Filled,
    FinalStatus,
    GraphError,
    OneOf,
    Output,
    Source,
    as_number,
)
from stereo_core.orchestration.definitions import first_of


@dataclass(frozen=True)
class Scope:
    """A level of the pipeline: the sources of its inputs, and the dependencies of its first tasks (see `Task`)."""

    prefix: str = ""
    parameters: dict[str, Source] = field(default_factory=dict)
    artifacts: dict[str, Source] = field(default_factory=dict)
    after: frozenset[str] = frozenset()
    behind: frozenset[str] = frozenset()
    when: tuple[Comparison, ...] = ()
    cache: bool = True


@dataclass(frozen=True)
class Node:
    """A task or a group of tasks, as seen by the other tasks of its level."""

    tasks: tuple[str, ...]
    ends: frozenset[str]  # those of `tasks` that no other of them waits for
    when: tuple[Comparison, ...]
    outputs: dict[str, Source]


def parameters_of(where: str, items: dict[str, Any], scope: Scope, nodes: dict[str, Node]) -> dict[str, Source]:
    """The sources of a task's parameters. A parameter is left out if its level did not get the input."""
    found: dict[str, Source] = {}
    for key, item in items.items():
        if "constant" in item.get("runtimeValue", {}):
            continue
        source = _parameter(where, key, item, scope, nodes)
        if source is not None:
            found[key] = _selected(where, key, source, item)
    for key, item in items.items():
        if "constant" in item.get("runtimeValue", {}):
            found[key] = _constant(where, key, item["runtimeValue"]["constant"], found)
    return found


def _parameter(where: str, key: str, item: dict[str, Any], scope: Scope, nodes: dict[str, Node]) -> Source | None:
    if "componentInputParameter" in item:
        return scope.parameters.get(item["componentInputParameter"])
    if "taskOutputParameter" in item:
        output = item["taskOutputParameter"]
        return _output(where, nodes, output["producerTask"], output["outputParameterKey"])
    if "taskFinalStatus" in item:
        group = item["taskFinalStatus"]["producerTask"]
        return FinalStatus(group, nodes[group].tasks)
    raise GraphError(
        f"{where}: parameter {key} uses {first_of(item)}, which is not supported by stereo-pipelines; use a constant, "
        "a pipeline parameter or an output of a task"
    )


def _selected(where: str, key: str, source: Source, item: dict[str, Any]) -> Source:
    """A part of a loop's item: `parseJson(string_value)["name"]`."""
    if "parameterExpressionSelector" not in item:
        return source
    found = re.fullmatch(r'parseJson\(string_value\)\["(.*)"\]', item["parameterExpressionSelector"])
    if not found or not isinstance(source, Constant):
        raise GraphError(
            f"{where}: parameter {key} uses a selector (part of a value), which is supported only for the items of a "
            "loop; pass the whole value"
        )
    if not isinstance(source.value, dict) or found[1] not in source.value:
        raise GraphError(
            f"{where}: parameter {key} uses {found[1]!r} of the loop item, but this item lacks it: {source.value!r}; "
            "add it to the item"
        )
    return Constant(source.value[found[1]])


def _constant(where: str, key: str, value: object, inputs: dict[str, Source]) -> Constant | Filled:
    text = json.dumps(value) if not isinstance(value, str) else value
    names = set(PLACEHOLDER.findall(text))
    for other in re.findall(r"\{\{\$.*?\}\}", PLACEHOLDER.sub("", text)):
        raise GraphError(
            f"{where}: parameter {key}: placeholder {other} is not supported by stereo-pipelines; use the value of a "
            "pipeline parameter or of a task's output"
        )
    for name in names - inputs.keys():
        raise GraphError(
            f"{where}: parameter {key} refers to an input {name} that does not exist; compile the pipeline again"
        )
    return Filled(value, {name: inputs[name] for name in sorted(names)}) if names else Constant(value)


def artifacts_of(where: str, items: dict[str, Any], scope: Scope, nodes: dict[str, Node]) -> dict[str, Source]:
    found = {}
    for key, item in items.items():
        if "taskOutputArtifact" in item:
            output = item["taskOutputArtifact"]
            found[key] = _output(where, nodes, output["producerTask"], output["outputArtifactKey"])
        elif "componentInputArtifact" not in item:
            raise GraphError(
                f"{where}: input {key} uses {first_of(item)}, which is not supported by stereo-pipelines; use an "
                "artifact of another task"
            )
        elif item["componentInputArtifact"] in scope.artifacts:
            found[key] = scope.artifacts[item["componentInputArtifact"]]
    return found


def _output(where: str, nodes: dict[str, Node], producer: str, key: str) -> Source:
    if key not in nodes[producer].outputs:
        raise GraphError(f"{where}: task {producer} does not exist or has no output {key}; compile the pipeline again")
    return nodes[producer].outputs[key]


def outputs_of(where: str, dag: dict[str, Any], nodes: dict[str, Node]) -> Iterator[tuple[str, Source]]:
    """The outputs of a group: an output of an inner task, or (dsl.OneOf) of the first of several that has run."""
    for key, item in dag.get("outputs", {}).get("parameters", {}).items():
        one = item.get("valueFromParameter")
        chosen = [one] if one else item["valueFromOneof"]["parameterSelectors"]
        yield key, _one_of(where, nodes, [(s["producerSubtask"], s["outputParameterKey"]) for s in chosen])
    for key, item in dag.get("outputs", {}).get("artifacts", {}).items():
        chosen = item["artifactSelectors"]
        yield key, _one_of(where, nodes, [(s["producerSubtask"], s["outputArtifactKey"]) for s in chosen])


def _one_of(where: str, nodes: dict[str, Node], outputs: list[tuple[str, str]]) -> Source:
    sources = [_output(where, nodes, producer, key) for producer, key in outputs]
    if len(sources) == 1:
        return sources[0]
    options: list[Output] = []
    for source in sources:
        options += source.options if isinstance(source, OneOf) else [source] if isinstance(source, Output) else []
    if any(not isinstance(source, OneOf | Output) for source in sources):
        raise GraphError(f"{where}: dsl.OneOf of dsl.Collected is not supported; give it outputs of single tasks")
    return OneOf(tuple(options))


def inputs_of(
    name: str, step: Component, items: dict[str, Any], scope: Scope
) -> tuple[dict[str, Source], dict[str, Source]]:
    """The inputs that a step declares and gets. KFP also lists inputs that only the step's constants use."""
    parameters = {}
    for key in items.get("parameters", {}).keys() & step.parameters.keys():
        if key not in scope.parameters:
            raise GraphError(
                f"task {name}: parameter {key} uses a pipeline parameter that does not exist; compile the pipeline "
                "again"
            )
        if scope.parameters[key] != Constant(None):  # an input that its pipeline did not get
            source = scope.parameters[key]
            if isinstance(source, Constant):  # e.g. an item of a loop
                source = Constant(as_number(step.parameters[key], source.value))
            parameters[key] = source
    for key in items.get("artifacts", {}).keys() - scope.artifacts.keys():
        if step.artifacts[key].required:
            raise GraphError(
                f"task {name}: input {key} needs an artifact that the pipeline around the task did not get; pass it to "
                "that pipeline"
            )
    return {key: parameters[key] for key in step.parameters if key in parameters}, scope.artifacts


def placed(where: str, platform: Any, inputs: dict[str, Source]) -> Any:
    """A step's part of the platform document, with sources for its parameters (names of secrets)."""
    if isinstance(platform, list):
        return [placed(where, item, inputs) for item in platform]
    if not isinstance(platform, dict):
        return platform
    if "constant" in platform.get("runtimeValue", {}):
        return Constant(platform["runtimeValue"]["constant"])
    if "componentInputParameter" not in platform:
        return {key: placed(f"{where}, {key}", item, inputs) for key, item in platform.items()}
    name = platform["componentInputParameter"]
    if name not in inputs:
        raise GraphError(
            f"{where}: it uses a pipeline parameter {name} that does not exist; compile the pipeline again"
        )
    return inputs[name]
