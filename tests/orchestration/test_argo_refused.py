"""What Argo can not do is refused by its name, before anything is written."""

import copy

import pytest
from argo_documents import IMPORTER, documents_of, imported_spec
from small_ir import container, pipeline

from stereo_core.errors import UserError
from stereo_core.orchestration.argo import Repository

ECHO = "import sys, pathlib; pathlib.Path(sys.argv[-1]).write_text(sys.argv[1])"


def _platform(**settings) -> dict:
    return {"platforms": {"kubernetes": {"deploymentSpec": {"executors": {"exec-a": settings}}}}}


def _with_parameter(definition: dict) -> dict:
    spec = pipeline({"a": container(ECHO, ("out",))})
    spec["components"]["comp-a"]["inputDefinitions"]["parameters"] = {"seed": definition}
    return spec


def _named(name: str) -> dict:
    spec = pipeline({"a": container(ECHO, ("out",))})
    spec["pipelineInfo"]["name"] = name
    return spec


def _with_command(text: str) -> dict:
    step = container(ECHO, ("out",))
    step["args"] = [text, *step["args"]]
    return pipeline({"a": step})


def _uri_of_another_step() -> dict:
    spec = imported_spec({"taskOutputParameter": {"producerTask": "use", "outputParameterKey": "sum"}})
    spec["components"]["comp-use"]["outputDefinitions"]["parameters"] = {"sum": {"parameterType": "STRING"}}
    spec["components"]["comp-use"]["inputDefinitions"] = {}
    spec["root"]["dag"]["tasks"]["use"]["inputs"] = {}
    spec["deploymentSpec"]["executors"]["exec-use"]["container"]["args"] = []
    spec["components"]["comp-last"] = {
        "executorLabel": "exec-use",
        "inputDefinitions": {"artifacts": {"in": IMPORTER["outputDefinitions"]["artifacts"]["artifact"]}},
    }
    wire = {"taskOutputArtifact": {"producerTask": "get", "outputArtifactKey": "artifact"}}
    spec["root"]["dag"]["tasks"]["last"] = {
        "componentRef": {"name": "comp-last"},
        "inputs": {"artifacts": {"in": wire}},
    }
    return spec


def _kubernetes(**settings) -> dict:
    return {"platforms": {"kubernetes": settings}}


def _container_with(**settings) -> dict:
    spec = pipeline({"a": container(ECHO, ("out",))})
    spec["deploymentSpec"]["executors"]["exec-a"]["container"] |= settings
    return spec


def _importer_with(**settings) -> dict:
    spec = imported_spec({"runtimeValue": {"constant": "s3://b/k"}})
    spec["deploymentSpec"]["executors"]["exec-get"]["importer"] |= settings
    return spec


def _one_artifact_for_a_list() -> dict:
    spec = copy.deepcopy(imported_spec({"runtimeValue": {"constant": "s3://b/k"}}))
    (port,) = spec["components"]["comp-use"]["inputDefinitions"]["artifacts"].values()
    port["isArtifactList"] = True
    return spec


FROM_PARAMETER = "{{$.inputs.parameters['pipelinechannel--x']}}"
PLAIN = pipeline({"a": container(ECHO, ("out",))})
REFUSED = {
    "one artifact for a list": (_one_artifact_for_a_list(), None, "takes a list of artifacts, but gets one"),
    "workspace": (
        PLAIN,
        _kubernetes(pipelineConfig={"workspace": {"size": "1Gi"}}),
        "pipelineConfig of the pipeline's Kubernetes settings: workspace is not supported",
    ),
    "platform": (
        PLAIN,
        _kubernetes(magic={}),
        "platforms.kubernetes of the pipeline's Kubernetes settings: magic is not",
    ),
    "deployment": (
        PLAIN,
        _kubernetes(deploymentSpec={"magic": {}}),
        "deploymentSpec of the pipeline's Kubernetes settings: magic",
    ),
    "cache key": (
        pipeline({"a": container(ECHO, **{"cachingOptions": {"enableCache": True, "cacheKey": "mine"}})}),
        None,
        r"task a: its own cache key \(cacheKey\)",
    ),
    "type of a description": (
        PLAIN | {"pipelineInfo": {"name": "p", "description": 5}},
        None,
        "malformed PipelineSpec",
    ),
    "type of a limit": (PLAIN, _platform(activeDeadlineSeconds="1", tolerations=[5]), "malformed PipelineSpec"),
    "import into a workspace": (_importer_with(downloadToWorkspace=True), None, "task get: downloadToWorkspace"),
    "metadata": (
        _importer_with(metadata={"v": FROM_PARAMETER}),
        None,
        "task get: an importer's metadata cannot come from a",
    ),
    "image": (_container_with(image=FROM_PARAMETER), None, "task a, image: Argo cannot take this value"),
    "variable": (
        _container_with(env=[{"name": "X", "value": FROM_PARAMETER}]),
        None,
        "task a, env X: Argo cannot take this",
    ),
    "cpu": (
        _container_with(resources={"resourceCpuLimit": FROM_PARAMETER}),
        None,
        "task a, resourceCpuLimit: Argo cannot take this value from a pipeline parameter; write a literal",
    ),
    "memory": (
        _container_with(resources={"resourceMemoryRequest": FROM_PARAMETER}),
        None,
        "task a, resourceMemoryRequest: Argo cannot take this value",
    ),
    "placement": (PLAIN, _platform(pvcMount=[{}]), "task a: the Kubernetes setting pvcMount is not"),
    "toleration": (PLAIN, _platform(tolerations=[{"tolerationJson": {}}]), "task a: tolerationJson in tolerations"),
    "secret": (PLAIN, _platform(imagePullSecret=[{}]), "task a: imagePullSecret has no name"),
    "no value": (
        _with_parameter({"parameterType": "NUMBER_INTEGER", "isOptional": True}),
        None,
        "task a: parameter seed has no value",
    ),
    "name": (_named("My_Pipeline"), None, "the pipeline: My_Pipeline is not a valid name on Kubernetes"),
    "long name": (_named("a" * 62), None, "task a: a+-a is not a valid name on Kubernetes"),
    "braces": (_with_command("x {{y}}"), None, "task a, command: Argo would read"),
    "placeholder": (_with_command("{{$.pipeline_job_name}}"), None, "task a: placeholder .*pipeline_job_name"),
    "backoff": (
        pipeline({"a": container(ECHO, **{"retryPolicy": {"maxRetryCount": 1, "backoffFactor": 1.5}})}),
        None,
        "task a: Argo needs a whole number as backoff factor, not 1.5",
    ),
    "importer": (_uri_of_another_step(), None, "task get: an importer whose URI comes from another step"),
    "scheme": (
        imported_spec({"runtimeValue": {"constant": "/data/x"}}),
        None,
        "task get: /data/x is not a location in a bucket; expected s3://BUCKET/KEY",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_argo_can_not_do_is_refused_by_name(name):
    spec, platform, message = REFUSED[name]
    with pytest.raises(UserError, match=message):
        documents_of(spec, platform=platform)


def test_a_value_that_is_no_place_in_a_bucket():
    with pytest.raises(UserError, match="parameter where: data is not a location in a bucket"):
        documents_of(imported_spec({"componentInputParameter": "where"}), {"where": "data"})


@pytest.mark.parametrize(("uri", "endpoint"), [("gs://b", ""), ("s3://", ""), ("s3://b", "ftp://x"), ("s3://b", "x/y")])
def test_repositories_that_are_none(uri, endpoint):
    with pytest.raises(UserError, match="expected"):
        Repository.of(uri, endpoint)


def test_no_password_gets_into_manifests():
    with pytest.raises(UserError, match="contains credentials") as refused:
        Repository.of("s3://b", "http://key:hunter2@minio:9000")
    assert "hunter2" not in str(refused.value)
