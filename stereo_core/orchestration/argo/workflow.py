"""A compiled pipeline -> manifests for Argo Workflows, without Kubeflow.

    ConfigMap         the artifact repository
    WorkflowTemplate  one a step: what the IR calls a component, with retries, resources, placement (step.py)
    Workflow          the graph: which step takes what from which (CronWorkflow where a schedule is given)

What a producer says about an artifact (kind, sha256, ...) goes along as the parameter `<port>-metadata`, taken from the
producer's executor_output.json, which is an output parameter of every step. An importer becomes an S3 location. Loops
are unrolled here, with the values given here: what they go over is no parameter of the Workflow. A step whose condition
does not hold is `Skipped`, and so are those that take the condition over; exit handlers become the Workflow's onExit.

What Argo can not do, or would do otherwise, is refused by its name. Needs hera (extra `pipelines`).
"""

from __future__ import annotations

import re
from dataclasses import replace

from stereo_core.orchestration.argo.cache import can_hit
from stereo_core.orchestration.argo.check import problems
from stereo_core.orchestration.argo.models import m, plain
from stereo_core.orchestration.argo.pod import pod_security, pull_secrets
from stereo_core.orchestration.argo.repository import Repository
from stereo_core.orchestration.argo.step import templates_of
from stereo_core.orchestration.argo.tasks import dag_task
from stereo_core.orchestration.argo.values import text_of
from stereo_core.orchestration.argo.versions import fit
from stereo_core.orchestration.dag import Collected, GraphError, Importer, Pipeline, Task, malformed, outputs_in
from stereo_core.orchestration.graph import unrolled

KEEP_SECONDS = 7 * 24 * 3600  # a Workflow that ended, with its steps' logs and its intermediate artifacts
NAME = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")
LONGEST_NAME, LONGEST_CRON_NAME = 63, 52
ON_EXIT = "on-exit"  # the template of the exit handlers


@malformed()
def manifests(
    pipeline: Pipeline,
    arguments: dict[str, object],
    repository: Repository,
    *,
    schedule: str = "",
    service_account: str = "",
    priority_class: str = "",
    cache: bool = True,
    version: str = "",
) -> list[dict]:
    """The Kubernetes resources that run a pipeline, in the order in which they are to be created.

    Args:
        pipeline: From `load_pipeline`.
        arguments: Values of pipeline parameters; others have their defaults, and those without one are left to
            `argo submit --parameter`.
        repository: Where artifacts go.
        schedule: Cron expression; a CronWorkflow instead of a Workflow.
        service_account: Of the pods; empty: the namespace's default.
        priority_class: Of the steps that ask for accelerators; empty: the cluster's default.
        cache: Take steps from Argo's cache where the pipeline lets them be; its controller must be able to write it.
        version: Of Argo, one of versions.VERSIONS; empty: what all of them take that have the minimal definitions.

    Raises:
        GraphError: something that Argo can not do, arguments that do not fit, or a reference to nothing.
    """
    _check_name(pipeline.name, "the pipeline", LONGEST_CRON_NAME if schedule else LONGEST_NAME)
    given = pipeline.arguments(arguments, complete=bool(schedule))
    for name in pipeline.loops:
        if given.get(name) is None:
            raise GraphError(f"parameter {name}: a loop goes over it, so its value is wanted now")
    pipeline = _cached_where_it_helps(unrolled(pipeline, given), cache)
    values = {n: text_of(v, f"parameter {n}") for n, v in given.items() if v is not None and n not in pipeline.loops}
    steps = {name: task for name, task in pipeline.tasks.items() if not isinstance(task.component.executor, Importer)}
    if not steps:
        raise GraphError(f"pipeline {pipeline.name}: there is no step to run")
    shared = _shared_templates(steps)
    templates = [
        _workflow_template(pipeline, steps[name], repository, priority_class) for name in dict.fromkeys(shared.values())
    ]
    tasks = {name: dag_task(pipeline, task, shared[name], repository, values, version) for name, task in steps.items()}
    spec = _workflow_spec(pipeline, steps, tasks, values)
    if service_account:
        spec.service_account_name = spec.artifact_gc.service_account_name = service_account
    documents = [
        repository.config_map(f"{pipeline.name}-artifacts"),
        *map(plain, templates),
        plain(_workflow(pipeline, spec, schedule)),
    ]
    fit(documents, version)
    if wrong := problems(documents):
        raise GraphError(f"the manifests of pipeline {pipeline.name} would not run: {'; '.join(wrong)}")
    return documents


def _cached_where_it_helps(pipeline: Pipeline, cache: bool) -> Pipeline:
    """The pipeline with `cache` only at steps that a second run can find there, and that are no exit handlers."""
    tasks = {
        name: replace(task, cache=cache and task.cache and not task.exit and can_hit(pipeline, task))
        for name, task in pipeline.tasks.items()
    }
    return replace(pipeline, tasks=tasks)


def _shared_templates(steps: dict[str, Task]) -> dict[str, str]:
    """Step -> the first step that is the same but for its arguments; they share a template."""

    def what(task: Task) -> tuple:
        lists = {port: len(source.rounds) for port, source in task.artifacts.items() if isinstance(source, Collected)}
        return task.component, task.cache, task.retry, task.platform, lists, set(task.artifacts)

    return {name: next(n for n, other in steps.items() if what(other) == what(task)) for name, task in steps.items()}


def _workflow_template(
    pipeline: Pipeline, task: Task, repository: Repository, priority_class: str
) -> m.WorkflowTemplate:
    name = f"{pipeline.name}-{task.name}"
    _check_name(name, f"task {task.name}")
    templates = templates_of(pipeline, task, repository)
    if priority_class and task.component.executor.accelerators:
        templates[-1].priority_class_name = priority_class
    return m.WorkflowTemplate(
        api_version="argoproj.io/v1alpha1",
        kind="WorkflowTemplate",
        metadata=m.ObjectMeta(name=name),
        spec=m.WorkflowSpec(templates=templates),
    )


# ---- the Workflow


def _workflow(pipeline: Pipeline, spec: m.WorkflowSpec, schedule: str) -> m.Workflow | m.CronWorkflow:
    about = {"workflows.argoproj.io/description": pipeline.description} if pipeline.description else None
    if not schedule:
        metadata = m.ObjectMeta(generate_name=f"{pipeline.name}-", annotations=about)
        return m.Workflow(api_version="argoproj.io/v1alpha1", kind="Workflow", metadata=metadata, spec=spec)
    return m.CronWorkflow(
        api_version="argoproj.io/v1alpha1",
        kind="CronWorkflow",
        metadata=m.ObjectMeta(name=pipeline.name, annotations=about),
        spec=m.CronWorkflowSpec(schedules=[schedule], concurrency_policy="Forbid", workflow_spec=spec),
    )


def _workflow_spec(
    pipeline: Pipeline, steps: dict[str, Task], tasks: dict[str, m.DAGTask], values: dict[str, str]
) -> m.WorkflowSpec:
    handlers = [_exit_handler(pipeline, task, tasks.pop(name)) for name, task in steps.items() if task.exit]
    templates = [m.Template(name=pipeline.name, dag=m.DAGTemplate(tasks=list(tasks.values()), fail_fast=False))]
    if handlers:
        templates.append(m.Template(name=ON_EXIT, dag=m.DAGTemplate(tasks=handlers, fail_fast=False)))
    parameters = [
        m.Parameter(name=p.name, value=values.get(p.name), description=p.description or None)
        for p in pipeline.parameters.values()
        if p.name not in pipeline.loops
    ]
    secrets = {name for task in steps.values() for name in pull_secrets(task)}
    said = pipeline.config
    ttl = m.TTLStrategy(
        seconds_after_completion=said.get("resourceTtlOnCompletion", KEEP_SECONDS),
        seconds_after_success=said.get("resourceTtlOnSuccess"),
        seconds_after_failure=said.get("resourceTtlOnFailure"),
    )
    return m.WorkflowSpec(
        entrypoint=pipeline.name,
        on_exit=ON_EXIT if handlers else None,
        arguments=m.Arguments(parameters=parameters) if parameters else None,
        templates=templates,
        artifact_repository_ref=m.ArtifactRepositoryRef(config_map=f"{pipeline.name}-artifacts", key="repository"),
        # Forced: a Workflow whose bucket can not be reached any more would keep its namespace from going.
        artifact_gc=m.WorkflowLevelArtifactGC(strategy="OnWorkflowDeletion", force_finalizer_removal=True),
        # Not OnPodSuccess: with the finalizer above a Workflow that is deleted while it runs makes its pods again.
        pod_gc=m.PodGC(strategy="OnPodCompletion"),
        archive_logs=True,  # the pods go
        active_deadline_seconds=said.get("activeDeadlineSeconds"),
        ttl_strategy=ttl,
        security_context=pod_security(),
        image_pull_secrets=[m.LocalObjectReference(name=name) for name in sorted(secrets)] or None,
    )


def _exit_handler(pipeline: Pipeline, task: Task, made: m.DAGTask) -> m.DAGTask:
    """The task as one of onExit, which runs when the whole Workflow has ended: so its block must be the whole."""
    outside = [name for name, other in pipeline.tasks.items() if not other.exit and name not in task.behind]
    if outside:
        raise GraphError(
            f"task {task.name}: on Argo an exit handler is for the whole pipeline; outside are {', '.join(outside)}"
        )
    if any(outputs_in(source) for source in (*task.parameters.values(), *task.artifacts.values())):
        raise GraphError(f"task {task.name}: on Argo an exit handler can not take what other tasks made")
    made.depends = None
    return made


def _check_name(name: str, what: str, longest: int = LONGEST_NAME) -> None:
    if not NAME.fullmatch(name) or len(name) > longest:
        raise GraphError(
            f"{what}: {name} can not be a name on Kubernetes; lower-case letters, digits and dashes, at most"
            f" {longest}, are wanted"
        )
