"""Argo's cache by the controller's rules: what is taken from it, and what becomes of a step that it can not keep."""

import json
from dataclasses import replace

import pytest
from argo_cluster import FULL, Cluster, Errored
from argo_documents import REPOSITORY, documents_of, imported_spec, kinds
from argo_simulator import Failed, Simulator, Stuck
from flow_steps import SPEC, data, say
from kfp import dsl
from small_ir import container, pipeline
from stereo_components import final_status

from stereo_core.orchestration.argo import manifests
from stereo_core.orchestration.argo.check import problems
from stereo_core.orchestration.dag import LAUNCHER
from stereo_core.orchestration.graph import load_pipeline

CACHED = {"cachingOptions": {"enableCache": True}}
RETRY = {"retryPolicy": {"maxRetryCount": 3, "backoffDuration": "0s"}}
NUMBER = {"parameterType": "NUMBER_INTEGER"}


def said(sha256: str) -> str:
    """Code that says of the output artifact what its sha256 is: `sha256` is an expression of Python."""
    return (
        f"said = {{'artifacts': {{'out': {{'artifacts': [{{'metadata': {sha256}}}]}}}}}}\n"
        "p.with_name('executor_output.json').write_text(json.dumps(said))\n"
    )


def two_steps(metadata: str = "{'sha256': sys.argv[1]}") -> dict:
    """One step that always runs and writes the parameter n, a cached one with retries that copies what it made."""
    code = f"import sys, json, pathlib; p = pathlib.Path(sys.argv[-1]); p.write_text(sys.argv[1])\n{said(metadata)}"
    first = container(code, ("out",))
    first["args"] = ["{{$.inputs.parameters['n']}}", *first["args"]]
    second = container("import sys, shutil; shutil.copy(*sys.argv[1:])", ("out",), ("in",), **CACHED, **RETRY)
    spec = pipeline({"first": first, "second": second}, {"second": {"in": ("first", "out")}}, n=NUMBER)
    spec["components"]["comp-first"]["inputDefinitions"] = {"parameters": {"n": NUMBER}}
    spec["root"]["dag"]["tasks"]["first"]["inputs"] = {"parameters": {"n": {"componentInputParameter": "n"}}}
    return spec


@pytest.fixture
def runs(tmp_path):
    """Run manifests once more on the same cluster; returns the run."""
    cluster = Cluster(tmp_path)
    names = iter(range(99))

    def run(documents: list[dict], n: str = "1", cluster: Cluster = cluster) -> Simulator:
        made = Simulator(documents, tmp_path / f"run{next(names)}", {}, {"n": n}, cluster)
        made.run()
        return made

    return run


def test_a_cached_step_runs_again_only_with_other_inputs(runs):
    documents = documents_of(two_steps())
    for n, pods in [("1", ["first", "second"]), ("1", ["first"]), ("2", ["first", "second"]), ("1", ["first"])]:
        run = runs(documents, n)
        assert run.pods == pods and run.hits == ["second"] * (2 - len(pods))
        assert run.stored["tasks.second.outputs.artifacts.out"].read_text() == n


@pytest.mark.parametrize("metadata", ["{}", "{'spec_sha256': 'same', 'onnx_sha256': 'same'}"])
def test_an_input_whose_digest_is_not_told_is_another_one(runs, metadata):
    documents = documents_of(two_steps(metadata))
    assert runs(documents).pods == runs(documents).pods == ["first", "second"]


@pytest.mark.parametrize("change", [{"bucket": "other"}, {"prefix": "other"}, {"endpoint": "other:9000"}])
def test_nothing_is_taken_from_the_cache_of_another_place(runs, change):
    """An entry has keys alone, and they would be looked for in the new place."""
    spec = two_steps()
    runs(documents_of(spec))
    elsewhere = documents_of(spec, repository=replace(REPOSITORY, **change))
    assert runs(elsewhere).pods == ["first", "second"]
    assert runs(elsewhere).pods == runs(documents_of(spec)).pods == ["first"]


def test_nor_of_another_namespace(tmp_path):
    cluster, documents = Cluster(tmp_path), documents_of(two_steps())
    for namespace, pods in (("stereo", 2), ("another", 2), ("another", 1)):
        run = Simulator(documents, tmp_path / f"{namespace}{pods}", {}, {"n": "1"}, cluster)
        run.values["workflow.namespace"] = namespace
        run.run()
        assert len(run.pods) == pods


def broken(cluster: Cluster, kind: str, map: str) -> str:
    """Spoil the cache; returns what Argo will say."""
    if kind == "full":
        cluster.maps[map] = {"other": "x" * (FULL - 100)}
        return "Too long: may not be more than 1048576 bytes"
    cluster.rights = {"get", "list", "watch"}  # as Argo's own installation has it
    return "cannot create resource"


@pytest.mark.parametrize("kind", ["full", "no right"])
def test_a_step_that_can_not_be_kept_is_an_error_and_is_not_repeated(tmp_path, runs, kind):
    cluster, documents = Cluster(tmp_path), documents_of(two_steps())
    words = broken(cluster, kind, "test-second-cache")
    run = Simulator(documents, tmp_path / "run", {}, {"n": "1"}, cluster)
    with pytest.raises(Failed, match=words):
        run.run()
    assert run.states == {"first": "Succeeded", "second": "Errored"} and run.pods == ["first", "second"]
    kept = list((tmp_path / "buckets/artifacts").rglob("out.tgz"))
    assert sorted(path.parent.name for path in kept) == ["wf-run-first-0", "wf-run-second-0"], "what it made stays"
    without = documents_of(two_steps(), cache=False)
    assert runs(without, cluster=cluster).states == {"first": "Succeeded", "second": "Succeeded"}


@dsl.pipeline(name="kept")
def kept():
    """A cached step, and the library's own exit handler."""
    with dsl.ExitHandler(final_status(title="kept")):
        say(text="x")


@pytest.mark.parametrize(("kind", "mend"), [("full", "argo-cache rm"), ("no right", "apply -k manifests/controller")])
def test_the_exit_handler_writes_what_mends_it(compiled_once, tmp_path, kind, mend):
    cluster = Cluster(tmp_path)
    broken(cluster, kind, "kept-say-cache")
    run = Simulator(manifests(load_pipeline(compiled_once(kept)), {}, REPOSITORY), tmp_path / "run", {}, None, cluster)
    with pytest.raises(Failed):
        run.run()
    summary = run.stored["tasks.final-status.outputs.artifacts.summary"].read_text()
    assert summary.startswith("# kept: FAILED\n\n- run: wf-run\n") and mend in summary


def test_the_controller_has_its_rights_in_its_own_namespace(tmp_path):
    assert {"get", "create", "update"} <= Cluster(tmp_path).rights, "those of manifests/controller"
    with pytest.raises(Errored, match='cannot get resource "configmaps" in API group "" in the namespace "argo"'):
        Cluster(tmp_path, rights=set()).load("x", "key")


def test_memoize_and_retries_on_one_template_end_in_a_hanging_workflow(runs):
    """As it was: seen on the real controller. The checker refuses it, and so does the simulator."""
    documents = documents_of(two_steps())
    called, run = documents[2]["spec"]["templates"]
    key = called["memoize"]["key"]
    documents[2]["spec"]["templates"] = [{**run, "name": "second", "memoize": called["memoize"]}]
    run["inputs"]["parameters"].append({"name": "task-uid", "default": ""})
    assert any("memoize and retryStrategy on the same template" in problem for problem in problems(documents)), key
    runs(documents)
    with pytest.raises(Stuck, match="second: a hit is a Retry node without children"):
        runs(documents)


@pytest.mark.parametrize(("metadata", "cached"), [({"kind": "images"}, False), ({"sha256": "0" * 64}, True)])
def test_a_step_on_something_imported_is_cached_only_where_its_digest_is_told(metadata, cached):
    spec = imported_spec({"runtimeValue": {"constant": "s3://b/k"}})
    spec["root"]["dag"]["tasks"]["use"] |= CACHED
    spec["deploymentSpec"]["executors"]["exec-get"]["importer"]["metadata"] = metadata
    documents = documents_of(spec)
    assert ("memoize" in documents[1]["spec"]["templates"][0]) == cached
    if cached:
        given = kinds(documents, "Workflow")[0]["spec"]["templates"][0]["dag"]["tasks"][0]["arguments"]["parameters"]
        next(item for item in given if item["name"] == "in-metadata")["value"] = "{}"
        assert any("can never hit: in-metadata has no sha256" in problem for problem in problems(documents))


@pytest.mark.slow
def test_each_step_has_a_config_map_for_small_entries(compiled_once, tmp_path):
    """What others read of a step, and no more: neither its log nor what its template says of its outputs."""
    graph = load_pipeline(compiled_once(data))
    cluster = Cluster(tmp_path)
    run = Simulator(manifests(graph, {"spec": SPEC}, REPOSITORY), tmp_path / "run", {}, cluster=cluster)
    run.run()
    assert set(cluster.maps) == {"data-synthesize-cache", "data-convert-cache"}
    entries = [entry for data in cluster.maps.values() for entry in data.values()]
    assert max(map(len, entries)) < 1200
    for entry in map(json.loads, entries):
        assert [item["name"] for item in entry["outputs"]["parameters"]] == ["executor-output"]
        assert [item["name"] for item in entry["outputs"]["artifacts"]] in (["images"], ["annotations"]), "and no log"
        assert all(item["s3"].keys() == {"key"} for item in entry["outputs"]["artifacts"])


def test_a_cached_step_that_makes_no_artifact_leaves_an_empty_message():
    step = container("", **CACHED) | {"command": [LAUNCHER, "info"]}
    [called, _] = documents_of(pipeline({"info": step}))[1]["spec"]["templates"]
    [message] = called["outputs"]["parameters"]
    assert message["valueFrom"]["expression"] == """'{"artifacts":{' + '' + '} }'"""
