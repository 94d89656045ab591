"""The pipelines on a real API server under a real Argo controller; with FAKE_KUBELET=1 a stand-in ends their pods.

Never run where this was written, for want of an API server; see docs/clusters.md.
"""

from __future__ import annotations

import pytest
from fake_kubelet import FAKE, GONE, REFUSED

from stereo_core.orchestration.argo_cache import cache_maps, removed
from stereo_core.orchestration.compile import pipeline_folders

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(3 * 3600)]
STAND_IN = pytest.mark.skipif(not FAKE, reason="how a pod ends is chosen with FAKE_KUBELET=1")


def nodes(workflow: dict, kind: str) -> list[dict]:
    return [node for node in workflow["status"].get("nodes", {}).values() if node["type"] == kind]


def pods(workflow: dict, step: str) -> list[dict]:
    """A step's pods that ran."""
    return [node for node in nodes(workflow, "Pod") if node["displayName"].partition("(")[0] == step]


def hits(workflow: dict) -> set[str]:
    every = workflow["status"].get("nodes", {}).values()
    return {node["displayName"] for node in every if node.get("memoizationStatus", {}).get("hit")}


def missed(workflow: dict) -> set[str]:
    every = workflow["status"].get("nodes", {}).values()
    return {n["displayName"] for n in every if "memoizationStatus" in n and not n["memoizationStatus"].get("hit")}


@pytest.fixture
def empty_cache(cluster):
    for one in cache_maps(cluster.server, "argo"):
        removed(cluster.server, "argo", one, list(one.entries))


@pytest.mark.parametrize("name", [folder.name for folder in pipeline_folders()])
def test_a_pipeline_runs_twice_and_then_elsewhere(cluster, empty_cache, name):
    first = cluster.run(name)
    assert first["status"]["phase"] == "Succeeded", first["status"].get("message")
    assert hits(first) == set()
    ran = [node for node in nodes(first, "Pod") if node["phase"] == "Succeeded"]
    assert ran and all("outputs" in node for node in ran)
    reports = [a for node in ran for a in node["outputs"].get("artifacts", []) if a["name"] == "report"]
    assert all(report["s3"]["key"].endswith("/report.html") for report in reports)
    second = cluster.run(name)
    assert second["status"]["phase"] == "Succeeded" and hits(second) == missed(first) and missed(second) == set()
    if FAKE:  # a real one would need the bucket
        elsewhere = cluster.run(name, bucket="s3://another")
        assert elsewhere["status"]["phase"] == "Succeeded" and hits(elsewhere) == set()


def test_without_the_cache(cluster):
    done = cluster.run("demo", cache=False)
    assert done["status"]["phase"] == "Succeeded" and hits(done) | missed(done) == set()


def test_a_wrong_input_is_not_tried_again(cluster, empty_cache):
    cluster.ends["train"] = [2]
    done = cluster.run("demo", arguments={"train_spec": {"nonsense": 1}})
    assert done["status"]["phase"] == "Failed"
    (pod,) = pods(done, "train")
    assert pod["outputs"]["exitCode"] == "2"


@STAND_IN
@pytest.mark.parametrize(("end", "again"), [(143, True), (GONE, True), (REFUSED, False), (1, False)])
def test_which_ends_have_a_second_attempt(cluster, empty_cache, end, again):
    cluster.ends["train"] = [end]
    done = cluster.run("demo")
    assert done["status"]["phase"] == ("Succeeded" if again else "Failed")
    assert len(pods(done, "train")) == 1 + again


@STAND_IN
def test_a_cached_step_that_fails_is_a_failure(cluster, empty_cache):
    """A hit before it once hid it."""
    assert cluster.run("demo")["status"]["phase"] == "Succeeded"
    cluster.ends["convert"] = [1]  # always runs
    done = cluster.run("demo")
    assert {"synthesize", "synthesize-2"} <= hits(done) and done["status"]["phase"] == "Failed"
