"""What outlives a Workflow: buckets, and the cache's ConfigMaps, which the controller keeps where it runs itself."""

from __future__ import annotations

import json
from pathlib import Path

import yaml

CONTROLLER = Path(__file__).parents[2] / "manifests/controller/accounts.yaml"
FULL = 1024 * 1024  # bytes of a ConfigMap's data (kubernetes.io/docs/concepts/configuration/configmap)


class Errored(Exception):
    """What makes a node an Error, with Argo's message."""


def granted(role: str) -> set[str]:
    """The verbs on ConfigMaps that a Role of `manifests/controller` gives to the controller."""
    documents = [d for d in yaml.safe_load_all(CONTROLLER.read_text()) if d["metadata"]["name"] == role]
    rules = [rule for document in documents if document["kind"] == "Role" for rule in document["rules"]]
    return {verb for rule in rules if "configmaps" in rule["resources"] for verb in rule["verbs"]}


class Cluster:
    """Of one Argo controller.

    Args:
        folder: For the buckets that a test does not bring itself.
        rights: Verbs on ConfigMaps that the controller has in its own namespace.
        passes_files: It is 3.7.10 or newer, and gives an argument above 128 KiB as @FILE.
        commands: A folder of commands that images have besides those of this environment, and before them.
    """

    def __init__(self, folder: Path, rights: set[str] | None = None, passes_files: bool = True, commands=None):
        self.folder, self.passes_files, self.commands = folder, passes_files, commands
        self.rights = granted("stereo-argo-cache") if rights is None else rights
        self.beside_pods = granted("stereo-argo-long")  # verbs on ConfigMaps in the Workflows' namespace
        self.maps: dict[str, dict[str, str]] = {}  # ConfigMap -> key -> entry

    def load(self, name: str, key: str) -> dict | None:
        """A cached node's outputs (workflow/controller/cache/configmap_cache.go, Load)."""
        self._may("get", name)
        entry = self.maps.get(name, {}).get(key)
        return json.loads(entry)["outputs"] if entry else None

    def save(self, name: str, key: str, node: str, outputs: dict) -> None:
        """Keep a node's outputs (Save, there). What was kept never goes by itself."""
        self._may("update" if name in self.maps else "create", name)
        entry = {"nodeID": node, "outputs": outputs, "creationTimestamp": "2026-01-01T00:00:00Z"}
        entry["lastHitTimestamp"] = entry["creationTimestamp"]
        data = self.maps.get(name, {}) | {key: json.dumps(entry, separators=(",", ":"))}
        if sum(len(k) + len(v) for k, v in data.items()) > FULL:
            raise Errored(f'ConfigMap "{name}" is invalid: []: Too long: may not be more than {FULL} bytes')
        self.maps[name] = data

    def _may(self, verb: str, name: str) -> None:
        if verb not in self.rights:
            raise Errored(
                f'configmaps "{name}" is forbidden: User "system:serviceaccount:argo:argo" cannot {verb} resource'
                ' "configmaps" in API group "" in the namespace "argo"'
            )
