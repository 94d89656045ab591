"""Kubernetes' pod security standard `restricted`, as far as it can be read from a manifest."""

from __future__ import annotations

from collections.abc import Iterator

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
                    containers = [template["container"], *template.get("sidecars", [])]
                    yield template | {"containers": containers}


def violations(pod: dict) -> Iterator[str]:
    """What `restricted` would refuse in a pod spec."""
    for key in ("hostNetwork", "hostPID", "hostIPC"):
        if pod.get(key):
            yield key
    if pod.get("podSpecPatch"):
        yield "podSpecPatch"  # it may undo everything
    for volume in pod.get("volumes", []):
        yield from (f"volume of {kind}" for kind in set(volume) - {"name"} - VOLUMES)
    shared = pod.get("securityContext", {})
    if shared.get("sysctls"):
        yield "sysctls"
    for container in [*pod["containers"], *pod.get("initContainers", [])]:
        own = container.get("securityContext", {})
        both = shared | own
        if both.get("runAsNonRoot") is not True:
            yield "runAsNonRoot"
        if both.get("runAsUser") == 0:
            yield "runAsUser"
        if both.get("seccompProfile", {}).get("type") not in ("RuntimeDefault", "Localhost"):
            yield "seccompProfile"
        if own.get("allowPrivilegeEscalation") is not False:
            yield "allowPrivilegeEscalation"
        if own.get("privileged"):
            yield "privileged"
        if own.get("procMount", "Default") != "Default":
            yield "procMount"
        capabilities = own.get("capabilities", {})
        if "ALL" not in capabilities.get("drop", []) or set(capabilities.get("add", [])) - {"NET_BIND_SERVICE"}:
            yield "capabilities"
        if any(port.get("hostPort") for port in container.get("ports", [])):
            yield "hostPort"
