"""PipelineSpec IR (what KFP compiles a pipeline to) -> a small typed DAG.

Read: container components, importers, constants, parameters, artifacts, resources, retry policies, and the Kubernetes
platform document, of which this machine keeps the timeouts. What can not be expressed here is refused by its name
rather than left out.
"""

from __future__ import annotations

import difflib
import json
import re
from dataclasses import dataclass, field, replace
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import yaml

from stereo_core.errors import SpecError
from stereo_core.launcher import plain


class GraphError(SpecError):
    """A pipeline that can not be read or run here, or arguments that do not fit it."""


@dataclass(frozen=True)
class Constant:
    value: object


@dataclass(frozen=True)
class Argument:
    """The value of a pipeline parameter."""

    name: str


@dataclass(frozen=True)
class Output:
    """An output parameter or output artifact of another task."""

    task: str
    key: str


Source = Constant | Argument | Output


@dataclass(frozen=True)
class Parameter:
    """A typed value; `type` is the IR's: STRING, NUMBER_INTEGER, NUMBER_DOUBLE, BOOLEAN, LIST or STRUCT."""

    name: str
    type: str
    required: bool = True
    default: object = None
    description: str = ""


@dataclass(frozen=True)
class Port:
    """An artifact that goes in or comes out."""

    name: str
    type: dict
    required: bool = True
    description: str = ""


@dataclass(frozen=True)
class Container:
    image: str
    command: tuple[str, ...]
    args: tuple[str, ...]
    env: dict[str, str] = field(default_factory=dict)
    accelerators: int = 0
    resources: dict = field(default_factory=dict)  # as the IR has them: resourceCpuLimit, accelerator, ...


@dataclass(frozen=True)
class Importer:
    """Makes an artifact of a URI: a constant, or the task's own parameter of that name."""

    uri: Source
    metadata: dict = field(default_factory=dict)


@dataclass(frozen=True)
class Retry:
    """How often a failed task runs again, and how many seconds it waits before."""

    count: int = 0
    backoff: float = 0.0
    factor: float = 2.0
    longest: float = 3600.0

    def delay(self, attempt: int) -> float:
        """Seconds to wait after the failed attempt number `attempt` (from 1)."""
        return min(self.longest, self.backoff * self.factor ** (attempt - 1))


@dataclass(frozen=True)
class Component:
    """Signature and executor of a step."""

    executor: Container | Importer
    parameters: dict[str, Parameter]
    artifacts: dict[str, Port]
    output_parameters: dict[str, Parameter]
    output_artifacts: dict[str, Port]


@dataclass(frozen=True)
class Task:
    name: str
    title: str
    component: Component
    parameters: dict[str, Source]
    artifacts: dict[str, Output]
    after: frozenset[str]
    cache: bool = False
    retry: Retry = Retry()
    timeout: float | None = None
    platform: dict = field(default_factory=dict)  # the executor's section of the Kubernetes platform document


@dataclass(frozen=True)
class Pipeline:
    """Tasks in an order in which each comes after all that it needs."""

    name: str
    description: str
    parameters: dict[str, Parameter]
    tasks: dict[str, Task]

    def arguments(self, given: dict[str, object], complete: bool = True) -> dict[str, object]:
        """Defaults completed by `given`; values are checked against their types.

        Unless all must be there (`complete`), a parameter without a value is left out.

        Raises:
            GraphError: an unknown or missing parameter, or a value of another type.
        """
        for name in given:
            if name not in self.parameters:
                near = difflib.get_close_matches(name, self.parameters, n=1)
                hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(sorted(self.parameters)) or 'none'}"
                raise GraphError(f"pipeline {self.name}: unknown parameter {name}; {hint}")
        missing = [p.name for p in self.parameters.values() if p.required and p.name not in given]
        if missing and complete:
            raise GraphError(f"pipeline {self.name}: parameters without a value: {', '.join(missing)}")
        values = {p.name: p.default for p in self.parameters.values() if not p.required} | given
        return {name: typed(self.parameters[name], value) for name, value in values.items()}


# ---- values

_READERS = {"NUMBER_INTEGER": int, "NUMBER_DOUBLE": float, "BOOLEAN": bool, "STRING": str, "LIST": list, "STRUCT": dict}
_WANTED = {
    "NUMBER_INTEGER": "an integer",
    "NUMBER_DOUBLE": "a number",
    "BOOLEAN": "true or false",
    "STRING": "text",
    "LIST": "a list",
    "STRUCT": "a mapping",
}


def typed(parameter: Parameter, value: object) -> object:
    """`value` as the parameter's type; whole floats are integers (protobuf knows only doubles).

    Raises:
        GraphError: the value is of another type.
    """
    value = plain(value)
    if parameter.type == "NUMBER_DOUBLE" and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    wanted = _READERS[parameter.type]
    if value is None and not parameter.required:
        return None
    if not isinstance(value, wanted) or (wanted is int and isinstance(value, bool)):
        raise GraphError(f"parameter {parameter.name}: {_WANTED[parameter.type]} is wanted, not {value!r}")
    return value


def parse(parameter: Parameter, text: str) -> object:
    """A value typed on a command line: text as it is, everything else as YAML (so also JSON).

    Raises:
        GraphError: the text is no such value.
    """
    if parameter.type == "STRING":
        return text
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise GraphError(f"parameter {parameter.name}: {text!r} is no YAML: {error}") from None
    if parameter.type == "NUMBER_DOUBLE" and isinstance(value, str):  # YAML 1.1 takes 1e-4 for text
        try:
            value = float(value)
        except ValueError:
            raise GraphError(f"parameter {parameter.name}: a number is wanted, not {text!r}") from None
    return typed(parameter, value)


# ---- reading


def load_pipeline(path: str | Path) -> Pipeline:
    """Read a compiled pipeline (or component).

    Raises:
        GraphError: no such file, no PipelineSpec, or something in it that can not be run here.
    """
    path = Path(path)
    try:
        documents = [d for d in yaml.safe_load_all(path.read_text(encoding="utf-8")) if d]
    except OSError as error:
        raise GraphError(f"{path}: {error.strerror}") from None
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise GraphError(f"{path}: no YAML: {error}") from None
    if not documents or not isinstance(documents[0], dict) or "pipelineInfo" not in documents[0]:
        raise GraphError(f"{path}: no compiled pipeline (PipelineSpec IR); `stereo-pipelines compile` writes them")
    platform = documents[1] if len(documents) > 1 else {}
    try:
        return _pipeline(documents[0], platform)
    except GraphError as error:
        raise GraphError(f"{path}: {error}") from None
    except (KeyError, TypeError, AttributeError) as error:
        raise GraphError(f"{path}: malformed PipelineSpec: {type(error).__name__}: {error}") from None


def _pipeline(spec: dict, platform: dict) -> Pipeline:
    root = spec["root"]
    parameters, artifacts = _definitions(root.get("inputDefinitions", {}))
    required = [port.name for port in artifacts.values() if port.required]
    if required:
        raise GraphError(f"the pipeline takes artifacts ({', '.join(required)}); import them by URI (dsl.importer)")
    placed = platform.get("platforms", {}).get("kubernetes", {}).get("deploymentSpec", {}).get("executors", {})
    tasks = {name: _task(name, task, spec, parameters, placed) for name, task in root["dag"]["tasks"].items()}
    for task in tasks.values():
        for source in (*task.parameters.values(), *task.artifacts.values()):
            if isinstance(source, Argument) and source.name not in parameters:
                raise GraphError(f"task {task.name}: unknown pipeline parameter {source.name}")
            if isinstance(source, Output):
                _check_output(task, source, tasks)
    try:
        order = TopologicalSorter({task.name: task.after for task in tasks.values()}).static_order()
        ordered = {name: tasks[name] for name in order}
    except CycleError as error:
        raise GraphError(f"tasks wait for each other: {' -> '.join(error.args[1])}") from None
    info = spec["pipelineInfo"]
    return Pipeline(info["name"], info.get("description", ""), parameters, ordered)


def _check_output(task: Task, source: Output, tasks: dict[str, Task]) -> None:
    producer = tasks.get(source.task)
    known = {**producer.component.output_artifacts, **producer.component.output_parameters} if producer else {}
    if source.key not in known:
        raise GraphError(f"task {task.name}: there is no output {source.key} of a task {source.task}")


def _definitions(section: dict) -> tuple[dict[str, Parameter], dict[str, Port]]:
    parameters = {}
    for name, item in section.get("parameters", {}).items():
        kind = item["parameterType"]
        if kind not in _READERS:
            raise GraphError(f"parameter {name}: type {kind} is not supported")
        optional = item.get("isOptional", False) or "defaultValue" in item
        parameter = Parameter(name, kind, not optional, None, item.get("description", ""))
        if "defaultValue" in item:
            parameter = replace(parameter, default=typed(parameter, item["defaultValue"]))
        parameters[name] = parameter
    ports = {}
    for name, item in section.get("artifacts", {}).items():
        if item.get("isArtifactList"):
            raise GraphError(f"artifact {name}: lists of artifacts are not supported")
        optional = item.get("isOptional", False)
        ports[name] = Port(name, item["artifactType"], not optional, item.get("description", ""))
    return parameters, ports


def _task(name: str, task: dict, spec: dict, known: dict[str, Parameter], placed: dict[str, dict]) -> Task:
    for key, word in (
        ("parameterIterator", "loops (dsl.ParallelFor)"),
        ("artifactIterator", "loops (dsl.ParallelFor)"),
        ("iteratorPolicy", "loops (dsl.ParallelFor)"),
    ):
        if key in task:
            raise GraphError(f"task {name}: {word} are not supported by this engine")
    trigger = task.get("triggerPolicy", {})
    if trigger.get("condition"):
        raise GraphError(f"task {name}: conditions (dsl.If) are not supported by this engine")
    if trigger.get("strategy", "TRIGGER_STRATEGY_UNSPECIFIED") == "ALL_UPSTREAM_TASKS_COMPLETED":
        raise GraphError(f"task {name}: exit handlers and ignored failures are not supported by this engine")
    reference = task["componentRef"]["name"]
    component = _component(name, spec["components"][reference], spec)
    inputs = task.get("inputs", {})
    parameters = {key: _parameter_source(name, key, item) for key, item in inputs.get("parameters", {}).items()}
    artifacts = {}
    for key, item in inputs.get("artifacts", {}).items():
        if "taskOutputArtifact" in item:
            output = item["taskOutputArtifact"]
            artifacts[key] = Output(output["producerTask"], output["outputArtifactKey"])
        elif "componentInputArtifact" not in item or component.artifacts[key].required:
            raise GraphError(f"task {name}: input {key} takes {_first(item)}, which is not supported by this engine")
    produced = {s.task for s in (*parameters.values(), *artifacts.values()) if isinstance(s, Output)}
    policy = task.get("retryPolicy", {})
    platform = placed.get(spec["components"][reference]["executorLabel"], {})
    return Task(
        name=name,
        title=task.get("taskInfo", {}).get("name") or name,
        component=component,
        parameters=parameters,
        artifacts=artifacts,
        after=frozenset(task.get("dependentTasks", ())) | produced,
        cache=task.get("cachingOptions", {}).get("enableCache", False),
        retry=Retry(
            int(policy.get("maxRetryCount", 0)),
            _seconds(policy.get("backoffDuration", "0s")),
            float(policy.get("backoffFactor", 2.0)),
            _seconds(policy.get("backoffMaxDuration", "3600s")),
        ),
        timeout=float(platform["activeDeadlineSeconds"]) if "activeDeadlineSeconds" in platform else None,
        platform=platform,
    )


def _parameter_source(task: str, key: str, item: dict) -> Source:
    if "parameterExpressionSelector" in item:
        raise GraphError(f"task {task}: parameter {key} uses a selector (part of a value), which is not supported")
    if "runtimeValue" in item and "constant" in item["runtimeValue"]:
        return Constant(plain(item["runtimeValue"]["constant"]))
    if "componentInputParameter" in item:
        return Argument(item["componentInputParameter"])
    if "taskOutputParameter" in item:
        output = item["taskOutputParameter"]
        return Output(output["producerTask"], output["outputParameterKey"])
    raise GraphError(f"task {task}: parameter {key} takes {_first(item)}, which is not supported by this engine")


def _component(task: str, component: dict, spec: dict) -> Component:
    if "dag" in component:
        raise GraphError(f"task {task}: pipelines in pipelines, conditions and loops are not supported by this engine")
    executor = spec["deploymentSpec"]["executors"][component["executorLabel"]]
    parameters, artifacts = _definitions(component.get("inputDefinitions", {}))
    output_parameters, output_artifacts = _definitions(component.get("outputDefinitions", {}))
    return Component(_executor(task, executor), parameters, artifacts, output_parameters, output_artifacts)


def _executor(task: str, executor: dict) -> Container | Importer:
    if "importer" in executor:
        importer = executor["importer"]
        uri = importer["artifactUri"]
        source = Argument(uri["runtimeParameter"]) if "runtimeParameter" in uri else Constant(uri["constant"])
        return Importer(source, plain(importer.get("metadata", {})))
    if "container" not in executor:
        raise GraphError(f"task {task}: executor {_first(executor)} is not supported by this engine")
    container = executor["container"]
    command, args = container.get("command", []), container.get("args", [])
    if any("kfp.dsl.executor_main" in part for part in (*command, *args)):
        raise GraphError(f"task {task}: Python-function components install packages at run time; use a container one")
    for part in (*command, *args):
        if re.match(r'\{"(IfPresent|Concat)"', part):
            raise GraphError(f"task {task}: placeholder {next(iter(json.loads(part)))} is not supported by this engine")
    if not command and not args:
        raise GraphError(f"task {task}: the image's own entry point can not be run here; name a command")
    env = {item["name"]: item.get("value", "") for item in container.get("env", [])}
    return Container(
        container["image"],
        tuple(command),
        tuple(args),
        env,
        _accelerators(task, container),
        container.get("resources", {}),
    )


def _accelerators(task: str, container: dict) -> int:
    accelerator = container.get("resources", {}).get("accelerator", {})
    count = str(accelerator.get("resourceCount") or accelerator.get("count") or 0)
    if not count.isdigit():
        raise GraphError(f"task {task}: the accelerator count {count} is no number, which this engine wants")
    return int(count)


def _seconds(duration: str) -> float:
    return float(str(duration).removesuffix("s"))


def _first(item: dict) -> str:
    return next(iter(item), "nothing")
