"""A step's pod: resources, placement, environment, and user."""

from __future__ import annotations

import json
from typing import Any

from stereo_core.orchestration.argo.message import OUTPUTS
from stereo_core.orchestration.argo.models import m
from stereo_core.orchestration.argo.values import literal
from stereo_core.orchestration.dag import LAUNCHER, Argument, Constant, GraphError, Task
from stereo_core.orchestration.namespace import USER

WRITABLE = {"scratch": "/tmp", "cache": "/cache"}  # volume -> the only folders that our images write to
GRACE = 120  # s from SIGTERM to SIGKILL, for training to finish its step and write a checkpoint
_REMOVE = "remove it from the pipeline, or run the pipeline on Kubeflow"
# Argo's own containers take theirs from the controller's settings, which are empty unless an administrator sets them.
_LEAST = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}


def pod_security() -> m.PodSecurityContext:
    """One user for all containers of a pod: files that Argo's own containers write are readable only by their owner."""
    profile = m.SeccompProfile(type="RuntimeDefault")
    return m.PodSecurityContext(run_as_non_root=True, run_as_user=USER, run_as_group=0, seccomp_profile=profile)


def pod_patch() -> str:
    """Pod settings for which Argo's template has no field."""
    containers = {kind: [{"name": name, "securityContext": _LEAST}] for kind, name in _ARGOS_OWN.items()}
    return json.dumps({"terminationGracePeriodSeconds": GRACE} | containers)


_ARGOS_OWN = {"initContainers": "init", "containers": "wait"}


def is_ours(task: Task) -> bool:
    """Whether the step runs this library's image, whose writable folders are known."""
    return task.container.command[:1] == (LAUNCHER,)


def resources(task: Task) -> m.ResourceRequirements | None:
    requested = task.container.resources
    limits: dict[str, m.Quantity] = {}
    requests: dict[str, m.Quantity] = {}
    for key, place, name in (
        ("resourceCpuLimit", limits, "cpu"),
        ("resourceMemoryLimit", limits, "memory"),
        ("resourceCpuRequest", requests, "cpu"),
        ("resourceMemoryRequest", requests, "memory"),
    ):
        if requested.get(key):
            place[name] = m.Quantity(fixed(requested[key], f"task {task.name}, {key}"))
    if task.container.accelerators:
        accelerator = requested["accelerator"]
        kind = accelerator.get("resourceType") or accelerator.get("type")
        limits[fixed(kind, f"task {task.name}, accelerator")] = m.Quantity(str(task.container.accelerators))
    return m.ResourceRequirements(limits=limits or None, requests=requests or None) if limits or requests else None


def fixed(text: str, where: str) -> str:
    """A value of a template, which must be the same in every run."""
    if "{{$" in text:
        raise GraphError(f"{where}: Argo cannot take this value from a pipeline parameter; write a literal")
    return literal(text, where)


def placement(task: Task) -> dict[str, Any]:
    """The platform document's settings for the step's pod, as fields of a template, `mounts` and `env`."""
    volumes = [m.Volume(name="outputs", empty_dir=m.EmptyDirVolumeSource())]
    mounts = [m.VolumeMount(name="outputs", mount_path=OUTPUTS)]
    for name, path in WRITABLE.items() if is_ours(task) else ():
        volumes.append(m.Volume(name=name, empty_dir=m.EmptyDirVolumeSource()))
        mounts.append(m.VolumeMount(name=name, mount_path=path))
    pod: dict[str, Any] = {"volumes": volumes, "mounts": mounts, "env": []}
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
        elif key not in ("activeDeadlineSeconds", "imagePullSecret"):  # handled elsewhere
            raise GraphError(f"task {task.name}: the Kubernetes setting {key} is not supported on Argo; {_REMOVE}")
    return pod


_TOLERATION = {
    "key": "key",
    "operator": "operator",
    "value": "value",
    "effect": "effect",
    "tolerationSeconds": "toleration_seconds",
}


def _only(item: dict[str, Any], known: dict[str, str], task: Task, where: str) -> dict[str, Any]:
    for key in item:
        if key not in known:
            raise GraphError(f"task {task.name}: {key} in {where} is not supported on Argo; {_REMOVE}")
    return {known[key]: value for key, value in item.items()}


def _env_of(task: Task, where: str, item: dict[str, Any]) -> list[m.EnvVar]:
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
    secrets = task.platform.get("imagePullSecret", [])
    return [_name_of(task, item, "secret", "imagePullSecret") for item in secrets]


def _name_of(task: Task, item: dict[str, Any], kind: str, where: str) -> str:
    name = item.get(f"{kind}NameParameter") or Constant(item.get(f"{kind}Name"))
    if isinstance(name, Argument):
        return f"{{{{workflow.parameters.{name.name}}}}}"
    if not isinstance(name, Constant) or not isinstance(name.value, str) or not name.value:
        raise GraphError(
            f"task {task.name}: {where} has no name; give the name of the {kind} as text or as a pipeline parameter"
        )
    return literal(name.value, f"task {task.name}, {where}")
