"""A step as a task of the DAG: its arguments, dependencies and conditions."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

from stereo_core.orchestration.argo.cache import EXECUTOR_OUTPUT, TASK_UID, needs_uid
from stereo_core.orchestration.argo.message import check_length
from stereo_core.orchestration.argo.models import m
from stereo_core.orchestration.argo.repository import Repository, bucket_and_key
from stereo_core.orchestration.argo.values import Values
from stereo_core.orchestration.argo.versions import LONG_ARGUMENTS
from stereo_core.orchestration.dag import (
    Argument,
    Collected,
    Constant,
    GraphError,
    Importer,
    OneOf,
    Output,
    Pipeline,
    Source,
    Task,
    outputs_in,
)

ENDED = ("Succeeded", "Failed", "Errored", "Skipped", "Omitted")


def dag_task(
    pipeline: Pipeline, task: Task, template: str, repository: Repository, values: dict[str, str], version: str
) -> m.DAGTask:
    """The DAG task that calls `template`, one of the pipeline's WorkflowTemplates.

    Args:
        pipeline: The pipeline.
        task: The step.
        template: The step whose template it uses.
        repository: The artifact repository; its server also holds imported data.
        values: The known texts of the pipeline parameters.
        version: Argo version (versions.VERSIONS), or empty.

    Raises:
        GraphError: an input that Argo cannot provide, or an argument that is too long.
    """
    where, wiring = f"task {task.name}", Values(pipeline)
    _check_inputs(pipeline, task)
    parameters = [
        m.Parameter(name=name, value=wiring.text(source, f"{where}, parameter {name}"))
        for name, source in task.parameters.items()
    ]
    if version not in LONG_ARGUMENTS:
        check_length(task, {parameter.name: _known(parameter.value or "", values) for parameter in parameters})
    artifacts = []
    for port, source in task.artifacts.items():
        for name, one in _one_by_one(port, source):
            metadata, artifact = _artifact(pipeline, task.name, name, one, repository, values)
            parameters.append(m.Parameter(name=f"{name}-metadata", value=metadata))
            artifacts.append(artifact)
    if needs_uid(task):
        parameters.append(m.Parameter(name=TASK_UID, value=f"{{{{workflow.uid}}}}/{task.name}"))
    given = m.Arguments(parameters=parameters or None, artifacts=artifacts or None)
    return m.DAGTask(
        name=task.name,
        template_ref=m.TemplateRef(name=f"{pipeline.name}-{template}", template=template),
        arguments=given if parameters or artifacts else None,
        depends=_depends(pipeline, task),
        when=wiring.condition(task.when, f"{where}, condition"),
    )


def _known(text: str, values: dict[str, str]) -> str:
    """A task's text, with the known values of the Workflow's parameters filled in."""
    return re.sub(r"\{\{workflow\.parameters\.([\w-]+)\}\}", lambda found: values.get(found[1], ""), text)


def _check_inputs(pipeline: Pipeline, task: Task) -> None:
    """Refuse a task whose inputs may have no value when it runs."""
    if task.cache_key:
        raise GraphError(
            f"task {task.name}: its own cache key (cacheKey) is not supported on Argo; leave cache_key out of "
            "set_caching_options"
        )
    for parameter in task.component.parameters.values():
        if parameter.default is None and not parameter.required and parameter.name not in task.parameters:
            raise GraphError(
                f"task {task.name}: parameter {parameter.name} has no value, which Argo does not support; give it one, "
                "or a default"
            )
    for source in (*task.parameters.values(), *task.artifacts.values()):
        for output in outputs_in(source):
            if output.task in task.behind:
                raise GraphError(
                    f"task {task.name}: on Argo it cannot use outputs of {output.task}, because it runs even if "
                    f"{output.task} fails; remove this input, or ignore_upstream_failure"
                )
            missing = any(test not in task.when for test in pipeline.tasks[output.task].when)
            if missing and not isinstance(source, OneOf):
                raise GraphError(
                    f"task {task.name}: on Argo it cannot use outputs of {output.task}, which a condition may skip; "
                    "put both under the same condition"
                )


def _depends(pipeline: Pipeline, task: Task) -> str | None:
    """The dependencies: tasks that must succeed (or be skipped by their own condition), and tasks that must end."""
    states: dict[str, tuple[str, ...]] = dict.fromkeys(_steps(pipeline, task.behind), ENDED)
    for name in _steps(pipeline, task.after):
        states[name] = ("Succeeded", "Skipped") if pipeline.tasks[name].when else ("Succeeded",)
    parts = []
    for name in sorted(states):
        either = " || ".join(f"{name}.{state}" for state in states[name])
        parts.append(either if len(states[name]) == 1 else f"({either})")
    return " && ".join(parts) or None


def _steps(pipeline: Pipeline, names: frozenset[str]) -> set[str]:
    """The steps among the tasks. An importer is not a step on Argo; the tasks that it waits for replace it."""
    found = set()
    for name in names:
        task = pipeline.tasks[name]
        imported = isinstance(task.component.executor, Importer)
        found |= _steps(pipeline, task.after) if imported else {name}
    return found


# ---- artifacts


def _one_by_one(port: str, source: Source) -> Iterator[tuple[str, Source]]:
    if not isinstance(source, Collected):
        yield port, source
        return
    for index, inner in enumerate(source.rounds):
        yield f"{port}-{index}", inner


def _artifact(
    pipeline: Pipeline, task: str, port: str, source: Source, repository: Repository, values: dict[str, str]
) -> tuple[str, m.Artifact]:
    """An artifact's metadata and its location."""
    producers = [pipeline.tasks[output.task] for output in outputs_in(source)]
    imported = [task for task in producers if isinstance(task.component.executor, Importer)]
    if isinstance(source, OneOf):  # an expression could choose, but Argo supports that only in outputs
        raise GraphError(
            f"task {task}: dsl.OneOf of artifacts ({port}) is not supported on Argo; use dsl.OneOf of parameters, or"
            " move the following steps into the branches"
        )
    if imported:
        metadata = json.dumps(imported[0].importer.metadata)
        return metadata, _imported(imported[0], port, repository, values, Values(pipeline))
    if not isinstance(source, Output):
        raise TypeError(f"{source!r} is no artifact")
    place = f"{{{{tasks.{source.task}.outputs.artifacts.{source.key}}}}}"
    return f"{{{{={_metadata_of(source)}}}}}", m.Artifact(name=port, from_=place)


def _metadata_of(source: Output) -> str:
    output = f"tasks['{source.task}'].outputs.parameters['{EXECUTOR_OUTPUT}']"
    return f"toJson(jsonpath({output}, '$.artifacts.{source.key}.artifacts[0].metadata'))"


def _imported(task: Task, port: str, repository: Repository, values: dict[str, str], wiring: Values) -> m.Artifact:
    """The S3 location of an importer's URI: a constant, or parsed from a pipeline parameter when the Workflow runs."""
    uri = task.importer.uri
    source = task.parameters[uri.name] if isinstance(uri, Argument) else uri
    if not isinstance(source, Constant | Argument):
        raise GraphError(
            f"task {task.name}: an importer whose URI comes from another step is not supported on Argo; take the URI "
            "from a pipeline parameter"
        )
    if isinstance(source, Constant):
        bucket, key = bucket_and_key(
            wiring.text(source, f"task {task.name}, uri"), f"task {task.name}", wanted="s3://BUCKET/KEY"
        )
    else:
        if source.name in values:
            bucket_and_key(values[source.name], f"parameter {source.name}", wanted="s3://BUCKET/KEY")
        place, given = "'^(s3|minio|aws)://([^/]+)/(.+?)/*$'", f"workflow.parameters['{source.name}']"
        bucket, key = (f"sprig.regexReplaceAll({place}, {given}, '${{{group}}}')" for group in (2, 3))
        # The value comes with `argo submit`, so it is not known yet. This text appears in Argo's error.
        none = f"parameter {source.name} is not s3://BUCKET/KEY"
        bucket, key = f"{{{{={given} matches {place} ? {bucket} : '{none}'}}}}", f"{{{{={key}}}}}"
    archive = m.ArchiveStrategy(none=m.NoneStrategy())
    return m.Artifact(name=port, s3=repository.location(bucket, key), archive=archive)
