"""Checks a pipeline's values before the first step runs, and reports all problems together.

It checks every value against its declared type, and every spec of our steps against the verb. It does not check values
that a step will compute, or files, which may exist only on the steps' machines.
"""

from __future__ import annotations

import contextlib
import copy
import json
from collections.abc import Generator, Iterator
from typing import Any

from stereo_core import __version__
from stereo_core.errors import UserError
from stereo_core.orchestration import image_sizes
from stereo_core.orchestration.dag import (
    LAUNCHER,
    LONGEST,
    PLACEHOLDER,
    Argument,
    Comparison,
    Constant,
    Filled,
    GraphError,
    Output,
    Pipeline,
    Source,
    Task,
    as_text,
    filled,
    typed,
)
from stereo_core.orchestration.graph import unrolled
from stereo_core.run.parameters import OF_SOURCES, merged_spec, parameters_of, set_key
from stereo_core.run.remote import kind_of
from stereo_core.spec import requirements
from stereo_core.spec.fields import Section
from stereo_core.spec.loading import checked, read_tree
from stereo_core.storage import local_path
from stereo_core.verbs import VERBS, required, steps

ELSEWHERE = "s3://of/the-run"  # placeholder for a file that the step will find; objects are not looked up here
_COMPILE_AGAIN = "compile the pipeline again with this version"
SHOWN = 3  # number of steps that a message names


class _Later(Exception):
    """A value is known only during the run."""


def check(pipeline: Pipeline, given: dict[str, object]) -> None:
    """Refuse values that a step would refuse.

    Args:
        pipeline: From `load_pipeline`.
        given: Values of its parameters; the others have their defaults or stay unknown.

    Raises:
        GraphError: one line per problem, with the steps, the parameter, the key and the broken rule.
    """
    arguments = pipeline.arguments(given, complete=False)
    pipeline = unrolled(pipeline, arguments)
    found: dict[str, list[str]] = {}
    known: dict[str, image_sizes.Step] = {}
    for task in pipeline.tasks.values():
        if not any(_fails(test, arguments) for test in task.when):
            for complaint in _complaints(task, pipeline, arguments, known):
                found.setdefault(complaint, []).append(task.name)
    for name, complaint in image_sizes.complaints(known):
        found.setdefault(complaint, []).append(name)
    if found:
        lines = [f"step {_some(names)}: {complaint}" for complaint, names in found.items()]
        raise GraphError("\n".join([f"pipeline {pipeline.name} was not started:", *lines]))


def _some(names: list[str]) -> str:
    more = len(names) - SHOWN
    return ", ".join(names[:SHOWN]) + (f" and {more} more" if more > 0 else "")


def _fails(test: Comparison, arguments: dict[str, Any]) -> bool:
    try:
        return not test.holds(lambda source: _value(source, arguments))
    except (_Later, GraphError):
        return False


def _value(source: Source, arguments: dict[str, Any]) -> object:
    match source:
        case Constant(value=value):
            return value
        case Argument(name=name) if name in arguments:
            return arguments[name]
        case Filled(value=value, inputs=inputs):
            return filled(value, {name: _value(inner, arguments) for name, inner in inputs.items()})
    raise _Later


def _complaints(
    task: Task, pipeline: Pipeline, arguments: dict[str, Any], known: dict[str, image_sizes.Step]
) -> Iterator[str]:
    """Problems with a step's values. A step without problems is added to `known`."""
    declared = task.component.parameters
    values = {p.name: p.default for p in declared.values() if p.default is not None and p.name not in task.parameters}
    for name, source in task.parameters.items():
        try:
            values[name] = typed(declared[name], _value(source, arguments))
        except _Later:
            continue
        except GraphError as error:
            yield str(error)
    if (imported := task.imported) is not None:
        with contextlib.suppress(_Later, UserError):
            known[task.name] = image_sizes.Step(task, place=str(local_path(str(_value(imported, arguments)))))
        return
    command = (*task.container.command, *task.container.args)
    if command[0] != LAUNCHER:
        yield from _too_long(command, values)
    elif len(command) > 1 and command[1] not in steps():
        yield f"stereo-pipelines {__version__} has no step {command[1]}; {_COMPILE_AGAIN}"
    elif len(command) > 1 and (foreign := list(_of_another_version(task, command[1]))):
        yield from foreign
    elif len(command) > 1:
        yield from _source(task, values)
        spec = yield from _spec(command[1], task, pipeline, values, arguments)
        if spec is not None:
            known[task.name] = image_sizes.Step(task, command[1], spec)


def _of_another_version(task: Task, verb: str) -> Iterator[str]:
    """Names in the step's signature that the verb does not have here."""
    row, step = VERBS[verb], task.component
    for kind, declared, known in (
        ("input", step.artifacts, required(row.inputs).keys() | {"spec_file"}),
        ("output", step.output_artifacts, required(row.outputs).keys()),
        ("parameter", {} if row.flat_parameters else step.parameters, parameters_of(verb)),
    ):
        if unknown := sorted(declared.keys() - known):
            yield f"stereo-pipelines {__version__} has no {kind} {', '.join(unknown)} of {verb}; {_COMPILE_AGAIN}"


def _source(task: Task, known: dict[str, Any]) -> Iterator[str]:
    """Problems with the parameters that say how a step's annotation files are read."""
    given = {name: known[name] for name in OF_SOURCES if known.get(name)}
    try:
        checked("info", {"data_sources": [given]}, "")
    except UserError as error:
        for line in str(error).splitlines():
            path, _, rule = line.removeprefix(": ").partition(": ")
            yield f"{_origin(task, path.rpartition('.')[2])}: {rule}"


def _too_long(command: tuple[str, ...], known: dict[str, Any]) -> Iterator[str]:
    """Arguments too long for Linux. Our launcher is not affected: it reads a long message from a file."""

    def text(name: str) -> str:
        return as_text(known.get(name, ""))

    for part in command:
        whole = PLACEHOLDER.sub(lambda match: text(match[1]), part.replace("{{$}}", json.dumps(known)))
        if len(whole.encode()) > LONGEST:
            name = max(known, key=lambda one: len(text(one)), default="")
            yield (
                f"parameter {name}: too long; a command-line argument can have at most {LONGEST} bytes; pass a file "
                "instead"
            )


def _spec(
    verb: str, task: Task, pipeline: Pipeline, known: dict[str, Any], arguments: dict[str, Any]
) -> Generator[str, None, Section | None]:
    """Problems with a step's spec. Returns the spec if there are none and all values are known."""
    row = VERBS[verb]
    origins = {key: _origin(task, name) for name, key in row.parameters.items() if known.get(name)}

    def complaint(path: str, rule: str) -> str:
        name = path.partition(".")[0] if row.flat_parameters else "spec"
        from_file = "spec_file" in task.artifacts and not known.get(name)
        return f"{origins.get(path) or ('input spec_file' if from_file else _origin(task, name))}: {path}: {rule}"

    try:
        tree = merged_spec(
            verb, copy.deepcopy(known), {} if row.flat_parameters else _spec_file(task, pipeline, arguments)
        )
        checked(verb, tree, "")
        if row.flat_parameters or task.parameters.keys() - known.keys():
            return None
        _wire(verb, tree, task)
        spec = checked(verb, tree, "")
    except _Later:
        return None
    except UserError as error:
        for line in str(error).splitlines():
            path, _, rule = line.removeprefix(": ").partition(": ")
            yield complaint(path, rule)
        return None
    _put_elsewhere(spec)
    wrong = requirements.check(verb, spec)
    for path, rule in wrong:
        yield complaint(path, rule)
    return None if wrong else spec


def _origin(task: Task, name: str) -> str:
    """The pipeline parameter behind a step's parameter, or else the step's own parameter."""
    source = task.parameters.get(name)
    return f"parameter {source.name if isinstance(source, Argument) else name}"


def _spec_file(task: Task, pipeline: Pipeline, arguments: dict[str, Any]) -> dict[str, Any]:
    """The contents of a spec_file on this machine."""
    source = task.artifacts.get("spec_file")
    if source is None:
        return {}
    uri = pipeline.tasks[source.task].imported if isinstance(source, Output) else None
    place = str(_value(uri, arguments)) if uri is not None else ""
    if not place or not local_path(place).is_file():
        raise _Later
    return read_tree(local_path(place))


def _wire(verb: str, tree: dict[str, Any], task: Task) -> None:
    """Set the keys that the step sets from its inputs, in place."""
    row = VERBS[verb]
    for key, value in row.step_keys.items():
        set_key(tree, key, value.replace("{results}", ELSEWHERE))
    for port, key in row.input_keys.items():
        if port in task.artifacts:
            set_key(tree, key.removesuffix("[]"), [ELSEWHERE] if key.endswith("[]") else ELSEWHERE)
    if "annotations" not in task.artifacts:
        return
    lists = [f"dataset.{split.removesuffix('?')}_dataset.data_sources" for split, names in row.splits.items() if names]
    for key in (*lists, *(("data_sources",) if row.lists else ())):
        sources = _at(tree, key) or [{}]
        if len(sources) == 1 and str(sources[0].get("dataset_name")).lower() != "synthetic":
            sources = [sources[0] | {"data_file": sources[0].get("data_file") or ELSEWHERE}]
        set_key(tree, key, sources)


def _at(tree: dict[str, Any], key: str) -> list[Any]:
    given: Any = tree
    for name in key.split("."):
        given = given.get(name) if isinstance(given, dict) else None
    return given or []


def _put_elsewhere(group: Section, prefix: str = "") -> None:
    """Replace local paths: they refer to the step's machine."""
    for name in type(group).model_fields:
        value, path = getattr(group, name), f"{prefix}{name}"
        if isinstance(value, str) and value and kind_of(path):
            setattr(group, name, ELSEWHERE)
        for inner in value if isinstance(value, list) else [value]:
            if isinstance(inner, Section):
                _put_elsewhere(inner, f"{path}.")
