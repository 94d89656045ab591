"""A step as Argo templates: container, inputs, outputs and retries. A cached step has a DAG around it (cache.py).

A step's command is `depth_net-launch ACTION EXECUTOR_INPUT_JSON`. The template writes that message (message.py):
parameters go in as JSON, artifacts are in the folders INPUTS and OUTPUTS. An artifact's metadata (kind, sha256, ...)
comes as the parameter `<port>-metadata`. A list of artifacts becomes the ports `<port>-0`, `<port>-1`, ...
"""

from __future__ import annotations

import json
from typing import Any

from stereo_core.errors import WORTH_ANOTHER_TRY
from stereo_core.orchestration.argo.cache import EXECUTOR_OUTPUT, memoized
from stereo_core.orchestration.argo.message import INPUTS, OUTPUTS, argument, ports_of
from stereo_core.orchestration.argo.models import m
from stereo_core.orchestration.argo.pod import fixed, is_ours, placement, pod_patch, pod_security, resources
from stereo_core.orchestration.argo.repository import Repository
from stereo_core.orchestration.argo.values import text_of
from stereo_core.orchestration.dag import GraphError, Output, Pipeline, Port, Task, outputs_in

# Failures that a retry would meet again, by Argo's messages. The last ones are S3 errors about a wrong secret, account
# or location (if the executor cannot fetch an artifact, the pod ends as an Error).
COMES_AGAIN = (
    "lastRetry.message matches '(?i)OOMKilled|longer than the specified deadline|access ?denied|access key id"
    "|signature we calculated|bucket does not exist|key does not exist'"
)


def templates_of(pipeline: Pipeline, task: Task, repository: Repository) -> list[m.Template]:
    """The templates of a step: first the one that tasks call, with the step's name; last the one with the container."""
    if not task.cache:
        return [_run(pipeline, task, task.name, repository)]
    run = _run(pipeline, task, f"{task.name}-run", repository)
    return [memoized(pipeline, task, run, repository), run]


def _run(pipeline: Pipeline, task: Task, name: str, repository: Repository) -> m.Template:
    node = placement(task)
    return m.Template(
        name=name,
        inputs=_inputs(task),
        outputs=_outputs(pipeline, task, repository),
        container=_container(task, node.pop("mounts"), node.pop("env")),
        retry_strategy=_retry(task),
        active_deadline_seconds=m.IntOrString(int(task.timeout)) if task.timeout else None,
        security_context=pod_security(),
        pod_spec_patch=pod_patch(),
        **node,
    )


def _inputs(task: Task) -> m.Inputs:
    parameters = [
        m.Parameter(name=p.name, default=None if p.default is None else text_of(p.default, f"parameter {p.name}"))
        for p in task.component.parameters.values()
    ]
    artifacts = []
    for port in (one for whole in task.component.artifacts.values() for one in ports_of(task, whole)):
        parameters.append(m.Parameter(name=f"{port.name}-metadata", default="{}" if port.required else ""))
        artifacts.append(m.Artifact(name=port.name, path=f"{INPUTS}/{port.name}", optional=not port.required or None))
    return m.Inputs(parameters=parameters or None, artifacts=artifacts or None)


def _outputs(pipeline: Pipeline, task: Task, repository: Repository) -> m.Outputs:
    """A step's outputs. A command that is not ours may write no executor_output.json; then there is no metadata."""
    component = task.component
    silent: dict[str, Any] = {
        "artifacts": {name: {"artifacts": [{"metadata": {}}]} for name in component.output_artifacts}
    }
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
            **_page(port, repository),
        )
        for port in component.output_artifacts.values()
    ]
    return m.Outputs(parameters=parameters, artifacts=artifacts or None)


def _page(port: Port, repository: Repository) -> dict[str, Any]:
    """Store a page unpacked, so that Argo's UI shows it; other artifacts are archives, which the UI offers to download.

    A key without a bucket belongs to the Workflow's repository (argo-workflows.readthedocs.io: key-only-artifacts).
    """
    if port.type.get("schemaTitle") != "system.HTML":
        return {}
    key = f"{repository.key_format}/{port.name}.html"
    return {"s3": m.S3Artifact(key=key), "archive": m.ArchiveStrategy(none=m.NoneStrategy())}


def _is_passing(pipeline: Pipeline, task: Task, port: Port) -> bool:
    """Whether an artifact is deleted with its Workflow: only another step uses it, it is not cached and not a model."""
    sources = [source for other in pipeline.tasks.values() for source in other.artifacts.values()]
    taken = set().union(*map(outputs_in, sources))
    same = [t.name for t in pipeline.tasks.values() if t.component == task.component]
    all_taken = all(Output(name, port.name) in taken for name in same)
    return all_taken and not task.cache and port.type.get("schemaTitle") != "system.Model"


def _container(task: Task, mounts: list[Any], env: list[Any]) -> m.Container:
    container = task.container
    where = f"task {task.name}"
    return m.Container(
        image=fixed(container.image, f"{where}, image"),
        command=[argument(part, task) for part in container.command] or None,
        args=[argument(part, task) for part in container.args] or None,
        env=[m.EnvVar(name=k, value=fixed(v, f"{where}, env {k}")) for k, v in container.env.items()] + env or None,
        resources=resources(task),
        volume_mounts=mounts,
        security_context=m.SecurityContext(
            allow_privilege_escalation=False,
            run_as_non_root=True,
            capabilities=m.Capabilities(drop=["ALL"]),
            read_only_root_filesystem=is_ours(task) or None,
        ),
    )


def _retry(task: Task) -> m.RetryStrategy | None:
    """Retry after a lost node and after the exit codes of an interruption; other failures would happen again.

    An out-of-memory kill and a time limit would happen again too, but they end with the codes of SIGKILL and SIGTERM.
    Argo's message identifies them (main: OOMKilled (exit code 137); Pod was active on the node longer than the
    specified deadline). There is no `maxDuration`, because it limits all attempts together.
    """
    retry = task.retry
    if not retry.count:
        return None
    if not float(retry.factor).is_integer():
        raise GraphError(
            f"task {task.name}: Argo needs a whole number as backoff factor, not {retry.factor:g}; set another "
            "backoff_factor in set_retry"
        )
    codes = ", ".join(f"'{code}'" for code in WORTH_ANOTHER_TRY)
    cap = f"{retry.longest:g}s" if retry.count > 1 else None  # 3.6 does not support cap, and a single wait needs none
    return m.RetryStrategy(
        limit=m.IntOrString(retry.count),
        retry_policy="Always",
        expression=f"(lastRetry.status == 'Error' || lastRetry.exitCode in [{codes}]) && !({COMES_AGAIN})",
        backoff=m.Backoff(duration=f"{retry.backoff:g}s", factor=m.IntOrString(int(retry.factor)), cap=cap),
    )
