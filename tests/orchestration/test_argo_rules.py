"""What the controller and the kubelet do with a manifest, beyond its schema: each rule broken, and kept by ours."""

import copy
import json

import pytest
from argo_cluster import Cluster
from argo_documents import FOLDERS, REPOSITORY, documents_of, kinds, pipeline_of, validate
from argo_simulator import LONGEST, Failed, Simulator
from small_ir import container, pipeline

from stereo_core.orchestration.argo import manifests
from stereo_core.orchestration.argo.check import problems
from stereo_core.orchestration.argo.rules import seconds
from stereo_core.orchestration.argo.versions import VERSIONS
from stereo_core.orchestration.dag import GraphError

TEXT, TREE = {"parameterType": "STRING"}, {"parameterType": "STRUCT"}
RETRY = {"retryPolicy": {"maxRetryCount": 1, "backoffDuration": "0s"}}
SAY = "import sys, pathlib; pathlib.Path(sys.argv[-1]).write_text(sys.argv[1])"


def saying(argument: str, **task) -> dict:
    """A step that writes its argument, with the parameters `text` and `tree` and a secret in its environment."""
    step = container(SAY, ("out",), **task)
    step["args"] = [argument, *step["args"]]
    spec = pipeline({"say": step}, text=TEXT, tree=TREE)
    spec["components"]["comp-say"]["inputDefinitions"]["parameters"] = {"text": TEXT, "tree": TREE}
    spec["deploymentSpec"]["executors"]["exec-say"]["container"]["env"] = [{"name": "KEY", "value": "hunter2"}]
    wires = {name: {"componentInputParameter": name} for name in ("text", "tree")}
    spec["root"]["dag"]["tasks"]["say"]["inputs"]["parameters"] = wires
    return spec


def written(run: Simulator) -> str:
    run.run()
    return run.stored["tasks.say.outputs.artifacts.out"].read_text()


# ---- versions


@pytest.mark.parametrize("version", [version for version in VERSIONS if version != "3.6"])
@pytest.mark.parametrize("name", FOLDERS)
def test_every_pipeline_is_valid_by_the_full_definitions_of(name, version):
    """3.6's can not be installed; with the minimal ones every version takes anything."""
    documents = manifests(pipeline_of(name), _wanted(name), REPOSITORY, version=version)
    validate(documents, version)


def _wanted(name: str) -> dict:
    parameters = pipeline_of(name).parameters.values()
    return {p.name: "s3://bucket/key" for p in parameters if p.required}


def test_no_field_that_the_oldest_version_does_not_know():
    """`cap` of a back-off; one retry needs none."""
    for name in FOLDERS:
        documents = manifests(pipeline_of(name), _wanted(name), REPOSITORY)
        assert '"cap"' not in json.dumps(documents), name
    often = {"retryPolicy": {"maxRetryCount": 3, "backoffDuration": "1s"}}
    for version, there in (("", True), ("3.6", False)):
        given = {"text": "x", "tree": {}}
        assert ('"cap"' in json.dumps(documents_of(saying("x", **often), given, version=version))) == there


# ---- the command


EXPANDED = "pay $(KEY), $$(KEY) and $KEY"


@pytest.mark.parametrize("argument", ["{{$}}", "{{$.inputs.parameters['text']}}"])
@pytest.mark.parametrize("given", ["when the manifests are written", "when the workflow is submitted"])
def test_the_kubelet_puts_no_secret_into_a_parameter(tmp_path, argument, given):
    values = {"text": EXPANDED, "tree": {EXPANDED: [EXPANDED]}}
    if given.startswith("when the manifests"):
        run = Simulator(documents_of(saying(argument), values), tmp_path, {})
    else:
        parameters = {"text": values["text"], "tree": json.dumps(values["tree"])}
        run = Simulator(documents_of(saying(argument)), tmp_path, {}, parameters)
    text = written(run)
    assert "hunter2" not in text
    arrived = json.loads(text)["inputs"]["parameterValues"] if argument == "{{$}}" else {"text": text}
    assert arrived == {key: values[key] for key in arrived}


@pytest.mark.parametrize("kind", ["NUMBER_INTEGER", "NUMBER_DOUBLE", "BOOLEAN"])
def test_nor_into_what_is_no_number_though_one_is_wanted(tmp_path, kind):
    """`argo submit --parameter` takes any text, and the step's error shows it."""
    spec = saying("{{$}}")
    for inputs in (spec["root"], spec["components"]["comp-say"]):
        inputs["inputDefinitions"]["parameters"]["text"] = {"parameterType": kind}
    text = written(Simulator(documents_of(spec, {"tree": {}}), tmp_path, {}, {"text": json.dumps(EXPANDED)}))
    assert "hunter2" not in text and json.loads(text)["inputs"]["parameterValues"]["text"] == EXPANDED


@pytest.mark.parametrize("raw", ["{{=inputs.parameters['text']}}", "{{inputs.parameters.text}}"])
def test_a_value_that_the_kubelet_would_expand_is_found(tmp_path, raw):
    documents = documents_of(saying("{{$.inputs.parameters['text']}}"), {"text": EXPANDED, "tree": {}})
    container = documents[1]["spec"]["templates"][0]["container"]
    container["args"][0] = raw  # the last as it was
    assert any("the kubelet would replace" in problem for problem in problems(documents))
    assert "hunter2" in written(Simulator(documents, tmp_path, {}))


@pytest.mark.parametrize("version", VERSIONS)
def test_an_argument_longer_than_linux_passes(tmp_path, version):
    """From 3.7.10 on Argo gives it as @FILE; before, such a value is refused by its name."""
    given = {"text": "x" * (LONGEST - 2000), "tree": {"y": "y" * 3000}}
    if version == "3.6":
        with pytest.raises(GraphError, match=r"task say, parameter text: 12\d{4} bytes .* --argo-version 3.7"):
            documents_of(saying("{{$}}"), given, version=version)
        return
    documents = documents_of(saying("{{$}}"), given, version=version)
    file = written(Simulator(documents, tmp_path / "new", {}, cluster=Cluster(tmp_path)))
    assert file.startswith("@") and file.endswith("argument-3")
    stock = Cluster(tmp_path)
    stock.beside_pods = {"get", "list", "watch"}  # as Argo's own installation has it
    with pytest.raises(Failed, match=r'cannot create resource "configmaps" .* in the namespace "stereo"'):
        written(Simulator(documents, tmp_path / "stock", {}, cluster=stock))
    with pytest.raises(Failed, match="argument list too long"):
        written(Simulator(documents, tmp_path / "old", {}, cluster=Cluster(tmp_path, passes_files=False)))


def test_without_a_version_a_long_argument_is_refused():
    with pytest.raises(GraphError, match="task say, parameter text"):
        documents_of(saying("{{$}}"), {"text": "x" * LONGEST, "tree": {}})


# ---- retries


REFUSED = [
    "init: Error (exit code 64): failed to get: Access Denied.",
    "init: Error (exit code 64): The access key ID you provided does not exist in our records.",
    "init: Error (exit code 64): The request signature we calculated does not match the signature you provided.",
    "init: Error (exit code 64): The specified bucket does not exist",
    "init: Error (exit code 64): The specified key does not exist.",
]


@pytest.mark.parametrize("message", REFUSED)
def test_what_the_object_storage_refuses_is_not_tried_again(tmp_path, message):
    documents = documents_of(saying("x", **RETRY), {"text": "x", "tree": {}})
    run = Simulator(documents, tmp_path, {}, fates={"say-0": ("Error", 64, message)})
    with pytest.raises(Failed, match="exit code 64"):
        run.run()
    assert run.pods == ["say"]


def test_a_limit_on_all_attempts_together_is_found():
    """Kubeflow's default of an hour becomes one; ours have none."""
    platform = {"platforms": {"kubernetes": {"deploymentSpec": {"executors": {"exec-say": LIMIT}}}}}
    documents = documents_of(saying("x", **RETRY), {"text": "x", "tree": {}}, platform)
    retry = documents[1]["spec"]["templates"][0]["retryStrategy"]
    assert "maxDuration" not in retry["backoff"]
    for most, wrong in (("3600s", True), ("2h", True), ("2h30m", False), ("90000", False)):
        retry["backoff"]["maxDuration"] = most
        found = any(f"maxDuration {most} limits all attempts together" in problem for problem in problems(documents))
        assert found == wrong, most


LIMIT = {"activeDeadlineSeconds": "7200"}


def test_the_simulator_takes_it_for_a_total(tmp_path):
    documents = documents_of(saying("x", **RETRY), {"text": "x", "tree": {}})
    documents[1]["spec"]["templates"][0]["retryStrategy"]["backoff"]["maxDuration"] = "0s"
    run = Simulator(documents, tmp_path, {}, fates={"say-0": ("Error", -1, "pod deleted")})
    with pytest.raises(Failed, match="pod deleted"):
        run.run()
    assert run.pods == ["say"], "the time for all attempts was over"


# ---- the Workflow


def test_a_workflow_that_could_not_be_deleted_is_found(tmp_path):
    documents = documents_of(saying("x"), {"text": "x", "tree": {}})
    kinds(documents, "Workflow")[0]["spec"]["podGC"]["strategy"] = "OnPodSuccess"
    [problem] = problems(documents)
    assert problem.endswith(
        ": podGC OnPodSuccess with artifactGC: if the Workflow is deleted while it runs, its pods are created again"
    )
    with pytest.raises(AssertionError, match="makes its pods again"):
        Simulator(documents, tmp_path, {})


def test_an_expression_for_an_artifact_is_taken_in_outputs_only(tmp_path):
    second = container("import sys, shutil; shutil.copy(*sys.argv[1:])", ("out",), ("in",))
    first = container("import sys; open(sys.argv[1], 'w').write('x')", ("out",))
    documents = documents_of(pipeline({"first": first, "second": second}, {"second": {"in": ("first", "out")}}))
    task = documents[-1]["spec"]["templates"][0]["dag"]["tasks"][1]
    wrong = copy.deepcopy(documents)
    broken = wrong[-1]["spec"]["templates"][0]["dag"]["tasks"][1]["arguments"]["artifacts"][0]
    broken["fromExpression"] = broken.pop("from")[2:-2]
    assert task["arguments"]["artifacts"][0]["from"] and problems(documents) == []
    assert any("in: Argo supports fromExpression only in outputs" in problem for problem in problems(wrong))
    with pytest.raises(AssertionError, match="fromExpression is not supported in arguments"):
        Simulator(wrong, tmp_path, {}).run()


def test_a_page_is_stored_as_a_page(tmp_path):
    """Argo's interface shows an object whose key ends in .html, and offers a packed one to be saved."""
    spec = saying("<p>")
    page = {"artifactType": {"schemaTitle": "system.HTML", "schemaVersion": "0.0.1"}}
    spec["components"]["comp-say"]["outputDefinitions"]["artifacts"]["out"] = page
    documents = documents_of(spec, {"text": "x", "tree": {}})
    validate(documents)
    run = Simulator(documents, tmp_path / "run", {}, cluster=Cluster(tmp_path))
    assert written(run) == "<p>"
    assert run.artifacts["tasks.say.outputs.artifacts.out"]["s3"]["key"] == "stereo/wf-run/wf-run-say-0/out.html"
    (made,) = documents[1]["spec"]["templates"][0]["outputs"]["artifacts"]
    assert made["archive"] == {"none": {}}


def test_a_step_has_time_for_its_checkpoint():
    documents = documents_of(saying("x"), {"text": "x", "tree": {}})
    patch = json.loads(documents[1]["spec"]["templates"][0]["podSpecPatch"])
    assert patch["terminationGracePeriodSeconds"] == 120


@pytest.mark.parametrize(("text", "wanted"), [("90", 90), ("90s", 90), ("2m", 120), ("1h30m", 5400), ("1.5h", 5400)])
def test_a_duration_in_argo_s_form(text, wanted):
    assert seconds(text) == wanted


def test_what_a_command_is_told_of_its_outputs_and_what_is_known_of_one_that_writes_no_message():
    documents = documents_of(saying("{{$}}"), {"text": "x", "tree": {}})
    [template] = documents[1]["spec"]["templates"]
    told = template["container"]["args"][0]
    outputs = json.loads(told[told.index('"outputs": ') + len('"outputs": ') : -2].rstrip())
    [made] = outputs["artifacts"]["out"]["artifacts"]
    assert made["name"] == "out" and made["uri"].endswith("/out") and made["metadata"] == {}
    [file] = [p for p in template["outputs"]["parameters"] if "executor" in p["name"]]
    assert json.loads(file["valueFrom"]["default"]) == {"artifacts": {"out": {"artifacts": [{"metadata": {}}]}}}


def test_a_step_that_another_workflow_calls_needs_no_metadata():
    """Of a required input it is an empty mapping; an empty text says that an optional input is not given."""
    first, second = container(SAY, ("out",)), container(SAY, ("out",), ("must", "may"))
    spec = pipeline({"first": first, "second": second}, {"second": {"must": ("first", "out")}})
    may = spec["components"]["comp-second"]["inputDefinitions"]["artifacts"]
    may["may"] = may["may"] | {"isOptional": True}
    templates = [t for document in kinds(documents_of(spec), "WorkflowTemplate") for t in document["spec"]["templates"]]
    [given] = [t["inputs"]["parameters"] for t in templates if "parameters" in t.get("inputs", {})]
    defaults = {p["name"]: p["default"] for p in given}
    assert defaults == {"must-metadata": "{}", "may-metadata": ""}
