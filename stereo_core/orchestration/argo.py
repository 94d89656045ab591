"""A compiled pipeline -> manifests for Argo Workflows, without Kubeflow.

    ConfigMap         the artifact repository
    WorkflowTemplate  one a step: what the IR calls a component, with its retries, resources and placement
    Workflow          the graph: which step takes what from which (CronWorkflow where a schedule is given)

A step's command stays `depth_net-launch ACTION EXECUTOR_INPUT_JSON`. Its template writes that message: parameters go in
as JSON (text through the expression function toJson), artifacts lie in INPUTS and OUTPUTS. What a producer says about
an artifact (kind, sha256, ...) goes along as the parameter `<port>-metadata`, taken from the producer's
executor_output.json, which is an output parameter of every step. An importer becomes an S3 location.

What Argo can not do, or would do otherwise, is refused by its name. Needs hera (extra `pipelines`).
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from urllib.parse import urlsplit

import yaml

from stereo_core.errors import WORTH_ANOTHER_TRY, UserError
from stereo_core.orchestration.dag import (
    Argument,
    Component,
    Constant,
    GraphError,
    Importer,
    Output,
    Parameter,
    Pipeline,
    Port,
    Source,
    Task,
)

# hera changes how PyYAML writes text, for everyone in the process; that is taken back.
_CLASSES = (yaml.representer.SafeRepresenter, yaml.representer.Representer, yaml.Dumper)
_BEFORE = [dict(writer.yaml_representers) for writer in _CLASSES]
try:
    from hera.workflows import models as m
except ModuleNotFoundError as error:
    raise UserError(
        "Argo manifests are written with hera, which is missing: pip install 'stereo-pipelines[pipelines]'"
    ) from error
for _writer, _representers in zip(_CLASSES, _BEFORE, strict=True):
    _writer.yaml_representers = _representers

INPUTS, OUTPUTS = "/stereo/inputs", "/stereo/outputs"
EXECUTOR_OUTPUT = "executor-output"  # output parameter of every step: its executor_output.json
KEEP_SECONDS = 7 * 24 * 3600  # a Workflow that ended, with its logs, and its intermediate artifacts
CACHE_AGE = "720h"  # after which a cached step runs again
NAME = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")
LONGEST_NAME = 63


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
        if server.scheme not in ("http", "https") or server.path.strip("/"):
            raise UserError(f"--endpoint {endpoint}: [http[s]://]HOST[:PORT] is wanted")
        return cls(bucket, key, server.netloc or cls.endpoint, server.scheme == "http", secret)

    def location(self, bucket: str, key: str) -> m.S3Artifact:
        """Where an artifact lies on this server, and the secret that opens it."""
        return m.S3Artifact(bucket=bucket, key=key, **self._access())

    def config_map(self, name: str) -> dict:
        """The repository as Argo's artifactRepositoryRef reads it."""
        key = "/".join(filter(None, (self.prefix, "{{workflow.name}}", "{{pod.name}}")))
        s3 = {"bucket": self.bucket, "keyFormat": key} | _plain(m.S3Artifact(**self._access()))
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
) -> list[dict]:
    """The Kubernetes resources that run a pipeline, in the order in which they are to be created.

    Args:
        pipeline: From `load_pipeline`.
        arguments: Values of pipeline parameters; others have their defaults, and those without one are left to
            `argo submit --parameter`.
        repository: Where artifacts go.
        schedule: Cron expression; a CronWorkflow instead of a Workflow.
        service_account: Of the pods; empty: the namespace's default.

    Raises:
        GraphError: something that Argo can not do, or arguments that do not fit.
    """
    _check_name(pipeline.name, "the pipeline")
    steps = {name: task for name, task in pipeline.tasks.items() if not isinstance(task.component.executor, Importer)}
    if not steps:
        raise GraphError(f"pipeline {pipeline.name}: there is no step to run")
    shared = _shared_templates(steps)
    templates = [_workflow_template(pipeline, steps[name]) for name in dict.fromkeys(shared.values())]
    spec = _workflow_spec(pipeline, steps, shared, _values(pipeline, arguments, bool(schedule)), repository)
    if service_account:
        spec.service_account_name = spec.artifact_gc.service_account_name = service_account
    return [
        repository.config_map(f"{pipeline.name}-artifacts"),
        *map(_plain, templates),
        _plain(_workflow(pipeline, spec, schedule)),
    ]


def _shared_templates(steps: dict[str, Task]) -> dict[str, str]:
    """Step -> the first step that is the same but for its arguments; they share a template."""

    def what(task: Task) -> tuple:
        return task.component, task.cache, task.retry, task.platform

    return {name: next(n for n, other in steps.items() if what(other) == what(task)) for name, task in steps.items()}


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
    tasks = [_dag_task(pipeline, task, shared[task.name], repository, values) for task in steps.values()]
    parameters = [
        m.Parameter(name=p.name, value=values.get(p.name), description=p.description or None)
        for p in pipeline.parameters.values()
    ]
    secrets = {name for task in steps.values() for name in _pull_secrets(task)}
    return m.WorkflowSpec(
        entrypoint=pipeline.name,
        arguments=m.Arguments(parameters=parameters) if parameters else None,
        templates=[m.Template(name=pipeline.name, dag=m.DAGTemplate(tasks=tasks, fail_fast=False))],
        artifact_repository_ref=m.ArtifactRepositoryRef(config_map=f"{pipeline.name}-artifacts", key="repository"),
        artifact_gc=m.WorkflowLevelArtifactGC(strategy="OnWorkflowDeletion"),
        pod_gc=m.PodGC(strategy="OnPodSuccess"),
        ttl_strategy=m.TTLStrategy(seconds_after_completion=KEEP_SECONDS),
        security_context=_pod_security(),
        image_pull_secrets=[m.LocalObjectReference(name=name) for name in sorted(secrets)] or None,
    )


def _values(pipeline: Pipeline, given: dict[str, object], complete: bool) -> dict[str, str]:
    """Pipeline parameters as Argo's texts; one without a value is refused where they must be `complete`."""
    values = pipeline.arguments(given, complete)
    return {name: _text(value, f"parameter {name}") for name, value in values.items() if value is not None}


def _dag_task(
    pipeline: Pipeline, task: Task, template: str, repository: Repository, values: dict[str, str]
) -> m.DAGTask:
    for parameter in task.component.parameters.values():
        if parameter.default is None and not parameter.required and parameter.name not in task.parameters:
            raise GraphError(f"task {task.name}: Argo has no value for parameter {parameter.name}, and so wants one")
    parameters = [
        m.Parameter(name=name, value=_wired(task, name, source, nested=True))
        for name, source in task.parameters.items()
    ]
    artifacts = []
    for port, source in task.artifacts.items():
        producer = pipeline.tasks[source.task]
        imported = isinstance(producer.component.executor, Importer)
        said = json.dumps(producer.component.executor.metadata) if imported else _metadata_of(source)
        parameters.append(m.Parameter(name=f"{port}-metadata", value=said))
        artifacts.append(_imported(producer, port, repository, values) if imported else _passed(source, port))
    given = m.Arguments(parameters=parameters or None, artifacts=artifacts or None)
    if task.when or task.behind:
        raise GraphError(f"task {task.name}: conditions and exit handlers are not supported on Argo")
    upstream = [f"{name}.Succeeded" for name in _steps_before(pipeline, task)]
    return m.DAGTask(
        name=task.name,
        template_ref=m.TemplateRef(name=f"{pipeline.name}-{template}", template=template),
        arguments=given if parameters or artifacts else None,
        depends=" && ".join(upstream) or None,
    )


def _steps_before(pipeline: Pipeline, task: Task) -> list[str]:
    """The steps that a step waits for; an importer is none, what the importer waits for is."""
    found = set()
    for name in task.after:
        before = pipeline.tasks[name]
        imported = isinstance(before.component.executor, Importer)
        found |= set(_steps_before(pipeline, before)) if imported else {name}
    return sorted(found)


def _wired(task: Task, name: str, source: Source, nested: bool = False) -> str:
    """The value of a step's parameter, or the reference to it; a constant text may hold other parameters (`nested`)."""
    if isinstance(source, Argument):
        return f"{{{{workflow.parameters.{source.name}}}}}"
    if isinstance(source, Output):
        return f"{{{{tasks.{source.task}.outputs.parameters.{source.key}}}}}"
    where = f"task {task.name}, parameter {name}"
    if not nested or not isinstance(source.value, str):
        return _text(source.value, where)

    def reference(inner: str) -> str:
        found = re.fullmatch(r"\.inputs\.parameters\['([^']+)'\]", inner)
        if not found or found[1] not in task.parameters:
            raise GraphError(f"{where}: placeholder {{{{${inner}}}}} can not be filled in on Argo")
        return _wired(task, found[1], task.parameters[found[1]])

    return _substituted(source.value, reference, where)


def _metadata_of(source: Output) -> str:
    said = f"tasks['{source.task}'].outputs.parameters['{EXECUTOR_OUTPUT}']"
    return f"{{{{=toJson(jsonpath({said}, '$.artifacts.{source.key}.artifacts[0].metadata'))}}}}"


def _passed(source: Output, port: str) -> m.Artifact:
    return m.Artifact(name=port, from_=f"{{{{tasks.{source.task}.outputs.artifacts.{source.key}}}}}")


def _imported(task: Task, port: str, repository: Repository, values: dict[str, str]) -> m.Artifact:
    """The S3 location of an importer's URI: a constant, or cut from a pipeline parameter when the Workflow runs."""
    uri = task.component.executor.uri
    source = task.parameters[uri.name] if isinstance(uri, Argument) else uri
    if isinstance(source, Output):
        raise GraphError(f"task {task.name}: an importer whose URI another step makes can not be had on Argo")
    if isinstance(source, Constant):
        bucket, key = _bucket_and_key(_wired(task, "uri", source), f"task {task.name}", wanted="s3://BUCKET/KEY")
    else:
        if source.name in values:
            _bucket_and_key(values[source.name], f"parameter {source.name}", wanted="s3://BUCKET/KEY")
        cut = "sprig.regexReplaceAll('^(s3|minio|aws)://([^/]+)/(.*?)/*$', workflow.parameters['{}'], '${{{}}}')"
        bucket, key = (f"{{{{={cut.format(source.name, group)}}}}}" for group in (2, 3))
    archive = m.ArchiveStrategy(none=m.NoneStrategy())
    return m.Artifact(name=port, s3=repository.location(bucket, key), archive=archive)


def _bucket_and_key(uri: str, where: str, wanted: str) -> tuple[str, str]:
    found = re.fullmatch(r"(?:s3|minio|aws)://([^/{}]+)/?(.*?)/*", uri)
    if not found or (not found[2] and wanted.endswith("KEY")):
        raise UserError(f"{where}: {uri} is no place in a bucket; {wanted} is wanted")
    return found[1], found[2]


# ---- a step


def _workflow_template(pipeline: Pipeline, task: Task) -> m.WorkflowTemplate:
    name = f"{pipeline.name}-{task.name}"
    _check_name(name, f"task {task.name}")
    return m.WorkflowTemplate(
        api_version="argoproj.io/v1alpha1",
        kind="WorkflowTemplate",
        metadata=m.ObjectMeta(name=name),
        spec=m.WorkflowSpec(templates=[_template(pipeline, task)]),
    )


def _template(pipeline: Pipeline, task: Task) -> m.Template:
    component = task.component
    node = _pod(task)
    return m.Template(
        name=task.name,
        inputs=_inputs(component),
        outputs=_outputs(pipeline, task),
        container=_container(task, node.pop("mounts"), node.pop("env")),
        retry_strategy=_retry(task),
        memoize=_memoize(pipeline, task) if task.cache else None,
        active_deadline_seconds=int(task.timeout) if task.timeout else None,
        security_context=_pod_security(),
        **node,
    )


def _inputs(component: Component) -> m.Inputs:
    parameters = [
        m.Parameter(name=p.name, default=None if p.default is None else _text(p.default, f"parameter {p.name}"))
        for p in component.parameters.values()
    ]
    artifacts = []
    for port in component.artifacts.values():
        parameters.append(m.Parameter(name=f"{port.name}-metadata", default="{}" if port.required else ""))
        artifacts.append(m.Artifact(name=port.name, path=f"{INPUTS}/{port.name}", optional=not port.required or None))
    return m.Inputs(parameters=parameters or None, artifacts=artifacts or None)


def _outputs(pipeline: Pipeline, task: Task) -> m.Outputs:
    """Every step's outputs; a foreign command that writes no executor_output.json says nothing about its artifacts."""
    component = task.component
    silent = {"artifacts": {name: {"artifacts": [{"metadata": {}}]} for name in component.output_artifacts}}
    file = m.ValueFrom(path=f"{OUTPUTS}/executor_output.json", default=json.dumps(silent))
    parameters = [m.Parameter(name=EXECUTOR_OUTPUT, value_from=file)]
    for parameter in component.output_parameters.values():
        parameters.append(m.Parameter(name=parameter.name, value_from=m.ValueFrom(path=f"{OUTPUTS}/{parameter.name}")))
    artifacts = [
        m.Artifact(
            name=port.name,
            path=f"{OUTPUTS}/{port.name}",
            optional=not port.required or None,
            artifact_gc=None if _is_passing(pipeline, task, port) else m.ArtifactGC(strategy="Never"),
        )
        for port in component.output_artifacts.values()
    ]
    return m.Outputs(parameters=parameters, artifacts=artifacts or None)


def _is_passing(pipeline: Pipeline, task: Task, port: Port) -> bool:
    """Whether an artifact goes with its Workflow: another step takes it, no cache holds it, and it is no model."""
    taken = {(s.task, s.key) for other in pipeline.tasks.values() for s in other.artifacts.values()}
    same = [t.name for t in pipeline.tasks.values() if t.component == task.component]
    all_taken = all((name, port.name) in taken for name in same)
    return all_taken and not task.cache and port.type.get("schemaTitle") != "system.Model"


def _container(task: Task, mounts: list, env: list) -> m.Container:
    container = task.component.executor
    where = f"task {task.name}"
    return m.Container(
        image=_literal(container.image, f"{where}, image"),
        command=[_argument(part, task) for part in container.command] or None,
        args=[_argument(part, task) for part in container.args] or None,
        env=[m.EnvVar(name=k, value=_literal(v, f"{where}, env {k}")) for k, v in container.env.items()] + env or None,
        resources=_resources(task),
        volume_mounts=mounts,
        security_context=m.SecurityContext(
            allow_privilege_escalation=False, run_as_non_root=True, capabilities=m.Capabilities(drop=["ALL"])
        ),
    )


def _pod_security() -> m.PodSecurityContext:
    return m.PodSecurityContext(run_as_non_root=True, seccomp_profile=m.SeccompProfile(type="RuntimeDefault"))


def _retry(task: Task) -> m.RetryStrategy | None:
    """Again after a node that was lost, and after the exit codes of an interruption; other failures would come back."""
    retry = task.retry
    if not retry.count:
        return None
    if not float(retry.factor).is_integer():
        raise GraphError(f"task {task.name}: Argo's backoff factors are whole numbers, not {retry.factor:g}")
    codes = ", ".join(f"'{code}'" for code in WORTH_ANOTHER_TRY)
    wait = m.Backoff(duration=f"{retry.backoff:g}s", factor=int(retry.factor), cap=f"{retry.longest:g}s")
    return m.RetryStrategy(
        limit=retry.count,
        retry_policy="Always",
        expression=f"lastRetry.status == 'Error' || lastRetry.exitCode in [{codes}]",
        backoff=wait,
    )


def _memoize(pipeline: Pipeline, task: Task) -> m.Memoize:
    """Outputs depend on image, command, environment, parameters, and what is said (sha256) about input artifacts."""
    container, component = task.component.executor, task.component
    fixed = json.dumps([container.image, container.command, container.args, container.env], sort_keys=True)
    said = [*component.parameters, *(f"{port}-metadata" for port in component.artifacts)]
    inputs = ", ".join(f"inputs.parameters['{name}']" for name in said)
    digest = hashlib.sha256(fixed.encode()).hexdigest()
    cache = m.Cache(config_map=m.LocalObjectReference(name=f"{pipeline.name}-cache"))
    return m.Memoize(key=f"{{{{=sprig.sha256sum('{digest}' + toJson([{inputs}]))}}}}", max_age=CACHE_AGE, cache=cache)


# ---- the command


def _argument(text: str, task: Task) -> str:
    """A part of the command with KFP's placeholders as Argo's."""

    def reference(inner: str) -> str:
        if not inner:
            return _executor_input(task.component)
        for pattern, target in _TARGETS:
            found = re.fullmatch(pattern, inner)
            if found:
                return found.expand(target)
        raise GraphError(f"task {task.name}: placeholder {{{{${inner}}}}} is not supported on Argo")

    return _substituted(text, reference, f"task {task.name}, command")


_TARGETS = (
    (r"\.inputs\.parameters\['([^']+)'\]", r"{{inputs.parameters.\1}}"),
    (r"\.inputs\.artifacts\['([^']+)'\]\.(?:path|uri)", rf"{INPUTS}/\1"),
    (r"\.outputs\.artifacts\['([^']+)'\]\.(?:path|uri)", rf"{OUTPUTS}/\1"),
    (r"\.outputs\.parameters\['([^']+)'\]\.output_file", rf"{OUTPUTS}/\1"),
    (r"\.outputs\.output_file", f"{OUTPUTS}/executor_output.json"),
)


def _executor_input(component: Component) -> str:
    """KFP's ExecutorInput message, with Argo's references where values come in.

    No brace follows another one at once but in a reference: Argo reads from `{{` to the next `}}`.
    """
    parameters = [f"{json.dumps(p.name)}: {_as_json(p)}" for p in component.parameters.values()]
    artifacts = [f'{json.dumps(p.name)}: {{"artifacts": {_item(p)} }}' for p in component.artifacts.values()]
    outputs = {
        "parameters": {name: {"outputFile": f"{OUTPUTS}/{name}"} for name in component.output_parameters},
        "artifacts": {
            port.name: {
                "artifacts": [{"name": port.name, "type": port.type, "uri": f"{OUTPUTS}/{port.name}", "metadata": {}}]
            }
            for port in component.output_artifacts.values()
        },
        "outputFile": f"{OUTPUTS}/executor_output.json",
    }
    inputs = f'"parameterValues": {{ {", ".join(parameters)} }}, "artifacts": {{ {", ".join(artifacts)} }}'
    return f'{{"inputs": {{ {inputs} }}, "outputs": {json.dumps(outputs)} }}'


def _as_json(parameter: Parameter) -> str:
    if parameter.type == "STRING":
        return f"{{{{=toJson(inputs.parameters['{parameter.name}'])}}}}"
    return f"{{{{inputs.parameters.{parameter.name}}}}}"  # it is JSON already


def _item(port: Port) -> str:
    """The list of a port's artifacts: one, or none where an optional one is not there."""
    said = json.dumps({"name": port.name, "type": port.type, "uri": f"{INPUTS}/{port.name}"}).removesuffix("}")
    head, tail = f'[{said}, "metadata": ', " }]"
    if port.required:
        return f"{head}{{{{inputs.parameters.{port.name}-metadata}}}}{tail}"
    metadata = f"inputs.parameters['{port.name}-metadata']"
    return f"{{{{={metadata} == '' ? '[]' : '{head}' + {metadata} + '{tail}'}}}}"


# ---- resources and placement


def _resources(task: Task) -> m.ResourceRequirements | None:
    said = task.component.executor.resources
    limits, requests = {}, {}
    for key, place, name in (
        ("resourceCpuLimit", limits, "cpu"),
        ("resourceMemoryLimit", limits, "memory"),
        ("resourceCpuRequest", requests, "cpu"),
        ("resourceMemoryRequest", requests, "memory"),
    ):
        if said.get(key):
            place[name] = _literal(said[key], f"task {task.name}, {key}")
    if task.component.executor.accelerators:
        accelerator = said["accelerator"]
        kind = accelerator.get("resourceType") or accelerator.get("type")
        limits[_literal(kind, f"task {task.name}, accelerator")] = str(task.component.executor.accelerators)
    return m.ResourceRequirements(limits=limits or None, requests=requests or None) if limits or requests else None


def _pod(task: Task) -> dict:
    """What the platform document says about the step's pod, as fields of a template, and `mounts` and `env`."""
    volumes = [m.Volume(name="outputs", empty_dir=m.EmptyDirVolumeSource())]
    mounts = [m.VolumeMount(name="outputs", mount_path=OUTPUTS)]
    pod = {"volumes": volumes, "mounts": mounts, "env": []}
    for key, value in task.platform.items():
        if key == "emptyDirMounts":
            for item in value:
                source = m.EmptyDirVolumeSource(medium=item.get("medium"), size_limit=item.get("sizeLimit"))
                volumes.append(m.Volume(name=item["volumeName"], empty_dir=source))
                mounts.append(m.VolumeMount(name=item["volumeName"], mount_path=item["mountPath"]))
        elif key == "nodeSelector" and set(value) == {"labels"}:
            pod["node_selector"] = dict(value["labels"])
        elif key == "tolerations":
            pod["tolerations"] = [m.Toleration(**_only(item, _TOLERATION, task, key)) for item in value]
        elif key == "secretAsEnv":
            pod["env"] += [entry for item in value for entry in _secret_env(task, item)]
        elif key not in ("activeDeadlineSeconds", "imagePullSecret"):  # those have places of their own
            raise GraphError(f"task {task.name}: {key} of the platform document is not supported on Argo")
    return pod


_TOLERATION = {
    "key": "key",
    "operator": "operator",
    "value": "value",
    "effect": "effect",
    "tolerationSeconds": "toleration_seconds",
}


def _only(item: dict, known: dict[str, str], task: Task, where: str) -> dict:
    for key in item:
        if key not in known:
            raise GraphError(f"task {task.name}: {key} of {where} is not supported on Argo")
    return {known[key]: value for key, value in item.items()}


def _secret_env(task: Task, item: dict) -> list[m.EnvVar]:
    name, optional = _secret_name(task, item, "secretAsEnv"), item.get("optional")
    return [
        m.EnvVar(
            name=pair["envVar"],
            value_from=m.EnvVarSource(
                secret_key_ref=m.SecretKeySelector(name=name, key=pair["secretKey"], optional=optional)
            ),
        )
        for pair in item["keyToEnv"]
    ]


def _pull_secrets(task: Task) -> list[str]:
    return [_secret_name(task, item, "imagePullSecret") for item in task.platform.get("imagePullSecret", [])]


def _secret_name(task: Task, item: dict, where: str) -> str:
    said = item.get("secretNameParameter", {}).get("runtimeValue", {}).get("constant") or item.get("secretName")
    if not said:
        raise GraphError(f"task {task.name}: a name of {where} that is a parameter is not supported on Argo; use text")
    return _literal(said, f"task {task.name}, {where}")


# ---- texts


def _text(value: object, where: str) -> str:
    """A value as Argo's parameters have it: text as it is, everything else as JSON."""
    return _literal(value if isinstance(value, str) else json.dumps(value), where)


def _literal(text: str, where: str) -> str:
    if "{{" in text:
        raise GraphError(
            f"{where}: Argo would take {{{{ in {text[:60]!r} for a reference of its own; write it otherwise"
        )
    return text


def _substituted(text: str, reference, where: str) -> str:
    """`text` with every {{$...}} of KFP replaced; the rest may hold no reference."""
    parts = re.split(r"\{\{\$(.*?)\}\}", text)
    return "".join(reference(part) if index % 2 else _literal(part, where) for index, part in enumerate(parts))


def _check_name(name: str, what: str) -> None:
    if not NAME.fullmatch(name) or len(name) > LONGEST_NAME:
        raise GraphError(
            f"{what}: {name} can not be a name on Kubernetes; lower-case letters, digits and dashes, at most"
            f" {LONGEST_NAME}, are wanted"
        )


def _plain(model) -> dict:
    return model.model_dump(mode="json", exclude_none=True, by_alias=True)
