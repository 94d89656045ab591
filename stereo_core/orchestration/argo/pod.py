"""A step's pod: its resources, its placement, its environment, and who it runs as."""

from __future__ import annotations

import json
from typing import Any

from stereo_core.orchestration.argo.message import OUTPUTS
from stereo_core.orchestration.argo.models import m
from stereo_core.orchestration.argo.values import literal
from stereo_core.orchestration.dag import LAUNCHER, Argument, Constant, GraphError, Task
from stereo_core.orchestration.namespace import USER

WRITABLE = {"scratch": "/tmp", "cache": "/cache"}  # where they write
GRACE = 120  # s from SIGTERM to SIGKILL: a training ends its step and writes a checkpoint
# Argo's own containers take theirs from the controller's settings, which say nothing unless an administrator has.
_LEAST = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}


def pod_security() -> m.PodSecurityContext:
    """One user for all containers of a pod: files that Argo's own bring may be read by their owner alone."""
    profile = m.SeccompProfile(type="RuntimeDefault")
    return m.PodSecurityContext(run_as_non_root=True, run_as_user=USER, run_as_group=0, seccomp_profile=profile)


def pod_patch() -> str:
    """What Argo's template has no field for."""
    containers = {kind: [{"name": name, "securityContext": _LEAST}] for kind, name in _ARGOS_OWN.items()}
    return json.dumps({"terminationGracePeriodSeconds": GRACE} | containers)


_ARGOS_OWN = {"initContainers": "init", "containers": "wait"}


def is_ours(task: Task) -> bool:
    """Whether it runs in an image of this library, of which is known where it writes."""
    return task.container.command[:1] == (LAUNCHER,)


def resources(task: Task) -> m.ResourceRequirements | None:
    said = task.container.resources
    limits: dict[str, m.Quantity] = {}
    requests: dict[str, m.Quantity] = {}
    for key, place, name in (
        ("resourceCpuLimit", limits, "cpu"),
        ("resourceMemoryLimit", limits, "memory"),
        ("resourceCpuRequest", requests, "cpu"),
        ("resourceMemoryRequest", requests, "memory"),
    ):
        if said.get(key):
            place[name] = m.Quantity(fixed(said[key], f"task {task.name}, {key}"))
    if task.container.accelerators:
        accelerator = said["accelerator"]
        kind = accelerator.get("resourceType") or accelerator.get("type")
        limits[fixed(kind, f"task {task.name}, accelerator")] = m.Quantity(str(task.container.accelerators))
    return m.ResourceRequirements(limits=limits or None, requests=requests or None) if limits or requests else None


def fixed(text: str, where: str) -> str:
    """A value of a template, which is the same in every run."""
    if "{{$" in text:
        raise GraphError(f"{where}: a value from a parameter can not be had on Argo; write it as text")
    return literal(text, where)


def placement(task: Task) -> dict[str, Any]:
    """What the platform document says about the step's pod, as fields of a template, and `mounts` and `env`."""
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


def _only(item: dict[str, Any], known: dict[str, str], task: Task, where: str) -> dict[str, Any]:
    for key in item:
        if key not in known:
            raise GraphError(f"task {task.name}: {key} of {where} is not supported on Argo")
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
    said = task.platform.get("imagePullSecret", [])
    return [_name_of(task, item, "secret", "imagePullSecret") for item in said]


def _name_of(task: Task, item: dict[str, Any], kind: str, where: str) -> str:
    said = item.get(f"{kind}NameParameter") or Constant(item.get(f"{kind}Name"))
    if isinstance(said, Argument):
        return f"{{{{workflow.parameters.{said.name}}}}}"
    if not isinstance(said, Constant) or not isinstance(said.value, str) or not said.value:
        raise GraphError(f"task {task.name}: a name of {where} is wanted: text or a pipeline parameter")
    return literal(said.value, f"task {task.name}, {where}")
