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

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from urllib.parse import urlsplit

from stereo_core.errors import UserError
from stereo_core.orchestration.argo.check import problems
from stereo_core.orchestration.argo.step import (
    EXECUTOR_OUTPUT,
    TASK_UID,
    m,
    plain,
    pod_security,
    pull_secrets,
    template_of,
    wants_uid,
)
from stereo_core.orchestration.argo.values import Values, first_that_ran, text_of
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
from stereo_core.orchestration.graph import unrolled

KEEP_SECONDS = 7 * 24 * 3600  # a Workflow that ended, with its steps' logs and its intermediate artifacts
NAME = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")
LONGEST_NAME, LONGEST_CRON_NAME = 63, 52
ON_EXIT = "on-exit"  # the template of the exit handlers
ENDED = ("Succeeded", "Failed", "Errored", "Skipped", "Omitted")


@dataclass(frozen=True)
class Repository:
    """The bucket for artifacts.

    Args:
        bucket: Its name.
        prefix: What the keys of this library's artifacts begin with; may be empty.
        endpoint: host[:port] of the S3 server.
        insecure: http instead of https.
        secret: Name of the secret that holds the credentials; empty: those of the pod's service account.
    """

    bucket: str
    prefix: str = ""
    endpoint: str = "s3.amazonaws.com"
    insecure: bool = False
    secret: str = ""

    @classmethod
    def of(cls, uri: str, endpoint: str = "", secret: str = "") -> Repository:
        """From `s3://BUCKET[/PREFIX]` and `[http[s]://]HOST[:PORT]`.

        Raises:
            UserError: another scheme, or no bucket.
        """
        bucket, key = _bucket_and_key(uri, "--artifact-repository", wanted="s3://BUCKET[/PREFIX]")
        server = urlsplit(endpoint if "://" in endpoint else f"https://{endpoint}")
        if server.username or server.password:
            raise UserError("--endpoint: no user or password in the address, it would stand in the manifests; --secret")
        if server.scheme not in ("http", "https") or server.path.strip("/"):
            raise UserError(f"--endpoint {endpoint}: [http[s]://]HOST[:PORT] is wanted")
        return cls(bucket, key, server.netloc or cls.endpoint, server.scheme == "http", secret)

    def location(self, bucket: str, key: str) -> m.S3Artifact:
        """Where an artifact lies on this server, and the secret that opens it."""
        return m.S3Artifact(bucket=bucket, key=key, **self._access())

    def config_map(self, name: str) -> dict:
        """The repository as Argo's artifactRepositoryRef reads it."""
        key = "/".join(filter(None, (self.prefix, "{{workflow.name}}", "{{pod.name}}")))
        s3 = {"bucket": self.bucket, "keyFormat": key} | plain(m.S3Artifact(**self._access()))
        return {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": name},
            "data": {"repository": json.dumps({"s3": s3}, indent=2) + "\n"},
        }

    def _access(self) -> dict:
        access = {"endpoint": self.endpoint, "insecure": self.insecure or None}
        if not self.secret:
            return access | {"use_sdk_creds": True}
        return access | {
            "access_key_secret": m.SecretKeySelector(name=self.secret, key="accesskey"),
            "secret_key_secret": m.SecretKeySelector(name=self.secret, key="secretkey"),
        }


def manifests(
    pipeline: Pipeline,
    arguments: dict[str, object],
    repository: Repository,
    *,
    schedule: str = "",
    service_account: str = "",
    priority_class: str = "",
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

    Raises:
        GraphError: something that Argo can not do, arguments that do not fit, or a reference to nothing.
    """
    _check_name(pipeline.name, "the pipeline", LONGEST_CRON_NAME if schedule else LONGEST_NAME)
    given = pipeline.arguments(arguments, complete=bool(schedule))
    for name in pipeline.loops:
        if given.get(name) is None:
            raise GraphError(f"parameter {name}: a loop goes over it, so its value is wanted now")
    pipeline = unrolled(pipeline, given)
    values = {n: text_of(v, f"parameter {n}") for n, v in given.items() if v is not None and n not in pipeline.loops}
    steps = {name: task for name, task in pipeline.tasks.items() if not isinstance(task.component.executor, Importer)}
    if not steps:
        raise GraphError(f"pipeline {pipeline.name}: there is no step to run")
    shared = _shared_templates(steps)
    templates = [_workflow_template(pipeline, steps[name], priority_class) for name in dict.fromkeys(shared.values())]
    spec = _workflow_spec(pipeline, steps, shared, values, repository)
    if service_account:
        spec.service_account_name = spec.artifact_gc.service_account_name = service_account
    documents = [
        repository.config_map(f"{pipeline.name}-artifacts"),
        *map(plain, templates),
        plain(_workflow(pipeline, spec, schedule)),
    ]
    if wrong := problems(documents):
        raise GraphError(f"the manifests of pipeline {pipeline.name} would not run: {'; '.join(wrong)}")
    return documents


def _shared_templates(steps: dict[str, Task]) -> dict[str, str]:
    """Step -> the first step that is the same but for its arguments; they share a template."""

    def what(task: Task) -> tuple:
        lists = {port: len(source.rounds) for port, source in task.artifacts.items() if isinstance(source, Collected)}
        return task.component, task.cache, task.retry, task.platform, lists

    return {name: next(n for n, other in steps.items() if what(other) == what(task)) for name, task in steps.items()}


def _workflow_template(pipeline: Pipeline, task: Task, priority_class: str) -> m.WorkflowTemplate:
    name = f"{pipeline.name}-{task.name}"
    _check_name(name, f"task {task.name}")
    template = template_of(pipeline, task)
    if priority_class and task.component.executor.accelerators:
        template.priority_class_name = priority_class
    return m.WorkflowTemplate(
        api_version="argoproj.io/v1alpha1",
        kind="WorkflowTemplate",
        metadata=m.ObjectMeta(name=name),
        spec=m.WorkflowSpec(templates=[template]),
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
    pipeline: Pipeline, steps: dict[str, Task], shared: dict[str, str], values: dict[str, str], repository: Repository
) -> m.WorkflowSpec:
    tasks = {name: _dag_task(pipeline, task, shared[name], repository, values) for name, task in steps.items()}
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
        artifact_gc=m.WorkflowLevelArtifactGC(strategy="OnWorkflowDeletion"),
        pod_gc=m.PodGC(strategy="OnPodSuccess"),
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


def _dag_task(
    pipeline: Pipeline, task: Task, template: str, repository: Repository, values: dict[str, str]
) -> m.DAGTask:
    where, wiring = f"task {task.name}", Values(pipeline)
    _check_inputs(pipeline, task)
    parameters = [
        m.Parameter(name=name, value=wiring.text(source, f"{where}, parameter {name}"))
        for name, source in task.parameters.items()
    ]
    artifacts = []
    for port, source in task.artifacts.items():
        for name, one in _one_by_one(port, source):
            said, artifact = _artifact(pipeline, name, one, repository, values)
            parameters.append(m.Parameter(name=f"{name}-metadata", value=said))
            artifacts.append(artifact)
    if wants_uid(task):
        parameters.append(m.Parameter(name=TASK_UID, value=f"{{{{workflow.uid}}}}/{task.name}"))
    given = m.Arguments(parameters=parameters or None, artifacts=artifacts or None)
    return m.DAGTask(
        name=task.name,
        template_ref=m.TemplateRef(name=f"{pipeline.name}-{template}", template=template),
        arguments=given if parameters or artifacts else None,
        depends=_depends(pipeline, task),
        when=wiring.condition(task.when, f"{where}, condition"),
    )


def _check_inputs(pipeline: Pipeline, task: Task) -> None:
    """Every input has a value when the task runs."""
    if task.cache_key:
        raise GraphError(f"task {task.name}: a cache key of its own (cacheKey) can not be had on Argo")
    for parameter in task.component.parameters.values():
        if parameter.default is None and not parameter.required and parameter.name not in task.parameters:
            raise GraphError(f"task {task.name}: Argo has no value for parameter {parameter.name}, and so wants one")
    for source in (*task.parameters.values(), *task.artifacts.values()):
        for output in outputs_in(source):
            if output.task in task.behind:
                raise GraphError(f"task {task.name}: on Argo it can not take from {output.task}, which may fail")
            missing = any(test not in task.when for test in pipeline.tasks[output.task].when)
            if missing and not isinstance(source, OneOf):
                raise GraphError(
                    f"task {task.name}: on Argo it can not take what {output.task} made, which may be left out"
                )


def _depends(pipeline: Pipeline, task: Task) -> str | None:
    """What must have succeeded (or was left out by its own condition), and what must have ended, however."""
    states = dict.fromkeys(_steps(pipeline, task.behind), ENDED)
    for name in _steps(pipeline, task.after):
        states[name] = ("Succeeded", "Skipped") if pipeline.tasks[name].when else ("Succeeded",)
    parts = []
    for name in sorted(states):
        either = " || ".join(f"{name}.{state}" for state in states[name])
        parts.append(either if len(states[name]) == 1 else f"({either})")
    return " && ".join(parts) or None


def _steps(pipeline: Pipeline, names: frozenset[str]) -> set[str]:
    """The steps among tasks; an importer is none, it stands for what it waits for."""
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
    pipeline: Pipeline, port: str, source: Source, repository: Repository, values: dict[str, str]
) -> tuple[str, m.Artifact]:
    """What is said about an artifact, and where it is."""
    producers = [pipeline.tasks[output.task] for output in outputs_in(source)]
    imported = [task for task in producers if isinstance(task.component.executor, Importer)]
    if isinstance(source, OneOf):
        if imported:
            raise GraphError(f"task {imported[0].name}: dsl.OneOf of what an importer gives can not be had on Argo")
        said = first_that_ran(source.options, _metadata_of)
        place = first_that_ran(
            source.options, lambda output: f"tasks['{output.task}'].outputs.artifacts['{output.key}']"
        )
        return f"{{{{={said}}}}}", m.Artifact(name=port, from_expression=place)
    if imported:
        said = json.dumps(imported[0].component.executor.metadata)
        return said, _imported(imported[0], port, repository, values, Values(pipeline))
    place = f"{{{{tasks.{source.task}.outputs.artifacts.{source.key}}}}}"
    return f"{{{{={_metadata_of(source)}}}}}", m.Artifact(name=port, from_=place)


def _metadata_of(source: Output) -> str:
    said = f"tasks['{source.task}'].outputs.parameters['{EXECUTOR_OUTPUT}']"
    return f"toJson(jsonpath({said}, '$.artifacts.{source.key}.artifacts[0].metadata'))"


def _imported(task: Task, port: str, repository: Repository, values: dict[str, str], wiring: Values) -> m.Artifact:
    """The S3 location of an importer's URI: a constant, or cut from a pipeline parameter when the Workflow runs."""
    uri = task.component.executor.uri
    source = task.parameters[uri.name] if isinstance(uri, Argument) else uri
    if not isinstance(source, Constant | Argument):
        raise GraphError(f"task {task.name}: an importer whose URI another step makes can not be had on Argo")
    if isinstance(source, Constant):
        bucket, key = _bucket_and_key(
            wiring.text(source, f"task {task.name}, uri"), f"task {task.name}", wanted="s3://BUCKET/KEY"
        )
    else:
        if source.name in values:
            _bucket_and_key(values[source.name], f"parameter {source.name}", wanted="s3://BUCKET/KEY")
        place, uri = "'^(s3|minio|aws)://([^/]+)/(.+?)/*$'", f"workflow.parameters['{source.name}']"
        bucket, key = (f"sprig.regexReplaceAll({place}, {uri}, '${{{group}}}')" for group in (2, 3))
        # given to `argo submit`, so not known now: another text is named in Argo's error about the bucket
        none = f"parameter {source.name} is no s3://BUCKET/KEY"
        bucket, key = f"{{{{={uri} matches {place} ? {bucket} : '{none}'}}}}", f"{{{{={key}}}}}"
    archive = m.ArchiveStrategy(none=m.NoneStrategy())
    return m.Artifact(name=port, s3=repository.location(bucket, key), archive=archive)


def _bucket_and_key(uri: str, where: str, wanted: str) -> tuple[str, str]:
    found = re.fullmatch(r"(?:s3|minio|aws)://([^/{}]+)/?(.*?)/*", uri)
    if not found or (not found[2] and wanted.endswith("KEY")):
        raise UserError(f"{where}: {uri} is no place in a bucket; {wanted} is wanted")
    return found[1], found[2]


def _check_name(name: str, what: str, longest: int = LONGEST_NAME) -> None:
    if not NAME.fullmatch(name) or len(name) > longest:
        raise GraphError(
            f"{what}: {name} can not be a name on Kubernetes; lower-case letters, digits and dashes, at most"
            f" {longest}, are wanted"
        )
