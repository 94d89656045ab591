"""A cluster with Argo, and a namespace of it for the tests."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import yaml
from fake_kubelet import FAKE, SCHEDULER, FakeKubelet

from stereo_core.orchestration.argo import Repository, manifests
from stereo_core.orchestration.compile import compiled_path, pipeline_folders
from stereo_core.orchestration.graph import load_pipeline
from stereo_core.orchestration.namespace import ACCOUNT, NAME
from stereo_core.orchestration.servers import Kubernetes
from stereo_core.orchestration.submit import send_to_argo

MANIFESTS = Path(__file__).parents[2] / "manifests"
MINUTES = 5 if FAKE else 120
WORKFLOWS = f"/apis/argoproj.io/v1alpha1/namespaces/{NAME}/workflows"


@dataclass
class Cluster:
    """Args:
    server: The API server.
    ends: Of the stand-in (fake_kubelet.py).
    kubelet: The stand-in, where it is one.
    """

    server: Kubernetes
    ends: dict[str, list[int | str]] = field(default_factory=dict)
    kubelet: FakeKubelet | None = None

    def run(self, name: str, bucket: str = "", arguments: dict | None = None, cache: bool = True) -> dict:
        """Submit a pipeline and wait for its end; returns the Workflow."""
        graph = load_pipeline(compiled_path({f.name: f for f in pipeline_folders()}[name]))
        place = bucket or os.environ.get("CLUSTER_REPOSITORY", "s3://stereo-artifacts")
        endpoint = os.environ.get("CLUSTER_ENDPOINT", "http://minio.minio.svc:9000")
        repository = Repository.of(place, endpoint, os.environ.get("CLUSTER_SECRET", "stereo-s3"))
        given = self._values(graph) | (arguments or {})
        version = os.environ.get("CLUSTER_ARGO_VERSION", "")
        documents = manifests(graph, given, repository, service_account=ACCOUNT, cache=cache, version=version)
        if FAKE:
            documents[-1]["spec"]["schedulerName"] = SCHEDULER
        made = send_to_argo(documents, NAME)[-1].removeprefix("workflow/")
        return self.ended(made)

    def ended(self, name: str) -> dict:
        """A Workflow that has ended."""
        deadline = time.monotonic() + MINUTES * 60
        while time.monotonic() < deadline:
            assert self.kubelet is None or self.kubelet.error is None, self.kubelet.error
            workflow = self.server.call("GET", f"{WORKFLOWS}/{name}", "look")
            if workflow.get("status", {}).get("phase") in ("Succeeded", "Failed", "Error"):
                return workflow
            time.sleep(1)
        pytest.fail(f"{name} did not end in {MINUTES} minutes: {json.dumps(workflow.get('status'))[-3000:]}")

    @staticmethod
    def _values(graph) -> dict:
        """Values of what the pipeline wants, or the end of the test."""
        wanted = [p.name for p in graph.parameters.values() if p.required]
        given = (
            dict.fromkeys(wanted, "s3://given/thing") if FAKE else json.loads(os.environ.get("CLUSTER_PARAMS", "{}"))
        )
        if missing := sorted(set(wanted) - set(given)):
            pytest.skip(f"CLUSTER_PARAMS has no {', '.join(missing)}")
        return {name: value for name, value in given.items() if name in graph.parameters}


def kubectl(*words: str, text: str = "") -> None:
    done = subprocess.run(["kubectl", *words], input=text, capture_output=True, text=True)
    assert done.returncode == 0, f"kubectl {' '.join(words)}: {done.stderr}"


@pytest.fixture(scope="session")
def namespace() -> Iterator[Kubernetes]:
    """An overlay, the controller's rights, and a secret, on a cluster with Argo; all of it goes afterwards."""
    if not os.environ.get("KUBECONFIG"):
        pytest.skip("KUBECONFIG names no cluster; see docs/clusters.md")
    kubectl("apply", "-k", str(MANIFESTS / "overlays/kind-local"))
    kubectl("apply", "-k", str(MANIFESTS / "controller"))
    if FAKE:
        secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "stereo-s3", "namespace": NAME}}
        kubectl("apply", "-f", "-", text=yaml.safe_dump(secret | {"stringData": {"accesskey": "x", "secretkey": "x"}}))
    server = Kubernetes()
    yield server
    found = server.call("GET", WORKFLOWS, "list Workflows").get("items", [])
    for workflow in found:  # nobody is there to clear artifacts away, for which Argo's finalizer would wait
        path = f"{WORKFLOWS}/{workflow['metadata']['name']}"
        server.call("PATCH", path, "end", {"metadata": {"finalizers": None}}, kind="merge-patch+json")
    kubectl("delete", "-k", str(MANIFESTS / "overlays/kind-local"), "--wait=false")


@pytest.fixture
def cluster(namespace) -> Iterator[Cluster]:
    made = Cluster(namespace)
    if FAKE:
        made.kubelet = FakeKubelet(NAME, ACCOUNT, made.ends)
        made.kubelet.start()
    yield made
    if made.kubelet:
        made.kubelet.stopped.set()
        made.kubelet.join()
