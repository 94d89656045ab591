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
    """What `restricted` would refuse in a pod spec."""
    for key in ("hostNetwork", "hostPID", "hostIPC"):
        if pod.get(key):
            yield key
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
        if both.get("runAsUser", 0 if container.get("image") == ARGOEXEC else 1) == 0:
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
