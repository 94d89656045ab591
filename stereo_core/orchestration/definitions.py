"""Reads components of the IR: their inputs and outputs, and their executors."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from typing import Any

from stereo_core.orchestration.dag import (
    READERS,
    Argument,
    Component,
    Constant,
    Container,
    GraphError,
    Importer,
    Parameter,
    Port,
    typed,
)
from stereo_core.values import digits


def definitions(section: dict[str, Any]) -> tuple[dict[str, Parameter], dict[str, Port]]:
    parameters = {}
    for name, item in section.get("parameters", {}).items():
        kind = item["parameterType"]
        if kind not in READERS:
            raise GraphError(f"parameter {name}: type {kind} is not supported; use str, int, float, bool, list or dict")
        optional = item.get("isOptional", False) or "defaultValue" in item
        parameter = Parameter(name, kind, not optional, None, item.get("description", ""))
        if "defaultValue" in item:
            parameter = replace(parameter, default=typed(parameter, item["defaultValue"]))
        parameters[name] = parameter
    ports = {}
    for name, item in section.get("artifacts", {}).items():
        optional, many = item.get("isOptional", False), item.get("isArtifactList", False)
        ports[name] = Port(name, item["artifactType"], not optional, item.get("description", ""), many)
    return parameters, ports


def component_of(task: str, component: dict[str, Any], spec: dict[str, Any]) -> Component:
    executor = spec["deploymentSpec"]["executors"][component["executorLabel"]]
    parameters, artifacts = definitions(component.get("inputDefinitions", {}))
    output_parameters, output_artifacts = definitions(component.get("outputDefinitions", {}))
    return Component(_executor(task, executor), parameters, artifacts, output_parameters, output_artifacts)


def _executor(task: str, executor: dict[str, Any]) -> Container | Importer:
    if "importer" in executor:
        importer = executor["importer"]
        uri = importer["artifactUri"]
        source = Argument(uri["runtimeParameter"]) if "runtimeParameter" in uri else Constant(uri["constant"])
        metadata = importer.get("metadata", {})
        if "{{$" in json.dumps(metadata):
            raise GraphError(f"task {task}: an importer's metadata cannot come from a parameter; write a literal")
        if importer.get("downloadToWorkspace"):
            raise GraphError(
                f"task {task}: downloadToWorkspace of an importer is not supported by stereo-pipelines; leave "
                "download_to_workspace out of dsl.importer"
            )
        return Importer(source, metadata)  # `reimport` matters only for Kubeflow's records; here every import is new
    if "container" not in executor:
        raise GraphError(
            f"task {task}: executor {first_of(executor)} is not supported by stereo-pipelines; use a container "
            "component or dsl.importer"
        )
    container = executor["container"]
    command, args = container.get("command", []), container.get("args", [])
    if any("kfp.dsl.executor_main" in part for part in (*command, *args)):
        raise GraphError(f"task {task}: Python-function components are not supported; use a container component")
    for part in (*command, *args):
        if re.match(r'\{"(IfPresent|Concat)"', part):
            raise GraphError(
                f"task {task}: dsl.{next(iter(json.loads(part)))}Placeholder is not supported by stereo-pipelines; "
                "write the arguments of the command without it"
            )
    if not command and not args:
        raise GraphError(
            f"task {task}: the container has no command, and the image's entry point cannot be used here; set command "
            "in dsl.ContainerSpec"
        )
    env = {item["name"]: item.get("value", "") for item in container.get("env", [])}
    return Container(
        container["image"],
        tuple(command),
        tuple(args),
        env,
        _accelerators(task, container),
        container.get("resources", {}),
    )


def _accelerators(task: str, container: dict[str, Any]) -> int:
    accelerator = container.get("resources", {}).get("accelerator", {})
    given = str(accelerator.get("resourceCount") or accelerator.get("count") or 0)
    count = digits(given)
    if count is None:
        raise GraphError(f"task {task}: the accelerator count {given} is not a number; write a literal")
    return count


def first_of(item: dict[str, Any]) -> str:
    return next(iter(item), "nothing")
