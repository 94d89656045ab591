"""The stand-in, given pods as Argo's controller makes them of our templates: it reports what the steps promise."""

import json

import pytest
from fake_kubelet import REFUSED, outputs_of, status_of, step_of, task_result

from stereo_core.orchestration.argo import Repository, manifests
from stereo_core.orchestration.compile import compiled_path, pipeline_folders
from stereo_core.orchestration.graph import load_pipeline

MESSAGE = {
    "inputs": {"parameterValues": {"spec": {}}, "artifacts": {}},
    "outputs": {
        "artifacts": {"onnx": {"artifacts": [{"name": "onnx", "uri": "/stereo/outputs/onnx", "metadata": {}}]}},
        "parameters": {},
        "outputFile": "/stereo/outputs/executor_output.json",
    },
}


@pytest.fixture
def pod() -> dict:
    """Of demo's export: the containers, annotations and labels that the stand-in reads."""
    demo = next(compiled_path(folder) for folder in pipeline_folders() if folder.name == "demo")
    documents = manifests(load_pipeline(demo), {}, Repository.of("s3://b"))
    (step,) = (d for d in documents if d["metadata"].get("name") == "demo-export")
    template = step["spec"]["templates"][-1] | {"archiveLocation": {"s3": {"key": "demo-x/demo-x-export-1"}}}
    init = {"name": "init", "image": "argoexec", "env": [{"name": "ARGO_TEMPLATE", "value": json.dumps(template)}]}
    main = {"name": "main", "image": "ours", "args": ["export", json.dumps(MESSAGE)]}
    annotations = {"workflows.argoproj.io/node-id": "demo-x-7", "workflows.argoproj.io/node-name": NODE}
    owner = {"kind": "Workflow", "name": "demo-x", "uid": "u"}
    labels = {"workflows.argoproj.io/workflow": "demo-x"}
    return {
        "metadata": {"annotations": annotations, "labels": labels, "ownerReferences": [owner]},
        "spec": {"initContainers": [init], "containers": [main, {"name": "wait", "image": "argoexec"}]},
    }


NODE = "demo-x.export.export(1)"


def test_a_step_by_its_nodes_name(pod):
    assert step_of(pod) == ("export", 1)
    pod["metadata"]["annotations"]["workflows.argoproj.io/node-name"] = "demo-x.convert"
    assert step_of(pod) == ("convert", 0)


def test_what_a_step_made(pod):
    outputs = outputs_of(pod)
    assert outputs["artifacts"] == [
        {"name": "onnx", "path": "/stereo/outputs/onnx", "s3": {"key": "demo-x/demo-x-export-1/onnx.tgz"}}
    ]
    (said,) = outputs["parameters"]
    assert said["name"] == "executor-output"
    assert json.loads(said["value"])["artifacts"]["onnx"]["artifacts"][0]["metadata"]["kind"] == "onnx"
    result = task_result(pod, outputs)
    assert result["metadata"]["name"] == "demo-x-7" and result["outputs"] is outputs
    assert result["metadata"]["labels"]["workflows.argoproj.io/report-outputs-completed"] == "true"


@pytest.mark.parametrize(("end", "phase"), [(0, "Succeeded"), (2, "Failed"), (143, "Failed")])
def test_how_it_ended(pod, end, phase):
    status = status_of(pod, end)
    assert status["phase"] == phase
    assert [s["state"]["terminated"]["exitCode"] for s in status["containerStatuses"]] == [end, 0]


def test_what_the_object_storage_refuses(pod):
    (init,) = status_of(pod, REFUSED)["initContainerStatuses"]
    assert init["state"]["terminated"]["message"] == "failed to get images: Access Denied."
