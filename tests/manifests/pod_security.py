"""Kubernetes' pod security standard `restricted`, as far as it can be read from a manifest."""

from __future__ import annotations

import json
from collections.abc import Iterator

ARGOEXEC = "argoexec"
VOLUMES = {
    "configMap",
    "csi",
    "downwardAPI",
    "emptyDir",
    "ephemeral",
    "persistentVolumeClaim",
    "projected",
    "secret",
}

CONTAINERS = ("containers", "initContainers", "ephemeralContainers")
PROBES = ("livenessProbe", "readinessProbe", "startupProbe")
SELINUX = ("", "container_t", "container_init_t", "container_kvm_t", "container_engine_t")


def pods(document: dict) -> Iterator[dict]:
    """The pod specs that a document leads to."""
    spec = document.get("spec", {})
    match document["kind"]:
        case "TrainingRuntime":
            for job in spec["template"]["spec"]["replicatedJobs"]:
                yield job["template"]["spec"]["template"]["spec"]
        case "Experiment":
            yield spec["trialTemplate"]["trialSpec"]["spec"]["template"]["spec"]
        case "WorkflowTemplate" | "Workflow":
            for template in spec["templates"]:
                if "dag" not in template:
                    yield _argo_pod(template)
        case kind if "containers" in str(spec):
            raise ValueError(f"{kind}: where its pods stand is not known here")


def _argo_pod(template: dict) -> dict:
    """A step's pod with the containers that Argo adds, as it makes them without settings of an administrator: their
    image runs as root; then the template's patch, which may change everything."""
    main = template["container"] | {"name": "main"}
    own = {"containers": {"main": main, "wait": {"image": ARGOEXEC}}, "initContainers": {"init": {"image": ARGOEXEC}}}
    patch = json.loads(template.get("podSpecPatch", "{}"))
    pod = template | {key: value for key, value in patch.items() if key not in own}
    for key, containers in own.items():
        for change in patch.get(key, []):
            containers[change["name"]] = containers.get(change["name"], {}) | change
        pod[key] = [*containers.values()]
    pod["containers"] += template.get("sidecars", [])
    return pod


def violations(pod: dict) -> Iterator[str]:
    """What `restricted` would refuse in a pod spec, and any sysctl, of which it allows some."""
    for key in ("hostNetwork", "hostPID", "hostIPC"):
        if pod.get(key):
            yield key
    for volume in pod.get("volumes", []):
        yield from (f"volume of {kind}" for kind in set(volume) - {"name"} - VOLUMES)
    shared = pod.get("securityContext", {})
    yield from _refused_anywhere(shared)
    for container in (c for key in CONTAINERS for c in pod.get(key, [])):
        own = container.get("securityContext", {})
        both = shared | own
        yield from _refused_anywhere(own)
        if both.get("runAsNonRoot") is not True:
            yield "runAsNonRoot"
        if container.get("image") == ARGOEXEC and "runAsUser" not in both:  # its image runs as root
            yield "runAsUser"
        if both.get("seccompProfile", {}).get("type") is None:
            yield "seccompProfile"
        if own.get("allowPrivilegeEscalation") is not False:
            yield "allowPrivilegeEscalation"
        capabilities = own.get("capabilities", {})
        if "ALL" not in capabilities.get("drop", []) or set(capabilities.get("add", [])) - {"NET_BIND_SERVICE"}:
            yield "capabilities"
        if any(port.get("hostPort") for port in container.get("ports", [])):
            yield "hostPort"
        hooks = [container.get(key, {}) for key in PROBES] + [*container.get("lifecycle", {}).values()]
        if any(call.get("host") for hook in hooks for call in hook.values() if isinstance(call, dict)):
            yield "host of a probe"


def _refused_anywhere(context: dict) -> Iterator[str]:
    """What neither a pod's nor a container's securityContext may say."""
    if context.get("runAsNonRoot") is False:
        yield "runAsNonRoot"
    if context.get("runAsUser") == 0:
        yield "runAsUser"
    for key in ("seccompProfile", "appArmorProfile"):
        if context.get(key, {}).get("type", "RuntimeDefault") not in ("RuntimeDefault", "Localhost"):
            yield key
    selinux = context.get("seLinuxOptions", {})
    if selinux.get("type", "") not in SELINUX or selinux.get("user") or selinux.get("role"):
        yield "seLinuxOptions"
    if context.get("procMount", "Default") != "Default":
        yield "procMount"
    if context.get("windowsOptions", {}).get("hostProcess"):
        yield "hostProcess"
    yield from (key for key in ("privileged", "sysctls") if context.get(key))
