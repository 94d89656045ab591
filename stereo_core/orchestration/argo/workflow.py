"""Turns a compiled pipeline into manifests for Argo Workflows, without Kubeflow.

    ConfigMap         the artifact repository
    WorkflowTemplate  one per step (a component of the IR), with retries, resources, placement (step.py)
    Workflow          the graph: the steps, their arguments and dependencies (CronWorkflow if there is a schedule)

An artifact's metadata (kind, sha256, ...) is passed on as the parameter `<port>-metadata`. It comes from the producing
step's executor_output.json, which is an output parameter of every step. An importer becomes an S3 location. Loops are
unrolled here, so the values they iterate over are not parameters of the Workflow. A step whose condition is false is
`Skipped`, and so are the steps inside that condition. Exit handlers become the Workflow's onExit.

Features that Argo does not have, or treats differently, are refused by name. Needs hera (extra `pipelines`).
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

from stereo_core.orchestration.argo.cache import can_hit
from stereo_core.orchestration.argo.check import problems
from stereo_core.orchestration.argo.models import as_document, m
from stereo_core.orchestration.argo.pod import pod_security, pull_secrets
from stereo_core.orchestration.argo.repository import Repository
from stereo_core.orchestration.argo.step import templates_of
from stereo_core.orchestration.argo.tasks import dag_task
from stereo_core.orchestration.argo.values import text_of
from stereo_core.orchestration.argo.versions import fit
from stereo_core.orchestration.dag import Collected, GraphError, Importer, Pipeline, Task, malformed, outputs_in
from stereo_core.orchestration.graph import unrolled

KEEP_SECONDS = 7 * 24 * 3600  # how long an ended Workflow is kept, with its logs and intermediate artifacts
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
) -> list[dict[str, Any]]:
    """The Kubernetes resources that run a pipeline, in the order of creation.

    Args:
        pipeline: From `load_pipeline`.
        arguments: Values of pipeline parameters. Others have their defaults; those without a default must be given to
            `argo submit --parameter`.
        repository: Where artifacts are stored.
        schedule: Cron expression; makes a CronWorkflow instead of a Workflow.
        service_account: Service account of the pods; empty: the namespace's default.
        priority_class: Priority class of the steps that request accelerators; empty: the cluster's default.
        cache: Use Argo's cache for the steps that the pipeline caches; the controller needs write access to it.
        version: Argo version, one of versions.VERSIONS; empty: any version with the minimal resource definitions.

    Raises:
        GraphError: a feature that Argo does not support, wrong arguments, or an unresolved reference.
    """
    _check_name(pipeline.name, "the pipeline", LONGEST_CRON_NAME if schedule else LONGEST_NAME)
    given = pipeline.arguments(arguments, complete=bool(schedule))
    for name in pipeline.loops:
        if given.get(name) is None:
            raise GraphError(
                f"parameter {name}: a loop iterates over it, so it needs a value now; give it with --param"
            )
    pipeline = _cached_where_it_helps(unrolled(pipeline, given), cache)
    values = {n: text_of(v, f"parameter {n}") for n, v in given.items() if v is not None and n not in pipeline.loops}
    steps = {name: task for name, task in pipeline.tasks.items() if not isinstance(task.component.executor, Importer)}
    if not steps:
        raise GraphError(f"pipeline {pipeline.name}: it has no steps to run, only importers; add a step")
    shared = _shared_templates(steps)
    templates = [
        _workflow_template(pipeline, steps[name], repository, priority_class) for name in dict.fromkeys(shared.values())
    ]
    tasks = {name: dag_task(pipeline, task, shared[name], repository, values, version) for name, task in steps.items()}
    spec = _workflow_spec(pipeline, steps, tasks, values)
    if service_account:
        spec.service_account_name = service_account
        if spec.artifact_gc:
            spec.artifact_gc.service_account_name = service_account
    documents = [
        repository.config_map(f"{pipeline.name}-artifacts"),
        *map(as_document, templates),
        as_document(_workflow(pipeline, spec, schedule)),
    ]
    fit(documents, version)
    if wrong := problems(documents):
        raise GraphError(
            f"the manifests of pipeline {pipeline.name} would not work, which is a fault of stereo-pipelines; please "
            f"report it: {'; '.join(wrong)}"
        )
    return documents


def _cached_where_it_helps(pipeline: Pipeline, cache: bool) -> Pipeline:
    """The pipeline with `cache` only on steps that a second run can find in the cache, and not on exit handlers."""
    tasks = {
        name: replace(task, cache=cache and task.cache and not task.exit and can_hit(pipeline, task))
        for name, task in pipeline.tasks.items()
    }
    return replace(pipeline, tasks=tasks)


def _shared_templates(steps: dict[str, Task]) -> dict[str, str]:
    """Step -> the first step that differs from it only in its arguments; both use the same template."""

    def what(task: Task) -> tuple[Any, ...]:
        lists = {port: len(source.rounds) for port, source in task.artifacts.items() if isinstance(source, Collected)}
        return task.component, task.cache, task.retry, task.platform, lists, set(task.artifacts)

    return {name: next(n for n, other in steps.items() if what(other) == what(task)) for name, task in steps.items()}


def _workflow_template(
    pipeline: Pipeline, task: Task, repository: Repository, priority_class: str
) -> m.WorkflowTemplate:
    name = f"{pipeline.name}-{task.name}"
    _check_name(name, f"task {task.name}")
    templates = templates_of(pipeline, task, repository)
    if priority_class and task.container.accelerators:
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
    config = pipeline.config
    ttl = m.TTLStrategy(
        seconds_after_completion=config.get("resourceTtlOnCompletion", KEEP_SECONDS),
        seconds_after_success=config.get("resourceTtlOnSuccess"),
        seconds_after_failure=config.get("resourceTtlOnFailure"),
    )
    return m.WorkflowSpec(
        entrypoint=pipeline.name,
        on_exit=ON_EXIT if handlers else None,
        arguments=m.Arguments(parameters=parameters) if parameters else None,
        templates=templates,
        artifact_repository_ref=m.ArtifactRepositoryRef(config_map=f"{pipeline.name}-artifacts", key="repository"),
        # Forced: otherwise a Workflow whose bucket is unreachable could not be deleted, nor could its namespace.
        artifact_gc=m.WorkflowLevelArtifactGC(strategy="OnWorkflowDeletion", force_finalizer_removal=True),
        # Not OnPodSuccess: with the finalizer above, the pods of a Workflow deleted while it runs are created again.
        pod_gc=m.PodGC(strategy="OnPodCompletion"),
        archive_logs=True,  # because the pods are removed
        active_deadline_seconds=config.get("activeDeadlineSeconds"),
        ttl_strategy=ttl,
        security_context=pod_security(),
        image_pull_secrets=[m.LocalObjectReference(name=name) for name in sorted(secrets)] or None,
    )


def _exit_handler(pipeline: Pipeline, task: Task, made: m.DAGTask) -> m.DAGTask:
    """The task as part of onExit, which runs when the Workflow has ended; so it must watch the whole pipeline."""
    outside = [name for name, other in pipeline.tasks.items() if not other.exit and name not in task.behind]
    if outside:
        raise GraphError(
            f"task {task.name}: on Argo an exit handler must watch the whole pipeline; move these tasks into its "
            f"dsl.ExitHandler: {', '.join(outside)}"
        )
    if any(outputs_in(source) for source in (*task.parameters.values(), *task.artifacts.values())):
        raise GraphError(
            f"task {task.name}: on Argo an exit handler cannot use outputs of other tasks; remove these inputs"
        )
    made.depends = None
    return made


def _check_name(name: str, what: str, longest: int = LONGEST_NAME) -> None:
    if not NAME.fullmatch(name) or len(name) > longest:
        raise GraphError(
            f"{what}: {name} is not a valid name on Kubernetes; use at most {longest} lower-case letters, digits and"
            " dashes"
        )
