"""Do the references in Argo manifests resolve? What the resources' schemas can not tell.

Looked at: entrypoint and onExit, templates and templateRefs, what a task waits for, parameters and artifacts that it
gives and that its template wants, references (`{{...}}` and those in expressions `{{=...}}`), volumes, ConfigMaps.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter

TASK_STATES = {"Succeeded", "Failed", "Errored", "Skipped", "Omitted", "Daemoned", "AnySucceeded", "AllFailed"}
GLOBAL = {"workflow.name", "workflow.uid", "workflow.status"}
ON_EXIT = {"workflow.failures"}  # known only there


def problems(documents: list[dict]) -> list[str]:
    """What is wrong, a line each; empty where every reference resolves."""
    found = []
    library = {
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
        metadata, spec = document["metadata"], document["spec"]
        where = f"{document['kind']} {metadata.get('name') or metadata['generateName']}"
        spec = spec.get("workflowSpec", spec)
        found += [f"{where}: {problem}" for problem in _spec_problems(spec, library, maps, given)]
    return found


def _arguments(spec: dict) -> list[str]:
    return [item["name"] for item in spec.get("arguments", {}).get("parameters", [])]


def _spec_problems(spec: dict, library: dict, maps: dict, given: set[str]) -> Iterator[str]:
    """`given` are the parameters of the Workflow that calls the templates of a WorkflowTemplate."""
    own = {template["name"]: template for template in spec["templates"]}
    yield from _twice("template", [template["name"] for template in spec["templates"]])
    for key in ("entrypoint", "onExit"):
        if key in spec and spec[key] not in own:
            yield f"{key} {spec[key]} is no template"
    repository = spec.get("artifactRepositoryRef")
    if repository and repository["key"] not in maps.get(repository["configMap"], {}):
        yield f"artifactRepositoryRef: there is no {repository['key']} in a ConfigMap {repository['configMap']}"
    yield from _twice("parameter", _arguments(spec))
    scope = GLOBAL | {f"workflow.parameters.{name}" for name in given.union(_arguments(spec))}
    yield from _unresolved(spec.get("imagePullSecrets"), scope)
    for template in own.values():
        where = f"template {template['name']}"
        more = ON_EXIT if template["name"] == spec.get("onExit") else set()
        yield from (f"{where}: {problem}" for problem in _template_problems(template, own, library, scope | more))


def _template_problems(template: dict, own: dict, library: dict, scope: set[str]) -> Iterator[str]:
    inputs = template.get("inputs", {})
    for kind in ("parameters", "artifacts"):
        names = [item["name"] for item in inputs.get(kind, [])]
        yield from _twice(f"input of {kind}", names)
        scope = scope | {f"inputs.{kind}.{name}" for name in names}
    mounted = {mount["name"] for mount in template.get("container", {}).get("volumeMounts", [])}
    for name in sorted(mounted - {volume["name"] for volume in template.get("volumes", [])}):
        yield f"there is no volume {name} to mount"
    if "dag" in template:
        yield from _dag_problems(template["dag"]["tasks"], own, library, scope)
    elif "container" in template:
        yield from _unresolved({k: v for k, v in template.items() if k != "retryStrategy"}, scope)
    else:
        yield "it has neither a container nor a dag"


def _dag_problems(tasks: list[dict], own: dict, library: dict, scope: set[str]) -> Iterator[str]:
    yield from _twice("task", [task["name"] for task in tasks])
    by_name = {task["name"]: task for task in tasks}
    waits = {}
    for task in tasks:
        waits[task["name"]] = set()
        for name, state in re.findall(r"([\w-]+)(?:\.(\w+))?", task.get("depends", "")):
            if name not in by_name:
                yield f"task {task['name']}: depends on {name}, which is no task"
            elif state and state not in TASK_STATES:
                yield f"task {task['name']}: depends on {name}.{state}, which is no state"
            else:
                waits[task["name"]].add(name)
    try:
        order = list(TopologicalSorter(waits).static_order())
    except CycleError as error:
        yield f"tasks wait for each other: {' -> '.join(error.args[1])}"
        return
    before: dict[str, set[str]] = {}
    for name in order:
        before[name] = waits[name].union(*(before[other] for other in waits[name]))
    for task in tasks:
        known = scope | {item for name in before[task["name"]] for item in _made(by_name[name], own, library)}
        where = f"task {task['name']}"
        yield from (f"{where}: {problem}" for problem in _task_problems(task, own, library, known))


def _called(task: dict, own: dict, library: dict) -> dict | None:
    if "templateRef" in task:
        return library.get((task["templateRef"]["name"], task["templateRef"]["template"]))
    return own.get(task.get("template"))


def _made(task: dict, own: dict, library: dict) -> Iterator[str]:
    yield f"tasks.{task['name']}.status"
    outputs = (_called(task, own, library) or {}).get("outputs", {})
    for kind in ("parameters", "artifacts"):
        yield from (f"tasks.{task['name']}.outputs.{kind}.{item['name']}" for item in outputs.get(kind, []))


def _task_problems(task: dict, own: dict, library: dict, scope: set[str]) -> Iterator[str]:
    called = _called(task, own, library)
    if called is None:
        yield f"there is no template {task.get('templateRef') or task.get('template')}"
        return
    for kind in ("parameters", "artifacts"):
        given = [item["name"] for item in task.get("arguments", {}).get(kind, [])]
        wanted = {item["name"]: item for item in called.get("inputs", {}).get(kind, [])}
        yield from _twice(f"argument of {kind}", given)
        yield from (f"{kind}: {name} is no input of its template" for name in given if name not in wanted)
        for name, item in wanted.items():
            if name not in given and not {"default", "value", "optional", "s3"} & set(item):
                yield f"{kind}: {name} has no value"
    yield from _unresolved({key: value for key, value in task.items() if key != "depends"}, scope)
    for item in task.get("arguments", {}).get("artifacts", []):
        yield from _unresolved(f"{{{{={item.get('fromExpression', '')}}}}}", scope)
    if re.sub(r"\{\{=.*?\}\}", "", task.get("when", ""), flags=re.DOTALL):
        yield f"its condition is no expression: {task['when']}"


def _unresolved(part: object, scope: set[str]) -> Iterator[str]:
    """References to what is not in scope, and braces without an end, in every text of a part."""
    for text in _texts(part):
        for reference in _references(text):
            if reference not in scope:
                yield f"{{{{{reference}}}}} refers to nothing"
        if "{{" in re.sub(r"\{\{.*?\}\}", "", text, flags=re.DOTALL):
            yield f"a reference has no end in {text[:60]!r}"


def _references(text: str) -> Iterator[str]:
    """Dotted names; in an expression `a['b']` is `a.b`."""
    for tag in re.findall(r"\{\{(.*?)\}\}", text, flags=re.DOTALL):
        if not tag.startswith("="):
            yield tag.strip()
            continue
        dotted = re.sub(r"(?<=\w)\['([^']*)'\]", r".\1", tag)
        plain = re.sub(r"\"(?:[^\"\\]|\\.)*\"|'[^']*'", "''", dotted)
        yield from re.findall(r"\b(?:inputs|workflow|tasks)\.[\w.-]+", plain)


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
