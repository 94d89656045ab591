"""Checks Argo manifests beyond their schema: do all references resolve, and would the controller accept them?

It checks entrypoint and onExit, templates and templateRefs, dependencies of tasks, their arguments against the inputs
of their templates, references (`{{...}}`) and expressions (`{{=...}}`, and those of retries), outputs, volumes and
mounts, ConfigMaps, and the controller's own rules (rules.py).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from typing import Any

from stereo_core.orchestration.argo.expression import Expression
from stereo_core.orchestration.argo.rules import argument_rules, spec_rules, template_rules

TASK_STATES = {"Succeeded", "Failed", "Errored", "Skipped", "Omitted", "Daemoned", "AnySucceeded", "AllFailed"}
GLOBAL = {"workflow.name", "workflow.namespace", "workflow.uid", "workflow.status"}
OF_A_POD = {"pod.name"}
ON_EXIT = {"workflow.failures"}  # defined only in onExit
RETRY = {f"lastRetry.{name}" for name in ("exitCode", "status", "duration", "message")}
FUNCTIONS = {
    "toJson",
    "jsonpath",
    "asInt",
    "asFloat",
    "sprig.sha256sum",
    "sprig.regexReplaceAll",
    "sprig.replace",
}  # functions that our manifests use


Library = dict[tuple[str, str], dict[str, Any]]
"""Name of a WorkflowTemplate and of a template in it -> the template."""


def problems(documents: list[dict[str, Any]]) -> list[str]:
    """The problems, one line each; empty if there are none."""
    named = [(d["kind"], d["metadata"]["name"]) for d in documents if "name" in d["metadata"]]
    found = list(_twice("document", [f"{kind} {name}" for kind, name in named]))
    library: Library = {
        (document["metadata"]["name"], template["name"]): template
        for document in documents
        if document["kind"] == "WorkflowTemplate"
        for template in document["spec"]["templates"]
    }
    maps = {document["metadata"]["name"]: document["data"] for document in documents if document["kind"] == "ConfigMap"}
    workflows = [document["spec"] for document in documents if document["kind"] in ("Workflow", "CronWorkflow")]
    given = {name for spec in workflows for name in _arguments(spec.get("workflowSpec", spec))}
    for document in documents:
        if document["kind"] == "ConfigMap":
            continue
        kind, metadata, spec = document["kind"], document["metadata"], document["spec"]
        where = f"{kind} {metadata.get('name') or metadata['generateName']}"
        spec = spec.get("workflowSpec", spec)
        found += [f"{where}: {problem}" for problem in _kind_problems(kind, spec)]
        found += [f"{where}: {problem}" for problem in _spec_problems(spec, library, maps, given)]
    return found


def _kind_problems(kind: str, spec: dict[str, Any]) -> Iterator[str]:
    """The rules that depend on the kind of resource."""
    if kind != "WorkflowTemplate" and "entrypoint" not in spec:
        yield "it has no entrypoint"
    if kind == "CronWorkflow":
        for item in spec.get("arguments", {}).get("parameters", []):
            if "value" not in item:
                yield f"parameter {item['name']} has no value, and a CronWorkflow cannot ask for one"


def _arguments(spec: dict[str, Any]) -> list[str]:
    return [item["name"] for item in spec.get("arguments", {}).get("parameters", [])]


def _spec_problems(spec: dict[str, Any], library: Library, maps: dict[str, Any], given: set[str]) -> Iterator[str]:
    """`given` are the parameters of the Workflow that calls a WorkflowTemplate's templates."""
    own = {template["name"]: template for template in spec["templates"]}
    yield from _twice("template", [template["name"] for template in spec["templates"]])
    for key in ("entrypoint", "onExit"):
        if key in spec and spec[key] not in own:
            yield f"{key} {spec[key]}: there is no template of that name"
    repository = spec.get("artifactRepositoryRef")
    if repository and repository["key"] not in maps.get(repository["configMap"], {}):
        yield f"artifactRepositoryRef: there is no key {repository['key']} in a ConfigMap {repository['configMap']}"
    yield from spec_rules(spec)
    yield from _twice("parameter", _arguments(spec))
    scope = GLOBAL | {f"workflow.parameters.{name}" for name in given.union(_arguments(spec))}
    yield from _unresolved(spec.get("imagePullSecrets"), scope)
    for template in own.values():
        where = f"template {template['name']}"
        more = ON_EXIT if template["name"] == spec.get("onExit") else set()
        yield from (f"{where}: {problem}" for problem in _template_problems(template, own, library, scope | more))


def _template_problems(
    template: dict[str, Any], own: dict[str, Any], library: Library, scope: set[str]
) -> Iterator[str]:
    inputs = template.get("inputs", {})
    for kind in ("parameters", "artifacts"):
        names = [item["name"] for item in inputs.get(kind, [])]
        yield from _twice(f"input of {kind}", names)
        scope = scope | {f"inputs.{kind}.{name}" for name in names}
    yield from template_rules(template)
    if "memoize" in template:
        yield from _unresolved(template["memoize"], scope)
    if "dag" in template:
        yield from _dag_problems(template, own, library, scope)
    elif "container" in template:
        yield from _container_problems(template, scope | OF_A_POD)
    else:
        yield "it has neither a container nor a dag"


def _container_problems(template: dict[str, Any], scope: set[str]) -> Iterator[str]:
    mounts, outputs = template["container"].get("volumeMounts", []), template.get("outputs", {})
    for name in sorted({m["name"] for m in mounts} - {volume["name"] for volume in template.get("volumes", [])}):
        yield f"there is no volume {name} to mount"
    paths = [mount["mountPath"] for mount in mounts]
    yield from _twice("mount at", paths)
    for item in outputs.get("parameters", []):
        if "valueFrom" not in item:
            yield f"output parameter {item['name']} has no source"
    for item in outputs.get("artifacts", []):
        if not any(item["path"].startswith(f"{path}/") for path in paths):
            yield f"output artifact {item['name']}: {item['path']} is not in a mounted volume"
    yield from _unresolved(template, scope)
    if again := template.get("retryStrategy", {}).get("expression"):
        yield from (f"retryStrategy: {problem}" for problem in _unresolved(f"{{{{={again}}}}}", RETRY))


def _dag_problems(template: dict[str, Any], own: dict[str, Any], library: Library, scope: set[str]) -> Iterator[str]:
    tasks = template["dag"]["tasks"]
    yield from _twice("task", [task["name"] for task in tasks])
    by_name = {task["name"]: task for task in tasks}
    waits: dict[str, set[str]] = {}
    for task in tasks:
        waits[task["name"]] = set()
        yield from (f"task {task['name']}: {problem}" for problem in _depends_problems(task.get("depends", "")))
        for name, state in re.findall(r"([\w-]+)(?:\.(\w+))?", task.get("depends", "")):
            if name not in by_name:
                yield f"task {task['name']}: depends on {name}, but there is no such task"
            elif state and state not in TASK_STATES:
                yield f"task {task['name']}: depends on {name}.{state}, but there is no such state"
            else:
                waits[task["name"]].add(name)
    try:
        order = list(TopologicalSorter(waits).static_order())
    except CycleError as error:
        yield f"tasks wait for each other in a cycle: {' -> '.join(error.args[1])}"
        return
    before: dict[str, set[str]] = {}
    for name in order:
        before[name] = waits[name].union(*(before[other] for other in waits[name]))
    for task in tasks:
        known = scope | {item for name in before[task["name"]] for item in _made(by_name[name], own, library)}
        where = f"task {task['name']}"
        yield from (f"{where}: {problem}" for problem in _task_problems(task, own, library, known))
    made = scope.union(*(_made(task, own, library) for task in tasks))
    for kind, items in template.get("outputs", {}).items():
        for item in items:
            yield from (f"output of {kind} {item['name']}: {problem}" for problem in _output_problems(item, made))


def _output_problems(item: dict[str, Any], scope: set[str]) -> Iterator[str]:
    """An output of a DAG, which must come from one of its tasks."""
    source = item.get("valueFrom", item)
    expression = source.get("expression") or source.get("fromExpression")
    text = f"{{{{={expression}}}}}" if expression else source.get("parameter") or source.get("from")
    if not text:
        yield "it has no source"
    yield from _unresolved(text, scope)


def _depends_problems(depends: str) -> Iterator[str]:
    """The syntax of `depends`, which must look like `a && (b.Failed || !c)`."""
    shape = re.sub(r"[\w-]+(?:\.\w+)?", "x", depends)
    try:
        logical = not depends or (not Expression(shape).functions and not set(shape) - set("x&|!() "))
    except SyntaxError:
        logical = False
    if not logical:
        yield f"its depends has a syntax error: {depends}"


def _called(task: dict[str, Any], own: dict[str, Any], library: Library) -> dict[str, Any] | None:
    if "templateRef" in task:
        return library.get((task["templateRef"]["name"], task["templateRef"]["template"]))
    return own.get(task.get("template", ""))


def _made(task: dict[str, Any], own: dict[str, Any], library: Library) -> Iterator[str]:
    yield f"tasks.{task['name']}.status"
    outputs = (_called(task, own, library) or {}).get("outputs", {})
    for kind in ("parameters", "artifacts"):
        yield from (f"tasks.{task['name']}.outputs.{kind}.{item['name']}" for item in outputs.get(kind, []))


def _task_problems(task: dict[str, Any], own: dict[str, Any], library: Library, scope: set[str]) -> Iterator[str]:
    called = _called(task, own, library)
    if called is None:
        yield f"there is no template {task.get('templateRef') or task.get('template')}"
        return
    for kind in ("parameters", "artifacts"):
        given = [item["name"] for item in task.get("arguments", {}).get(kind, [])]
        wanted = {item["name"]: item for item in called.get("inputs", {}).get(kind, [])}
        yield from _twice(f"argument of {kind}", given)
        yield from (f"{kind}: its template has no input {name}" for name in given if name not in wanted)
        for name, item in wanted.items():
            if name not in given and not {"default", "value", "optional", "s3"} & set(item):
                yield f"{kind}: {name} has no value"
    yield from _unresolved({key: value for key, value in task.items() if key != "depends"}, scope)
    arguments = task.get("arguments", {})
    for item in arguments.get("parameters", []):
        if "value" not in item:
            yield f"parameters: {item['name']} gets no value"
        yield from _of_kind(item, "artifacts")
    for item in arguments.get("artifacts", []):
        if not {"from", "fromExpression", "s3"} & set(item):
            yield f"artifacts: {item['name']} has no source"
        yield from _of_kind({"name": item["name"], "from": item.get("from", "")}, "parameters")
    yield from argument_rules(arguments, called)
    if re.sub(r"\{\{=.*?\}\}", "", task.get("when", ""), flags=re.DOTALL):
        yield f"its condition is not an expression: {task['when']}"


def _of_kind(item: dict[str, Any], other: str) -> Iterator[str]:
    """A parameter that refers to an artifact, or an artifact that refers to a parameter."""
    for text in _texts(item):
        for reference in _read(text)[0]:
            if f".{other}." in reference:
                yield f"{item['name']} cannot take {reference}"


def _unresolved(part: object, scope: set[str]) -> Iterator[str]:
    """References to names that are not in scope, and syntax errors, in every text of a part."""
    for text in _texts(part):
        references, wrong = _read(text)
        yield from (f"{{{{{reference}}}}} refers to nothing" for reference in references if reference not in scope)
        yield from wrong


def _read(text: str) -> tuple[list[str], list[str]]:
    """The dotted names that a text refers to (in an expression `a['b']` is `a.b`), and its syntax errors."""
    references, wrong = [], []
    for tag in re.findall(r"\{\{(.*?)\}\}", text, flags=re.DOTALL):
        if not tag.startswith("="):
            references.append(tag.strip())
            continue
        try:
            expression = Expression(tag[1:])
        except SyntaxError as error:
            wrong.append(f"the expression {tag[1:61]!r} has a syntax error: {error}")
            continue
        references += sorted(expression.names)
        wrong += [f"there is no function {name} in {tag[1:61]!r}" for name in sorted(expression.functions - FUNCTIONS)]
    if "{{" in re.sub(r"\{\{.*?\}\}", "", text, flags=re.DOTALL):
        wrong.append(f"a reference has no closing braces in {text[:60]!r}")
    return references, wrong


def _texts(part: object) -> Iterator[str]:
    if isinstance(part, str):
        yield part
    elif isinstance(part, dict):
        for value in part.values():
            yield from _texts(value)
    elif isinstance(part, list):
        for value in part:
            yield from _texts(value)


def _twice(what: str, names: list[str]) -> Iterator[str]:
    yield from (f"two of {what} {name}" for name in sorted(set(names)) if names.count(name) > 1)
