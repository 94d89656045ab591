"""A step as an Argo template: container, message to its command, inputs and outputs, retries, resources, placement.

A step's command stays `depth_net-launch ACTION EXECUTOR_INPUT_JSON`. Its template writes that message: parameters go in
as JSON (text through the expression function toJson), artifacts lie in INPUTS and OUTPUTS. What a producer says about
an artifact (kind, sha256, ...) comes along as the parameter `<port>-metadata`. A list of artifacts is taken in as the
ports `<port>-0`, `<port>-1`, ...
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import replace

import yaml

from stereo_core.errors import WORTH_ANOTHER_TRY, UserError
from stereo_core.orchestration.argo.values import literal, substituted, text_of
from stereo_core.orchestration.dag import (
    Argument,
    Collected,
    Constant,
    GraphError,
    Output,
    Parameter,
    Pipeline,
    Port,
    Task,
    outputs_in,
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
LAUNCHER = "depth_net-launch"  # what our images run
USER = 10001  # as whom
WRITABLE = {"scratch": "/tmp", "cache": "/cache"}  # where they write
# Argo's own containers take theirs from the controller's settings, which say nothing unless an administrator has.
_LEAST = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
EXECUTOR_SECURITY = json.dumps(
    {
        "initContainers": [{"name": "init", "securityContext": _LEAST}],
        "containers": [{"name": "wait", "securityContext": _LEAST}],
    }
)
COMES_AGAIN = "lastRetry.message matches 'OOMKilled|longer than the specified deadline'"
CACHE_AGE = "720h"  # after which a cached step runs again
TASK_UID = "task-uid"  # input parameter of a cached step: its key may refer to inputs only, Argo fills those in last


def template_of(pipeline: Pipeline, task: Task) -> m.Template:
    node = _pod(task)
    return m.Template(
        name=task.name,
        inputs=_inputs(task),
        outputs=_outputs(pipeline, task),
        container=_container(task, node.pop("mounts"), node.pop("env")),
        retry_strategy=_retry(task),
        memoize=_memoize(pipeline, task) if _is_cached(task) else None,
        active_deadline_seconds=int(task.timeout) if task.timeout else None,
        security_context=pod_security(),
        pod_spec_patch=EXECUTOR_SECURITY,
        **node,
    )


def ports_of(task: Task, port: Port) -> list[Port]:
    """A port as Argo has it: one for a list is as many as the task is given artifacts."""
    if not port.many:
        return [port]
    given = task.artifacts.get(port.name, Collected(()))
    return [replace(port, name=f"{port.name}-{index}") for index in range(len(given.rounds))]


def _ports(task: Task) -> list[Port]:
    return [one for port in task.component.artifacts.values() for one in ports_of(task, port)]


def _inputs(task: Task) -> m.Inputs:
    parameters = [
        m.Parameter(name=p.name, default=None if p.default is None else text_of(p.default, f"parameter {p.name}"))
        for p in task.component.parameters.values()
    ]
    artifacts = []
    for port in _ports(task):
        parameters.append(m.Parameter(name=f"{port.name}-metadata", default="{}" if port.required else ""))
        artifacts.append(m.Artifact(name=port.name, path=f"{INPUTS}/{port.name}", optional=not port.required or None))
    if wants_uid(task):
        parameters.append(m.Parameter(name=TASK_UID))
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
    sources = [source for other in pipeline.tasks.values() for source in other.artifacts.values()]
    taken = set().union(*map(outputs_in, sources))
    same = [t.name for t in pipeline.tasks.values() if t.component == task.component]
    all_taken = all(Output(name, port.name) in taken for name in same)
    return all_taken and not task.cache and port.type.get("schemaTitle") != "system.Model"


def _container(task: Task, mounts: list, env: list) -> m.Container:
    container = task.component.executor
    where = f"task {task.name}"
    return m.Container(
        image=_fixed(container.image, f"{where}, image"),
        command=[_argument(part, task) for part in container.command] or None,
        args=[_argument(part, task) for part in container.args] or None,
        env=[m.EnvVar(name=k, value=_fixed(v, f"{where}, env {k}")) for k, v in container.env.items()] + env or None,
        resources=_resources(task),
        volume_mounts=mounts,
        security_context=m.SecurityContext(
            allow_privilege_escalation=False,
            run_as_non_root=True,
            capabilities=m.Capabilities(drop=["ALL"]),
            read_only_root_filesystem=_is_ours(task) or None,
        ),
    )


def _is_ours(task: Task) -> bool:
    """Whether it runs in an image of this library, of which is known where it writes."""
    return task.component.executor.command[:1] == (LAUNCHER,)


def pod_security() -> m.PodSecurityContext:
    """One user for all containers of a pod: files that Argo's own bring may be read by their owner alone."""
    profile = m.SeccompProfile(type="RuntimeDefault")
    return m.PodSecurityContext(run_as_non_root=True, run_as_user=USER, run_as_group=0, seccomp_profile=profile)


def _retry(task: Task) -> m.RetryStrategy | None:
    """Again after a node that was lost, and after the exit codes of an interruption; other failures would come back.

    So would a container that wanted more memory than it may have and a step that its time limit stopped, which end
    with the codes of SIGKILL and SIGTERM: Argo's message tells them (main: OOMKilled (exit code 137); Pod was active on
    the node longer than the specified deadline).
    """
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
        expression=f"lastRetry.status == 'Error' || (lastRetry.exitCode in [{codes}] && !({COMES_AGAIN}))",
        backoff=wait,
    )


def _is_cached(task: Task) -> bool:
    return task.cache and not task.exit


def wants_uid(task: Task) -> bool:
    """Whether the step's cache may need what no other task of any run has."""
    return bool(_is_cached(task) and _ports(task))


def _memoize(pipeline: Pipeline, task: Task) -> m.Memoize:
    """Outputs depend on image, command, environment, parameters, and what is said (sha256) about input artifacts.

    An artifact of which no sha256 is said may be another one the next time: the task of this run stands for it.
    """
    container = task.component.executor
    fixed = json.dumps([container.image, container.command, container.args, container.env], sort_keys=True)
    inputs = [f"inputs.parameters['{name}']" for name in task.component.parameters]
    for port in _ports(task):
        said = f"inputs.parameters['{port.name}-metadata']"
        inputs.append(f"({said} == '' || {said} contains '\"sha256\":' ? {said} : inputs.parameters['{TASK_UID}'])")
    digest = hashlib.sha256(fixed.encode()).hexdigest()
    key = f"{{{{=sprig.sha256sum('{digest}' + toJson([{', '.join(inputs)}]))}}}}"
    cache = m.Cache(config_map=m.LocalObjectReference(name=f"{pipeline.name}-cache"))
    return m.Memoize(key=key, max_age=CACHE_AGE, cache=cache)


# ---- the command


def _argument(text: str, task: Task) -> str:
    """A part of the command with KFP's placeholders as Argo's."""

    def reference(inner: str) -> str:
        if not inner:
            return _executor_input(task)
        for pattern, target in _TARGETS:
            found = re.fullmatch(pattern, inner)
            if found:
                return found.expand(target)
        raise GraphError(f"task {task.name}: placeholder {{{{${inner}}}}} is not supported on Argo")

    return substituted(text, reference, f"task {task.name}, command")


_TARGETS = (
    (r"\.inputs\.parameters\['([^']+)'\]", r"{{inputs.parameters.\1}}"),
    (r"\.inputs\.artifacts\['([^']+)'\]\.(?:path|uri)", rf"{INPUTS}/\1"),
    (r"\.outputs\.artifacts\['([^']+)'\]\.(?:path|uri)", rf"{OUTPUTS}/\1"),
    (r"\.outputs\.parameters\['([^']+)'\]\.output_file", rf"{OUTPUTS}/\1"),
    (r"\.outputs\.output_file", f"{OUTPUTS}/executor_output.json"),
)


def _executor_input(task: Task) -> str:
    """KFP's ExecutorInput message, with Argo's references where values come in.

    No brace follows another one at once but in a reference: Argo reads from `{{` to the next `}}`.
    """
    component = task.component
    parameters = [f"{json.dumps(p.name)}: {_as_json(p)}" for p in component.parameters.values()]
    artifacts = [f'{json.dumps(p.name)}: {{"artifacts": {_items(task, p)} }}' for p in component.artifacts.values()]
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


def _items(task: Task, port: Port) -> str:
    """The list of a port's artifacts; it is empty where an optional one is not there."""
    if port.required or port.many:
        items = (_item(one, f"{{{{inputs.parameters.{one.name}-metadata}}}}") for one in ports_of(task, port))
        return f"[{', '.join(items)}]"
    metadata = f"inputs.parameters['{port.name}-metadata']"
    head, tail = _item(port, "|").split("|")
    return f"{{{{={metadata} == '' ? '[]' : '[{head}' + {metadata} + '{tail}]'}}}}"


def _item(port: Port, metadata: str) -> str:
    said = json.dumps({"name": port.name, "type": port.type, "uri": f"{INPUTS}/{port.name}"}).removesuffix("}")
    return f'{said}, "metadata": {metadata} }}'


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
            place[name] = _fixed(said[key], f"task {task.name}, {key}")
    if task.component.executor.accelerators:
        accelerator = said["accelerator"]
        kind = accelerator.get("resourceType") or accelerator.get("type")
        limits[_fixed(kind, f"task {task.name}, accelerator")] = str(task.component.executor.accelerators)
    return m.ResourceRequirements(limits=limits or None, requests=requests or None) if limits or requests else None


def _fixed(text: str, where: str) -> str:
    """A value of a template, which is the same in every run."""
    if "{{$" in text:
        raise GraphError(f"{where}: a value from a parameter can not be had on Argo; write it as text")
    return literal(text, where)


def _pod(task: Task) -> dict:
    """What the platform document says about the step's pod, as fields of a template, and `mounts` and `env`."""
    volumes = [m.Volume(name="outputs", empty_dir=m.EmptyDirVolumeSource())]
    mounts = [m.VolumeMount(name="outputs", mount_path=OUTPUTS)]
    for name, path in WRITABLE.items() if _is_ours(task) else ():
        volumes.append(m.Volume(name=name, empty_dir=m.EmptyDirVolumeSource()))
        mounts.append(m.VolumeMount(name=name, mount_path=path))
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
        elif key in ("secretAsEnv", "configMapAsEnv"):
            pod["env"] += [entry for item in value for entry in _env_of(task, key, item)]
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


def _env_of(task: Task, where: str, item: dict) -> list[m.EnvVar]:
    """Keys of a secret or a ConfigMap as environment variables."""
    kind = where.removesuffix("AsEnv")
    name, found = _name_of(task, item, kind, where), []
    for pair in item["keyToEnv"]:
        key = {"name": name, "key": pair[f"{kind}Key"], "optional": item.get("optional")}
        if kind == "secret":
            source = m.EnvVarSource(secret_key_ref=m.SecretKeySelector(**key))
        else:
            source = m.EnvVarSource(config_map_key_ref=m.ConfigMapKeySelector(**key))
        found.append(m.EnvVar(name=pair["envVar"], value_from=source))
    return found


def pull_secrets(task: Task) -> list[str]:
    said = task.platform.get("imagePullSecret", [])
    return [_name_of(task, item, "secret", "imagePullSecret") for item in said]


def _name_of(task: Task, item: dict, kind: str, where: str) -> str:
    said = item.get(f"{kind}NameParameter") or Constant(item.get(f"{kind}Name"))
    if isinstance(said, Argument):
        return f"{{{{workflow.parameters.{said.name}}}}}"
    if not isinstance(said, Constant) or not said.value:
        raise GraphError(f"task {task.name}: a name of {where} is wanted: text or a pipeline parameter")
    return literal(said.value, f"task {task.name}, {where}")


def plain(model) -> dict:
    """A hera model as a document."""
    return model.model_dump(mode="json", exclude_none=True, by_alias=True)
