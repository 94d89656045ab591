"""Reads PipelineSpec IR (KFP's compiled pipelines) into the DAG of dag.py.

It supports container components, importers, constants, parameters, artifacts, resources, retry policies and the
Kubernetes platform document. Of that document the local engine uses only the steps' timeouts; placement and the
lifetime of a run's record do not matter here. Unsupported features are refused by name, never ignored.

The IR is nested: a condition, a loop, the block of an exit handler and a pipeline in a pipeline are tasks that contain
tasks. They are flattened to one level. A task gets the conditions around it and those of its dependencies. A loop's
tasks are repeated for each item, so the items must be known before the run. Tasks in a loop or in a pipeline in a
pipeline have its name, and the item's number, as a prefix: `for-loop-2-0-evaluate`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import replace
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Any

import yaml

from stereo_core.orchestration.conditions import comparisons
from stereo_core.orchestration.dag import (
    Argument,
    Collected,
    Comparison,
    Constant,
    GraphError,
    Output,
    Pipeline,
    Retry,
    Source,
    Task,
    malformed,
    outputs_in,
)
from stereo_core.orchestration.definitions import component_of, definitions
from stereo_core.orchestration.sources import Node, Scope, artifacts_of, inputs_of, outputs_of, parameters_of, placed
from stereo_core.spec.text import bounded
from stereo_core.values import with_integers


def load_pipeline(path: str | Path) -> Pipeline:
    """Read a compiled pipeline (or component).

    Raises:
        GraphError: no such file, not a PipelineSpec, or a feature that is not supported here.
    """
    path = Path(path)
    try:
        return read_pipeline(path.read_text(encoding="utf-8"), path)
    except OSError as error:
        hint = "" if path.suffix else "; `stereo-pipelines list` shows the compiled pipelines"
        raise GraphError(f"{path}: {error.strerror}{hint}") from None
    except UnicodeDecodeError as error:
        raise GraphError(f"{path}: not valid YAML: {error}") from None


def read_pipeline(text: str, path: Path) -> Pipeline:
    """Like load_pipeline, from the file's text; `path` names it in errors."""
    try:  # KFP's compiler writes YAML 1.1; files written by users are read by spec/text.py
        documents = [with_integers(bounded(document)) for document in yaml.safe_load_all(text) if document]
    except (yaml.YAMLError, ValueError, TypeError, RecursionError) as error:
        raise GraphError(f"{path}: not valid YAML: {error}") from None
    if not documents or not isinstance(documents[0], dict) or "pipelineInfo" not in documents[0]:
        raise GraphError(
            f"{path}: not a compiled pipeline (PipelineSpec IR); write one with `stereo-pipelines compile`"
        )
    platform = documents[1] if len(documents) > 1 else {}
    try:
        return _pipeline(documents[0], platform, {}, frozenset())
    except GraphError as error:
        raise GraphError(f"{path}: {error}") from None


def unrolled(pipeline: Pipeline, arguments: dict[str, object]) -> Pipeline:
    """The pipeline with its loops unrolled over these arguments; `load_pipeline` knows only the defaults.

    The parameters that loops iterate over become constants.

    Raises:
        GraphError: an item lacks a value that the loop uses.
    """
    return _pipeline(pipeline.spec, pipeline.platform, arguments, pipeline.loops) if pipeline.loops else pipeline


@malformed()
def _pipeline(
    spec: dict[str, Any], platform: dict[str, Any], arguments: dict[str, object], fixed: frozenset[str]
) -> Pipeline:
    root, info = spec["root"], spec["pipelineInfo"]
    if not isinstance(info["name"], str):
        raise GraphError("pipelineInfo.name is not a text; compile the pipeline again")
    parameters, artifacts = definitions(root.get("inputDefinitions", {}))
    required = [port.name for port in artifacts.values() if port.required]
    if required:
        raise GraphError(
            f"the pipeline takes artifacts ({', '.join(required)}); let it take their URIs as texts, and make "
            "artifacts of them with kfp's dsl.importer"
        )
    arguments = {p.name: p.default for p in parameters.values()} | arguments
    config = _config(platform)
    reader = _Reader(spec, platform, arguments)
    inputs: dict[str, Source] = {
        name: Constant(arguments[name]) if name in fixed else Argument(name) for name in parameters
    }
    reader.level(root["dag"], Scope(parameters=inputs))
    tasks, loops = reader.tasks, fixed | reader.loops
    return Pipeline(info["name"], info.get("description", ""), parameters, tasks, loops, spec, platform, config)


_RUN = {"activeDeadlineSeconds", "resourceTtlOnCompletion", "resourceTtlOnSuccess", "resourceTtlOnFailure"}


def _config(platform: dict[str, Any]) -> dict[str, Any]:
    """The platform document's settings for the whole run."""
    kubernetes = platform.get("platforms", {}).get("kubernetes", {})
    config: dict[str, Any] = kubernetes.get("pipelineConfig", {})
    for where, part, known in (
        ("platforms.kubernetes", kubernetes, {"deploymentSpec", "pipelineConfig"}),
        ("deploymentSpec", kubernetes.get("deploymentSpec", {}), {"executors"}),
        ("pipelineConfig", config, _RUN),
    ):
        for key in part.keys() - known:
            raise GraphError(
                f"{where} of the pipeline's Kubernetes settings: {key} is not supported by stereo-pipelines; remove it "
                "from the pipeline and compile again"
            )
    return config


class _Reader:
    """Builds the flat `tasks`; `loops` are the pipeline parameters that loops iterate over."""

    def __init__(self, spec: dict[str, Any], platform: dict[str, Any], arguments: dict[str, object]):
        self.spec = spec
        self.placed = platform.get("platforms", {}).get("kubernetes", {}).get("deploymentSpec", {}).get("executors", {})
        self.arguments = arguments
        self.tasks: dict[str, Task] = {}
        self.loops: set[str] = set()

    def level(self, dag: dict[str, Any], scope: Scope) -> dict[str, Node]:
        """All tasks of a level, sorted so that each comes after the tasks that it needs."""
        waits = {name: sorted(set(_waits_for(item))) for name, item in dag["tasks"].items()}
        for name, others in waits.items():
            for other in set(others) - waits.keys():
                raise GraphError(
                    f"task {scope.prefix}{name}: it waits for {other}, but there is no such task; compile the pipeline "
                    "again"
                )
        try:
            order = list(TopologicalSorter(waits).static_order())
        except CycleError as error:
            raise GraphError(
                f"tasks wait for each other in a cycle: {' -> '.join(error.args[1])}; remove one of these dependencies"
            ) from None
        nodes: dict[str, Node] = {}
        for name in order:
            nodes[name] = self.node(name, dag["tasks"][name], scope, nodes)
        return nodes

    def node(self, name: str, item: dict[str, Any], scope: Scope, nodes: dict[str, Node]) -> Node:
        where = f"task {scope.prefix}{name}"
        before = [nodes[other] for other in sorted(set(_waits_for(item)))]
        trigger = item.get("triggerPolicy", {})
        always = trigger.get("strategy", "") == "ALL_UPSTREAM_TASKS_COMPLETED"
        component = self.spec["components"][item["componentRef"]["name"]]
        inner = replace(
            scope,
            parameters=parameters_of(where, item.get("inputs", {}).get("parameters", {}), scope, nodes),
            artifacts=artifacts_of(where, item.get("inputs", {}).get("artifacts", {}), scope, nodes),
        )
        if always:
            inner = replace(inner, behind=frozenset(task for node in before for task in node.tasks))
        elif before:
            after = frozenset().union(*(node.ends for node in before))
            inner = replace(
                inner, after=after, behind=frozenset(), when=_united(scope.when, *(node.when for node in before))
            )
        if trigger.get("condition"):
            inner = replace(inner, when=_united(inner.when, comparisons(where, trigger["condition"], inner.parameters)))
        if "dag" not in component:
            platform = placed(where, self.placed.get(component["executorLabel"], {}), scope.parameters)
            exit = always and any(_EXIT_HANDLER.fullmatch(other) for other in _waits_for(item))
            return self.task(name, item, component, inner, platform, exit)
        if "retryPolicy" in item:
            raise GraphError(f"{where}: a pipeline in a pipeline cannot have retries; set them on its tasks")
        inner = replace(inner, cache=scope.cache and item.get("cachingOptions", _CACHED).get("enableCache", False))
        if "artifactIterator" in item:
            raise GraphError(
                f"{where}: loops over artifacts are not supported; let dsl.ParallelFor iterate over a list of values"
            )
        if "parameterIterator" in item:
            return self.loop(name, item, component, inner)
        if not _BLOCK.fullmatch(name):  # a pipeline in a pipeline has its own names and defaults
            known, _ = definitions(component.get("inputDefinitions", {}))
            defaults = {p.name: Constant(p.default) for p in known.values() if not p.required}
            inner = replace(inner, prefix=f"{scope.prefix}{name}-", parameters=defaults | inner.parameters)
        return self.group(where, component["dag"], inner)

    def group(self, where: str, dag: dict[str, Any], scope: Scope) -> Node:
        known = len(self.tasks)
        nodes = self.level(dag, scope)
        names = tuple(self.tasks)[known:]
        waited = frozenset().union(*(self.tasks[name].after | self.tasks[name].behind for name in names))
        ends = frozenset(names) - waited if names else scope.after
        return Node(names, ends, scope.when, dict(outputs_of(where, dag, nodes)))

    def loop(self, name: str, item: dict[str, Any], component: dict[str, Any], scope: Scope) -> Node:
        """The tasks inside, once per item. With limited parallelism n, iteration i starts when i - n has ended."""
        where = f"task {scope.prefix}{name}"
        iterator, limit = item["parameterIterator"], int(item.get("iteratorPolicy", {}).get("parallelismLimit", 0))
        rounds: list[Node] = []
        for index, value in enumerate(self.items(where, iterator["items"], scope)):
            inner = replace(
                scope,
                prefix=f"{scope.prefix}{name}-{index}-",
                parameters=scope.parameters | {iterator["itemInput"]: Constant(value)},
            )
            if limit and index >= limit:
                inner = replace(inner, behind=inner.behind | frozenset(rounds[index - limit].tasks))
            rounds.append(self.group(where, component["dag"], inner))
        outputs: dict[str, Source] = {}
        for kind in component["dag"].get("outputs", {}).values():
            for key in kind:
                parts = tuple(node.outputs[key] for node in rounds)
                outputs[key] = Collected(parts)
                if any(isinstance(part, Collected) for part in parts):
                    raise GraphError(
                        f"{where}: dsl.Collected of a loop in a loop is not supported; use one loop over all items"
                    )
        tasks = tuple(task for node in rounds for task in node.tasks)
        ends = frozenset().union(*(node.ends for node in rounds)) if tasks else scope.after
        return Node(tasks, ends, scope.when, outputs)

    def items(self, where: str, items: dict[str, Any], scope: Scope) -> list[Any]:
        if "raw" in items:
            raw: list[Any] = json.loads(items["raw"])
            return raw
        source = scope.parameters.get(items["inputParameter"])
        value = None
        if isinstance(source, Constant):
            value = source.value or []
        elif isinstance(source, Argument):
            self.loops.add(source.name)
            value = self.arguments[source.name] or []
        if not isinstance(value, list):
            raise GraphError(
                f"{where}: a loop needs a list that is known before the run: a literal or a pipeline parameter"
            )
        return value

    def task(
        self,
        name: str,
        item: dict[str, Any],
        component: dict[str, Any],
        scope: Scope,
        platform: dict[str, Any],
        exit: bool,
    ) -> Node:
        full = scope.prefix + name
        if full in self.tasks:
            raise GraphError(f"task {full}: two tasks would have this name; rename one of them or its pipeline")
        step = component_of(full, component, self.spec)
        parameters, artifacts = inputs_of(full, step, item.get("inputs", {}), scope)
        taken = {output.task for source in (*parameters.values(), *artifacts.values()) for output in outputs_in(source)}
        tested = {o.task for test in scope.when for side in (test.left, test.right) for o in outputs_in(side)}
        policy = item.get("retryPolicy", {})
        title = item.get("taskInfo", {}).get("name") or name
        self.tasks[full] = Task(
            name=full,
            title=full if title == name else title,
            reference=item["componentRef"]["name"].removeprefix("comp-"),
            component=step,
            parameters=parameters,
            artifacts=artifacts,
            after=(scope.after | taken | tested) - scope.behind,
            behind=scope.behind,
            when=scope.when,
            exit=exit,
            cache=scope.cache and item.get("cachingOptions", {}).get("enableCache", False),
            cache_key=item.get("cachingOptions", {}).get("cacheKey", ""),
            retry=Retry(
                int(policy.get("maxRetryCount", 0)),
                _seconds(policy.get("backoffDuration", "0s")),
                float(policy.get("backoffFactor", 2.0)),
                min(
                    _seconds(policy.get("backoffMaxDuration", "3600s")), Retry.longest
                ),  # may be meant for all attempts
            ),
            timeout=float(platform["activeDeadlineSeconds"]) if "activeDeadlineSeconds" in platform else None,
            platform=platform,
        )
        keys = (*step.output_parameters, *step.output_artifacts)
        return Node((full,), frozenset({full}), scope.when, {key: Output(full, key) for key in keys})


# tasks that KFP makes from blocks of the DSL; their inner names are unique in the whole pipeline
_BLOCK = re.compile(r"(condition|condition-branches|exit-handler)-\d+")
_CACHED = {"enableCache": True}  # a block's default caching options
_EXIT_HANDLER = re.compile(r"exit-handler-\d+")


def _waits_for(item: dict[str, Any]) -> Iterator[str]:
    yield from item.get("dependentTasks", ())
    inputs = item.get("inputs", {})
    for source in (*inputs.get("parameters", {}).values(), *inputs.get("artifacts", {}).values()):
        for kind in ("taskOutputParameter", "taskOutputArtifact", "taskFinalStatus"):
            if kind in source:
                yield source[kind]["producerTask"]


def _united(*parts: Iterable[Comparison]) -> tuple[Comparison, ...]:
    """All comparisons without duplicates, the outermost first."""
    found: list[Comparison] = []
    for comparison in (comparison for part in parts for comparison in part):
        if comparison not in found:
            found.append(comparison)
    return tuple(found)


def _seconds(duration: str) -> float:
    return float(str(duration).removesuffix("s"))
