"""PipelineSpec IR (what KFP compiles a pipeline to) -> the DAG of dag.py.

Read: container components, importers, constants, parameters, artifacts, resources, retry policies, and the Kubernetes
platform document, of which this machine keeps the steps' timeouts; placement, and when the run's record may go, mean
nothing here. What can not be expressed is refused by its name rather than left out.

The IR nests: a condition, a loop, the block of an exit handler and a pipeline in a pipeline are tasks with tasks
inside. All of them become one flat level. A task takes over the conditions around it and those of what it depends on;
a loop's tasks stand there once for each item, so its items must be known before the run. Tasks of a loop and of a
pipeline in a pipeline have its name, and the item's number, before theirs: `for-loop-2-0-evaluate`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import yaml

from stereo_core.orchestration.dag import (
    PLACEHOLDER,
    READERS,
    Argument,
    Collected,
    Comparison,
    Component,
    Constant,
    Container,
    Filled,
    FinalStatus,
    GraphError,
    Importer,
    OneOf,
    Output,
    Parameter,
    Pipeline,
    Port,
    Retry,
    Source,
    Task,
    outputs_in,
    typed,
)
from stereo_core.values import with_integers


def load_pipeline(path: str | Path) -> Pipeline:
    """Read a compiled pipeline (or component).

    Raises:
        GraphError: no such file, no PipelineSpec, or something in it that can not be run here.
    """
    path = Path(path)
    try:
        return read_pipeline(path.read_text(encoding="utf-8"), path)
    except OSError as error:
        hint = "" if path.suffix else "; `stereo-pipelines list` shows where the compiled pipelines lie"
        raise GraphError(f"{path}: {error.strerror}{hint}") from None
    except UnicodeDecodeError as error:
        raise GraphError(f"{path}: no YAML: {error}") from None


def read_pipeline(text: str, path: Path) -> Pipeline:
    """The same of its text; `path` names it in errors."""
    try:
        documents = [d for d in yaml.safe_load_all(text) if d]
    except yaml.YAMLError as error:
        raise GraphError(f"{path}: no YAML: {error}") from None
    if not documents or not isinstance(documents[0], dict) or "pipelineInfo" not in documents[0]:
        raise GraphError(f"{path}: no compiled pipeline (PipelineSpec IR); `stereo-pipelines compile` writes them")
    platform = documents[1] if len(documents) > 1 else {}
    try:
        return _pipeline(documents[0], platform, {}, frozenset())
    except GraphError as error:
        raise GraphError(f"{path}: {error}") from None
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise GraphError(f"{path}: malformed PipelineSpec: {type(error).__name__}: {error}") from None


def unrolled(pipeline: Pipeline, arguments: dict[str, object]) -> Pipeline:
    """The pipeline with the tasks that loops over these arguments make; `load_pipeline` knows only the defaults.

    The parameters that were looped over are constants in it.

    Raises:
        GraphError: an item lacks what the loop takes of it.
    """
    return _pipeline(pipeline.spec, pipeline.platform, arguments, pipeline.loops) if pipeline.loops else pipeline


def _pipeline(spec: dict, platform: dict, arguments: dict[str, object], fixed: frozenset[str]) -> Pipeline:
    root, info = spec["root"], spec["pipelineInfo"]
    parameters, artifacts = _definitions(root.get("inputDefinitions", {}))
    required = [port.name for port in artifacts.values() if port.required]
    if required:
        raise GraphError(f"the pipeline takes artifacts ({', '.join(required)}); import them by URI (dsl.importer)")
    arguments = {p.name: p.default for p in parameters.values()} | arguments
    config = _config(platform)
    reader = _Reader(spec, platform, arguments)
    inputs = {name: Constant(arguments[name]) if name in fixed else Argument(name) for name in parameters}
    reader.level(root["dag"], _Scope(parameters=inputs))
    tasks, loops = reader.tasks, fixed | reader.loops
    return Pipeline(info["name"], info.get("description", ""), parameters, tasks, loops, spec, platform, config)


_RUN = {"activeDeadlineSeconds", "resourceTtlOnCompletion", "resourceTtlOnSuccess", "resourceTtlOnFailure"}


def _config(platform: dict) -> dict:
    """What the platform document says about the whole run."""
    said = platform.get("platforms", {}).get("kubernetes", {})
    config = said.get("pipelineConfig", {})
    for where, part, known in (
        ("platforms.kubernetes", said, {"deploymentSpec", "pipelineConfig"}),
        ("deploymentSpec", said.get("deploymentSpec", {}), {"executors"}),
        ("pipelineConfig", config, _RUN),
    ):
        for key in part.keys() - known:
            raise GraphError(f"{where} of the platform document: {key} is not supported by this engine")
    return config


@dataclass(frozen=True)
class _Scope:
    """A level of the pipeline: what its inputs stand for, and what its first tasks wait for (see `Task`)."""

    prefix: str = ""
    parameters: dict[str, Source] = field(default_factory=dict)
    artifacts: dict[str, Source] = field(default_factory=dict)
    after: frozenset[str] = frozenset()
    behind: frozenset[str] = frozenset()
    when: tuple[Comparison, ...] = ()
    cache: bool = True


@dataclass(frozen=True)
class _Node:
    """A task or a group of tasks, as others at its level see it."""

    tasks: tuple[str, ...]
    ends: frozenset[str]  # of `tasks`, those that no other of them waits for
    when: tuple[Comparison, ...]
    outputs: dict[str, Source]


class _Reader:
    """Makes the flat `tasks`; `loops` are the pipeline parameters whose items are among them."""

    def __init__(self, spec: dict, platform: dict, arguments: dict[str, object]):
        self.spec = spec
        self.placed = platform.get("platforms", {}).get("kubernetes", {}).get("deploymentSpec", {}).get("executors", {})
        self.arguments = arguments
        self.tasks: dict[str, Task] = {}
        self.loops: set[str] = set()

    def level(self, dag: dict, scope: _Scope) -> dict[str, _Node]:
        """All tasks of a level, each after all that it needs."""
        waits = {name: sorted(set(_waits_for(item))) for name, item in dag["tasks"].items()}
        for name, others in waits.items():
            for other in set(others) - waits.keys():
                raise GraphError(f"task {scope.prefix}{name}: it waits for {other}, which is no task")
        try:
            order = list(TopologicalSorter(waits).static_order())
        except CycleError as error:
            raise GraphError(f"tasks wait for each other: {' -> '.join(error.args[1])}") from None
        nodes: dict[str, _Node] = {}
        for name in order:
            nodes[name] = self.node(name, dag["tasks"][name], scope, nodes)
        return nodes

    def node(self, name: str, item: dict, scope: _Scope, nodes: dict[str, _Node]) -> _Node:
        where = f"task {scope.prefix}{name}"
        before = [nodes[other] for other in sorted(set(_waits_for(item)))]
        trigger = item.get("triggerPolicy", {})
        always = trigger.get("strategy", "") == "ALL_UPSTREAM_TASKS_COMPLETED"
        component = self.spec["components"][item["componentRef"]["name"]]
        inner = replace(
            scope,
            parameters=_parameters(where, item.get("inputs", {}).get("parameters", {}), scope, nodes),
            artifacts=_artifacts(where, item.get("inputs", {}).get("artifacts", {}), scope, nodes),
        )
        if always:
            inner = replace(inner, behind=frozenset(task for node in before for task in node.tasks))
        elif before:
            after = frozenset().union(*(node.ends for node in before))
            inner = replace(
                inner, after=after, behind=frozenset(), when=_united(scope.when, *(node.when for node in before))
            )
        if trigger.get("condition"):
            inner = replace(inner, when=_united(inner.when, _condition(where, trigger["condition"], inner.parameters)))
        if "dag" not in component:
            platform = _placed(where, self.placed.get(component["executorLabel"], {}), scope.parameters)
            exit = always and any(_EXIT_HANDLER.fullmatch(other) for other in _waits_for(item))
            return self.task(name, item, component, inner, platform, exit)
        if "retryPolicy" in item:
            raise GraphError(f"{where}: retries of a pipeline in a pipeline are not supported; give them to its tasks")
        inner = replace(inner, cache=scope.cache and item.get("cachingOptions", _CACHED).get("enableCache", False))
        if "artifactIterator" in item:
            raise GraphError(f"{where}: loops over artifacts are not supported")
        if "parameterIterator" in item:
            return self.loop(name, item, component, inner)
        if not _BLOCK.fullmatch(name):  # a pipeline in a pipeline has names and defaults of its own
            known, _ = _definitions(component.get("inputDefinitions", {}))
            defaults = {p.name: Constant(p.default) for p in known.values() if not p.required}
            inner = replace(inner, prefix=f"{scope.prefix}{name}-", parameters=defaults | inner.parameters)
        return self.group(where, component["dag"], inner)

    def group(self, where: str, dag: dict, scope: _Scope) -> _Node:
        known = len(self.tasks)
        nodes = self.level(dag, scope)
        names = tuple(self.tasks)[known:]
        waited = frozenset().union(*(self.tasks[name].after | self.tasks[name].behind for name in names))
        ends = frozenset(names) - waited if names else scope.after
        return _Node(names, ends, scope.when, dict(_outputs(where, dag, nodes)))

    def loop(self, name: str, item: dict, component: dict, scope: _Scope) -> _Node:
        """The tasks inside once for each item; of a limited loop, round n begins when round n - limit has ended."""
        where = f"task {scope.prefix}{name}"
        iterator, limit = item["parameterIterator"], int(item.get("iteratorPolicy", {}).get("parallelismLimit", 0))
        rounds: list[_Node] = []
        for index, value in enumerate(self.items(where, iterator["items"], scope)):
            inner = replace(
                scope,
                prefix=f"{scope.prefix}{name}-{index}-",
                parameters=scope.parameters | {iterator["itemInput"]: Constant(value)},
            )
            if limit and index >= limit:
                inner = replace(inner, behind=inner.behind | frozenset(rounds[index - limit].tasks))
            rounds.append(self.group(where, component["dag"], inner))
        outputs = {}
        for kind in component["dag"].get("outputs", {}).values():
            for key in kind:
                outputs[key] = Collected(tuple(node.outputs[key] for node in rounds))
                if any(isinstance(part, Collected) for part in outputs[key].rounds):
                    raise GraphError(f"{where}: dsl.Collected of a loop in a loop is not supported")
        tasks = tuple(task for node in rounds for task in node.tasks)
        ends = frozenset().union(*(node.ends for node in rounds)) if tasks else scope.after
        return _Node(tasks, ends, scope.when, outputs)

    def items(self, where: str, items: dict, scope: _Scope) -> list:
        if "raw" in items:
            return json.loads(items["raw"])
        source = scope.parameters.get(items["inputParameter"])
        value = None
        if isinstance(source, Constant):
            value = source.value or []
        elif isinstance(source, Argument):
            self.loops.add(source.name)
            value = self.arguments[source.name] or []
        if not isinstance(value, list):
            raise GraphError(f"{where}: a loop wants a list that is known before the run: text or a pipeline parameter")
        return value

    def task(self, name: str, item: dict, component: dict, scope: _Scope, platform: dict, exit: bool) -> _Node:
        full = scope.prefix + name
        if full in self.tasks:
            raise GraphError(f"task {full}: two tasks would have this name; rename one of them or its pipeline")
        step = _component(full, component, self.spec)
        parameters, artifacts = _inputs(full, step, item.get("inputs", {}), scope)
        taken = {output.task for source in (*parameters.values(), *artifacts.values()) for output in outputs_in(source)}
        asked = {o.task for test in scope.when for side in (test.left, test.right) for o in outputs_in(side)}
        policy = item.get("retryPolicy", {})
        title = item.get("taskInfo", {}).get("name") or name
        self.tasks[full] = Task(
            name=full,
            title=full if title == name else title,
            reference=item["componentRef"]["name"].removeprefix("comp-"),
            component=step,
            parameters=parameters,
            artifacts=artifacts,
            after=(scope.after | taken | asked) - scope.behind,
            behind=scope.behind,
            when=scope.when,
            exit=exit,
            cache=scope.cache and item.get("cachingOptions", {}).get("enableCache", False),
            cache_key=item.get("cachingOptions", {}).get("cacheKey", ""),
            retry=Retry(
                int(policy.get("maxRetryCount", 0)),
                _seconds(policy.get("backoffDuration", "0s")),
                float(policy.get("backoffFactor", 2.0)),
                min(_seconds(policy.get("backoffMaxDuration", "3600s")), Retry.longest),  # may hold all attempts
            ),
            timeout=float(platform["activeDeadlineSeconds"]) if "activeDeadlineSeconds" in platform else None,
            platform=platform,
        )
        keys = (*step.output_parameters, *step.output_artifacts)
        return _Node((full,), frozenset({full}), scope.when, {key: Output(full, key) for key in keys})


# tasks that KFP makes of blocks of the DSL; the names inside are unique in the whole pipeline
_BLOCK = re.compile(r"(condition|condition-branches|exit-handler)-\d+")
_CACHED = {"enableCache": True}  # what a block says that says nothing
_EXIT_HANDLER = re.compile(r"exit-handler-\d+")


def _waits_for(item: dict) -> Iterator[str]:
    yield from item.get("dependentTasks", ())
    inputs = item.get("inputs", {})
    for source in (*inputs.get("parameters", {}).values(), *inputs.get("artifacts", {}).values()):
        for kind in ("taskOutputParameter", "taskOutputArtifact", "taskFinalStatus"):
            if kind in source:
                yield source[kind]["producerTask"]


def _united(*parts: Iterable[Comparison]) -> tuple[Comparison, ...]:
    """All comparisons once, in their order: those further out come first."""
    found: list[Comparison] = []
    for comparison in (comparison for part in parts for comparison in part):
        if comparison not in found:
            found.append(comparison)
    return tuple(found)


# ---- sources


def _parameters(where: str, items: dict, scope: _Scope, nodes: dict[str, _Node]) -> dict[str, Source]:
    """What a task's parameters are; one that takes an input which the level was not given is left out."""
    found: dict[str, Source] = {}
    for key, item in items.items():
        if "constant" in item.get("runtimeValue", {}):
            continue
        source = _parameter(where, key, item, scope, nodes)
        if source is not None:
            found[key] = _selected(where, key, source, item)
    for key, item in items.items():
        if "constant" in item.get("runtimeValue", {}):
            found[key] = _constant(where, key, with_integers(item["runtimeValue"]["constant"]), found)
    return found


def _parameter(where: str, key: str, item: dict, scope: _Scope, nodes: dict[str, _Node]) -> Source | None:
    if "componentInputParameter" in item:
        return scope.parameters.get(item["componentInputParameter"])
    if "taskOutputParameter" in item:
        output = item["taskOutputParameter"]
        return _output(where, nodes, output["producerTask"], output["outputParameterKey"])
    if "taskFinalStatus" in item:
        group = item["taskFinalStatus"]["producerTask"]
        return FinalStatus(group, nodes[group].tasks)
    raise GraphError(f"{where}: parameter {key} takes {_first(item)}, which is not supported by this engine")


def _selected(where: str, key: str, source: Source, item: dict) -> Source:
    """A part of a loop's item: `parseJson(string_value)["name"]`."""
    if "parameterExpressionSelector" not in item:
        return source
    found = re.fullmatch(r'parseJson\(string_value\)\["(.*)"\]', item["parameterExpressionSelector"])
    if not found or not isinstance(source, Constant):
        raise GraphError(f"{where}: parameter {key} uses a selector (part of a value), which is not supported")
    if not isinstance(source.value, dict) or found[1] not in source.value:
        raise GraphError(f"{where}: parameter {key} takes {found[1]} of an item that has none: {source.value!r}")
    return Constant(source.value[found[1]])


def _constant(where: str, key: str, value: object, inputs: dict[str, Source]) -> Constant | Filled:
    text = json.dumps(value) if not isinstance(value, str) else value
    names = set(PLACEHOLDER.findall(text))
    for other in re.findall(r"\{\{\$.*?\}\}", PLACEHOLDER.sub("", text)):
        raise GraphError(f"{where}: parameter {key}: placeholder {other} is not supported by this engine")
    for name in names - inputs.keys():
        raise GraphError(f"{where}: parameter {key}: there is no input {name} to fill in")
    return Filled(value, {name: inputs[name] for name in sorted(names)}) if names else Constant(value)


def _artifacts(where: str, items: dict, scope: _Scope, nodes: dict[str, _Node]) -> dict[str, Source]:
    found = {}
    for key, item in items.items():
        if "taskOutputArtifact" in item:
            output = item["taskOutputArtifact"]
            found[key] = _output(where, nodes, output["producerTask"], output["outputArtifactKey"])
        elif "componentInputArtifact" not in item:
            raise GraphError(f"{where}: input {key} takes {_first(item)}, which is not supported by this engine")
        elif item["componentInputArtifact"] in scope.artifacts:
            found[key] = scope.artifacts[item["componentInputArtifact"]]
    return found


def _output(where: str, nodes: dict[str, _Node], producer: str, key: str) -> Source:
    if key not in nodes[producer].outputs:
        raise GraphError(f"{where}: there is no output {key} of a task {producer}")
    return nodes[producer].outputs[key]


def _outputs(where: str, dag: dict, nodes: dict[str, _Node]) -> Iterator[tuple[str, Source]]:
    """What a group gives: an output of a task inside, or (dsl.OneOf) of the first of several that has run."""
    for key, item in dag.get("outputs", {}).get("parameters", {}).items():
        one = item.get("valueFromParameter")
        chosen = [one] if one else item["valueFromOneof"]["parameterSelectors"]
        yield key, _one_of(where, nodes, [(s["producerSubtask"], s["outputParameterKey"]) for s in chosen])
    for key, item in dag.get("outputs", {}).get("artifacts", {}).items():
        chosen = item["artifactSelectors"]
        yield key, _one_of(where, nodes, [(s["producerSubtask"], s["outputArtifactKey"]) for s in chosen])


def _one_of(where: str, nodes: dict[str, _Node], outputs: list[tuple[str, str]]) -> Source:
    sources = [_output(where, nodes, producer, key) for producer, key in outputs]
    if len(sources) == 1:
        return sources[0]
    options = [o for source in sources for o in (source.options if isinstance(source, OneOf) else (source,))]
    if not all(isinstance(option, Output) for option in options):
        raise GraphError(f"{where}: dsl.OneOf of what dsl.Collected gives is not supported")
    return OneOf(tuple(options))


def _inputs(name: str, step: Component, items: dict, scope: _Scope) -> tuple[dict[str, Source], dict[str, Source]]:
    """The inputs that a step declares and was given; KFP also lists those that only its constants take."""
    parameters = {}
    for key in items.get("parameters", {}).keys() & step.parameters.keys():
        if key not in scope.parameters:
            raise GraphError(f"task {name}: parameter {key} takes a pipeline parameter that there is not")
        if scope.parameters[key] != Constant(None):  # an input of its pipeline that was not given
            parameters[key] = scope.parameters[key]
    for key in items.get("artifacts", {}).keys() - scope.artifacts.keys():
        if step.artifacts[key].required:
            raise GraphError(f"task {name}: input {key} takes an artifact that the pipeline was not given")
    return {key: parameters[key] for key in step.parameters if key in parameters}, scope.artifacts


def _placed(where: str, platform: object, inputs: dict[str, Source]) -> object:
    """A step's part of the platform document, with sources where it takes parameters (names of secrets)."""
    if isinstance(platform, list):
        return [_placed(where, item, inputs) for item in platform]
    if not isinstance(platform, dict):
        return platform
    if "constant" in platform.get("runtimeValue", {}):
        return Constant(platform["runtimeValue"]["constant"])
    if "componentInputParameter" not in platform:
        return {key: _placed(f"{where}, {key}", item, inputs) for key, item in platform.items()}
    name = platform["componentInputParameter"]
    if name not in inputs:
        raise GraphError(f"{where}: it takes a pipeline parameter {name} that there is not")
    return inputs[name]


# ---- conditions

_REFERENCE = r"inputs\.parameter_values\['[^']+'\]"
_OPERAND = rf"(?:int|double)\((?:{_REFERENCE}|[-+.\w]+)\)|{_REFERENCE}|[-+.\w]+|'.*?'(?=$|\)$| && |\) && )"
_COMPARISON = re.compile(rf"(!\()?({_OPERAND}) (==|!=|<=|>=|<|>) ({_OPERAND})(\))?(?: && |$)", re.DOTALL)


def _condition(where: str, text: str, inputs: dict[str, Source]) -> Iterator[Comparison]:
    """`a == b`, and for dsl.Elif and dsl.Else `!(a == b) && c == d`. KFP does not escape quotes in texts."""
    position = 0
    while position < len(text):
        found = _COMPARISON.match(text, position)
        if not found or bool(found[1]) != bool(found[5]):
            raise GraphError(f"{where}: the condition {text} can not be read")
        left, right = (_operand(where, found[side], inputs) for side in (2, 4))
        said = re.sub(r"inputs\.parameter_values\['(?:pipelinechannel--)?([^']+)'\]", r"\1", found[0])
        yield Comparison(left, found[3], right, bool(found[1]), said.removesuffix(" && "))
        position = found.end()


def _operand(where: str, text: str, inputs: dict[str, Source]) -> Source:
    if text.startswith("'"):
        return Constant(text[1:-1])
    text = re.sub(r"^(?:int|double)\((.*)\)$", r"\1", text)
    name = re.fullmatch(r"inputs\.parameter_values\['([^']+)'\]", text)
    if not name:
        return Constant(json.loads(text))
    if name[1] not in inputs:
        raise GraphError(f"{where}: its condition takes {name[1]}, which is no input of it")
    return inputs[name[1]]


# ---- definitions and executors


def _definitions(section: dict) -> tuple[dict[str, Parameter], dict[str, Port]]:
    parameters = {}
    for name, item in section.get("parameters", {}).items():
        kind = item["parameterType"]
        if kind not in READERS:
            raise GraphError(f"parameter {name}: type {kind} is not supported")
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


def _component(task: str, component: dict, spec: dict) -> Component:
    executor = spec["deploymentSpec"]["executors"][component["executorLabel"]]
    parameters, artifacts = _definitions(component.get("inputDefinitions", {}))
    output_parameters, output_artifacts = _definitions(component.get("outputDefinitions", {}))
    return Component(_executor(task, executor), parameters, artifacts, output_parameters, output_artifacts)


def _executor(task: str, executor: dict) -> Container | Importer:
    if "importer" in executor:
        importer = executor["importer"]
        uri = importer["artifactUri"]
        source = Argument(uri["runtimeParameter"]) if "runtimeParameter" in uri else Constant(uri["constant"])
        metadata = with_integers(importer.get("metadata", {}))
        if "{{$" in json.dumps(metadata):
            raise GraphError(f"task {task}: an importer's metadata from a parameter is not supported; write it as text")
        if importer.get("downloadToWorkspace"):
            raise GraphError(f"task {task}: downloadToWorkspace of an importer is not supported by this engine")
        return Importer(source, metadata)  # reimport is for Kubeflow's own records; here every import is a new one
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
