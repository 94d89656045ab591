"""Argo manifests: valid, every reference resolves, and executed they give what the local engine gives."""

import json
import os
import shutil
import subprocess
import sys

import pytest
import yaml
from argo_documents import FOLDERS, REPOSITORY, documents_of, imported_spec, kinds, pipeline_of, spec_of, validate
from argo_simulator import Failed, Made, Simulator
from flow_steps import SPEC, data
from kfp import compiler, dsl
from pipelines_command import command
from small_ir import container, pipeline, sums
from stereo_components import convert, synthesize
from stereo_pipelines.profiles import PROFILES, apply, with_environment

from stereo_core.errors import UserError
from stereo_core.files import sha256_of
from stereo_core.orchestration.argo import Repository, manifests
from stereo_core.orchestration.argo.check import problems
from stereo_core.orchestration.cli import cli
from stereo_core.orchestration.compile import argo_path, compiled_path
from stereo_core.orchestration.dag import GraphError, Importer
from stereo_core.orchestration.graph import load_pipeline
from stereo_core.orchestration.local import LocalRun

DEMO = compiled_path(FOLDERS["demo"])
ECHO = "import sys, pathlib; pathlib.Path(sys.argv[-1]).write_text(sys.argv[1])"


# ---- valid


@pytest.mark.parametrize("folder", FOLDERS.values(), ids=FOLDERS)
def test_every_pipeline_has_valid_manifests(folder):
    """The committed ones, which `compile --check` holds to be those of the pipeline."""
    documents = list(yaml.safe_load_all(argo_path(folder).read_text()))
    assert problems(documents) == []
    validate(documents)
    graph = pipeline_of(folder.name)
    templates = kinds(documents, "Workflow")[0]["spec"]["templates"]
    steps = {name for name, task in graph.tasks.items() if not isinstance(task.component.executor, Importer)}
    assert {task["name"] for template in templates for task in template["dag"]["tasks"]} == steps


@pytest.fixture(scope="module")
def tugboat(tmp_path_factory) -> str:
    """argo-tugboat, which wants Python 3.12, in an environment of its own."""
    python, environment = shutil.which("python3.12"), os.environ | {"PYENV_VERSION": "3.12"}  # which pyenv's shim wants
    if not python or subprocess.run([python, "-c", ""], env=environment, capture_output=True).returncode:
        pytest.skip("no python3.12 is at hand, which argo-tugboat wants")
    folder = tmp_path_factory.mktemp("tugboat")
    subprocess.run([python, "-m", "venv", folder], env=environment, check=True)
    install = [folder / "bin/python", "-m", "pip", "install", "--quiet", "argo-tugboat"]
    done = subprocess.run(install, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"argo-tugboat can not be installed: {done.stderr[-300:]}")
    return str(folder / "bin/tugboat")


@pytest.mark.slow
def test_tugboat_finds_no_error(tugboat, tmp_path):
    """Another's linter; it wants a value for each parameter, which ours leave to `argo submit`."""
    for folder in FOLDERS.values():
        graph = pipeline_of(folder.name)
        wanted = {p.name: "s3://bucket/key" for p in graph.parameters.values() if p.required}
        documents = manifests(graph, wanted, REPOSITORY)
        (tmp_path / f"{folder.name}.yaml").write_text(yaml.safe_dump_all(documents))
    done = subprocess.run([tugboat, str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    spec_of(documents)["entrypoint"] = "nothing"
    (tmp_path / "broken.yaml").write_text(yaml.safe_dump_all(documents))
    assert subprocess.run([tugboat, str(tmp_path)], capture_output=True).returncode, "it looks at the files"


def test_equal_steps_share_a_template():
    documents = manifests(pipeline_of("export_and_build"), {}, REPOSITORY)
    names = [document["metadata"]["name"] for document in kinds(documents, "WorkflowTemplate")]
    assert names.count("export-and-build-gen-trt-engine") == 1 and "export-and-build-gen-trt-engine-2" not in names


def test_a_pod_may_do_no_more_than_it_must():
    documents = manifests(pipeline_of("demo"), {}, REPOSITORY, service_account="runner")
    templates = [document["spec"]["templates"][-1] for document in kinds(documents, "WorkflowTemplate")]
    pod = {"runAsNonRoot": True, "runAsUser": 10001, "runAsGroup": 0, "seccompProfile": {"type": "RuntimeDefault"}}
    inside = {"runAsNonRoot": True, "allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    inside["readOnlyRootFilesystem"] = True
    assert len(templates) == 10
    assert all(t["securityContext"] == pod and t["container"]["securityContext"] == inside for t in templates)
    (workflow,) = kinds(documents, "Workflow")
    assert workflow["spec"]["securityContext"] == pod
    assert workflow["spec"]["serviceAccountName"] == workflow["spec"]["artifactGC"]["serviceAccountName"] == "runner"


def test_what_is_cleared_away_and_what_stays():
    """With its Workflow goes what another step took, was no model and is in no cache."""
    documents = manifests(pipeline_of("demo"), {}, REPOSITORY)
    spec = kinds(documents, "Workflow")[0]["spec"]
    assert spec["podGC"] == {"strategy": "OnPodCompletion"} and spec["archiveLogs"], "a pod's log outlives it"
    assert spec["ttlStrategy"] == {"secondsAfterCompletion": 604800}
    assert spec["artifactGC"] == {"strategy": "OnWorkflowDeletion", "forceFinalizerRemoval": True}
    passing = {
        (template["name"], artifact["name"])
        for document in kinds(documents, "WorkflowTemplate")
        for template in document["spec"]["templates"]
        if "container" in template
        for artifact in template["outputs"]["artifacts"]
        if artifact.get("artifactGC") != {"strategy": "Never"}
    }
    assert passing == {("convert", "annotations")}


def test_the_repository_is_named_once():
    (found,) = kinds(manifests(pipeline_of("demo"), {}, REPOSITORY), "ConfigMap")
    assert json.loads(found["data"]["repository"]) == {
        "s3": {
            "bucket": "artifacts",
            "keyFormat": "stereo/{{workflow.name}}/{{pod.name}}",
            "endpoint": "minio:9000",
            "insecure": True,
            "accessKeySecret": {"name": "minio-keys", "key": "accesskey"},
            "secretKeySecret": {"name": "minio-keys", "key": "secretkey"},
        }
    }
    own = Repository.of("s3://b")
    assert (own.endpoint, own.insecure, own.prefix) == ("s3.amazonaws.com", False, "")
    assert json.loads(own.config_map("x")["data"]["repository"])["s3"]["useSDKCreds"] is True


def test_schedule():
    documents = manifests(pipeline_of("demo"), {"num_epochs": 3}, REPOSITORY, schedule="0 3 * * *")
    assert problems(documents) == []
    validate(documents)
    (cron,) = kinds(documents, "CronWorkflow")
    assert cron["metadata"]["name"] == "demo" and cron["spec"]["schedules"] == ["0 3 * * *"]
    values = {p["name"]: p["value"] for p in cron["spec"]["workflowSpec"]["arguments"]["parameters"]}
    assert values["num_epochs"] == "3" and values["backend"] == "onnxruntime"


NAMED = pipeline({"a": container(ECHO, ("out",))}) | {"pipelineInfo": {"name": "a" * 53}}


def test_a_cron_workflow_has_a_shorter_name():
    documents_of(NAMED)
    with pytest.raises(GraphError, match="at most 52"):
        documents_of(NAMED, schedule="0 3 * * *")


def test_hardware_profile(tmp_path):
    @dsl.pipeline(name="placed")
    def placed():
        task = apply(synthesize(num_scenes=1), PROFILES["h100"], pull_secret="registry")
        with_environment(task, env_secret="keys")

    compiler.Compiler().compile(placed, str(tmp_path / "placed.yaml"))
    documents = manifests(load_pipeline(tmp_path / "placed.yaml"), {}, REPOSITORY)
    assert problems(documents) == []
    validate(documents)
    template = kinds(documents, "WorkflowTemplate")[0]["spec"]["templates"][-1]
    assert template["container"]["resources"] == {
        "limits": {"cpu": "16", "memory": "128Gi", "nvidia.com/gpu": "1"},
        "requests": {"cpu": "16", "memory": "128Gi"},
    }
    assert template["nodeSelector"] == {"nvidia.com/gpu.product": "NVIDIA-H100-80GB-HBM3"}
    assert template["tolerations"] == [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}]
    assert template["activeDeadlineSeconds"] == 86400
    assert {"name": "shared-memory", "emptyDir": {"medium": "Memory", "sizeLimit": "6400Mi"}} in template["volumes"]
    assert {"name": "shared-memory", "mountPath": "/dev/shm"} in template["container"]["volumeMounts"]
    wandb = {"secretKeyRef": {"name": "keys", "key": "WANDB_API_KEY", "optional": True}}
    assert {"name": "WANDB_API_KEY", "valueFrom": wandb} in template["container"]["env"]
    assert kinds(documents, "Workflow")[0]["spec"]["imagePullSecrets"] == [{"name": "registry"}]


def test_only_steps_on_gpus_have_the_priority(tmp_path):
    @dsl.pipeline(name="placed")
    def placed():
        images = apply(synthesize(num_scenes=1), PROFILES["cpu"]).outputs["images"]
        apply(convert(images=images), PROFILES["h100"])

    compiler.Compiler().compile(placed, str(tmp_path / "placed.yaml"))
    documents = manifests(load_pipeline(tmp_path / "placed.yaml"), {}, REPOSITORY, priority_class="stereo-training")
    validate(documents)
    templates = [document["spec"]["templates"][-1] for document in kinds(documents, "WorkflowTemplate")]
    assert {t["name"]: t.get("priorityClassName") for t in templates} == {
        "synthesize-run": None,
        "convert-run": "stereo-training",
    }


# ---- executed


@pytest.mark.slow
def test_real_steps_give_what_the_local_engine_gives(compiled_once, tmp_path):
    graph = load_pipeline(compiled_once(data))
    arguments = {"spec": SPEC | {"split_ratio": 0.5}}
    there = Simulator(manifests(graph, arguments, REPOSITORY), tmp_path / "argo", {})
    there.run()
    here = LocalRun(graph, arguments, tmp_path / "here")
    assert here.execute() == 0
    for task, port in (("synthesize", "images"), ("convert", "annotations")):
        made = here.tasks[task].artifacts[port]
        assert sha256_of(there.stored[f"tasks.{task}.outputs.artifacts.{port}"]) == made.sha256
        said = json.loads(there.outputs[task]["executor-output"])["artifacts"][port]["artifacts"][0]["metadata"]
        assert said == made.metadata and said["sha256"] == made.sha256


def test_a_consumer_is_told_what_the_producer_said(tmp_path):
    """convert refuses an artifact that says it is something else: the metadata got there."""

    @dsl.pipeline(name="data")
    def data():
        convert(images=convert(images=dsl.importer("s3://data/x", dsl.Dataset).output).outputs["annotations"])

    compiler.Compiler().compile(data, str(tmp_path / "data.yaml"))
    documents = manifests(load_pipeline(tmp_path / "data.yaml"), {}, REPOSITORY)
    tasks = documents[-1]["spec"]["templates"][0]["dag"]["tasks"]
    run = Simulator(documents, tmp_path, {"lists": tmp_path})
    said = json.dumps({"artifacts": {"annotations": {"artifacts": [{"metadata": {"kind": "annotations"}}]}}})
    place = {"name": "annotations", "s3": {"bucket": "lists", "key": "lists.txt"}}
    run.keep("convert", Made({"executor-output": said}, {"annotations": place}))
    (tmp_path / "lists.txt").write_text("a b")
    tasks.pop(0)
    tasks[0].pop("depends")
    with pytest.raises(Failed, match=r"exit code 2(.|\n)*is of kind 'annotations'; expected 'images'"):
        run.run()


HARD = 'it\'s "quoted" \\n\n\ttab, {"json": [1, "}"]}, <b>&amp;</b>, ünïcode \U0001f600, ${HOME} $(id) %s }} {$'


def parameters_spec() -> dict:
    """One step that writes the ExecutorInput it was given, with a parameter of every type."""
    step = container(ECHO, ("out",))
    step["args"] = ["{{$}}", *step["args"]]
    types = {"text": "STRING", "tree": "STRUCT", "rows": "LIST", "n": "NUMBER_INTEGER", "x": "NUMBER_DOUBLE"}
    types["yes"] = "BOOLEAN"
    spec = pipeline({"say": step}, **{name: {"parameterType": kind} for name, kind in types.items()})
    definitions = spec["components"]["comp-say"]["inputDefinitions"]
    definitions["parameters"] = {name: {"parameterType": kind} for name, kind in types.items()}
    definitions["parameters"]["fixed"] = {"parameterType": "STRING", "defaultValue": HARD, "isOptional": True}
    inputs = spec["root"]["dag"]["tasks"]["say"]["inputs"]
    inputs["parameters"] = {name: {"componentInputParameter": name} for name in types}
    return spec


def test_parameters_arrive_as_they_are(tmp_path):
    tree = {"a": {"b": {"c": HARD}}, HARD: [None, True, 0.1]}
    given = {"text": HARD, "tree": tree, "rows": [[1, HARD]], "n": 2**60 + 1, "x": 1e-7, "yes": True}
    documents = documents_of(parameters_spec(), given)
    assert problems(documents) == []
    run = Simulator(documents, tmp_path / "argo", {})
    run.run()
    message = json.loads(run.stored["tasks.say.outputs.artifacts.out"].read_text())
    assert message["inputs"]["parameterValues"] == {**given, "fixed": HARD}
    assert set(message["outputs"]["artifacts"]) == {"out"}


def test_parameters_without_a_value_are_left_to_the_submission(tmp_path):
    given = {"tree": {}, "rows": [], "n": 1, "x": 0.5, "yes": False}
    run = Simulator(documents_of(parameters_spec(), given), tmp_path / "argo", {}, {"text": "later"})
    run.run()
    message = json.loads(run.stored["tasks.say.outputs.artifacts.out"].read_text())
    assert message["inputs"]["parameterValues"]["text"] == "later"
    with pytest.raises(GraphError, match="parameters without a value: text"):
        documents_of(parameters_spec(), given, schedule="@daily")


def test_texts_that_argo_would_read_as_references_are_refused():
    given = {"text": "a {{workflow.name}}", "tree": {}, "rows": [], "n": 1, "x": 0.5, "yes": False}
    with pytest.raises(GraphError, match=r"parameter text: Argo would read \{\{"):
        documents_of(parameters_spec(), given)


def test_output_parameters_and_nested_placeholders(tmp_path):
    documents = documents_of(sums())
    assert problems(documents) == []
    run = Simulator(documents, tmp_path / "argo", {})
    run.run()
    assert run.stored["tasks.use.outputs.artifacts.out"].read_text() == "it's 21"


@pytest.mark.parametrize("uri", [{"componentInputParameter": "where"}, {"runtimeValue": {"constant": "s3://b/a/c d"}}])
def test_an_importer_is_a_place_in_a_bucket(tmp_path, uri):
    (tmp_path / "b/a/c d").mkdir(parents=True)
    (tmp_path / "b/a/c d/f").write_text("content")
    documents = documents_of(imported_spec(uri))
    assert problems(documents) == []
    validate(documents)
    run = Simulator(documents, tmp_path / "argo", {"b": tmp_path / "b"}, {"where": "s3://b/a/c d/"})
    run.run()
    assert run.pods == ["use"], "an importer needs no pod"
    message, text = run.stored["tasks.use.outputs.artifacts.out"].read_text().split("\n")
    (item,) = json.loads(message)["inputs"]["artifacts"]["in"]["artifacts"]
    assert item["metadata"] == {"kind": "images"} and text == "content"
    located = documents[-1]["spec"]["templates"][0]["dag"]["tasks"][0]["arguments"]["artifacts"][0]["s3"]
    assert located["endpoint"] == "minio:9000" and located["secretKeySecret"]["name"] == "minio-keys"


COUNT = (
    "import sys, pathlib; o = pathlib.Path(sys.argv[1]); c = pathlib.Path({!r}); n = len(c.read_text()) + 1\n"
    "c.write_text('x' * n)\n"
    "sys.exit({}) if n < 3 else o.write_text('done')"
)
RETRY = {"retryPolicy": {"maxRetryCount": 3, "backoffDuration": "10s", "backoffFactor": 2.0}}


@pytest.mark.parametrize(("code", "pods"), [(143, 3), (3, 3), (1, 1), (2, 1)])
def test_only_interruptions_are_tried_again(tmp_path, code, pods):
    (tmp_path / "count").touch()
    documents = documents_of(
        pipeline({"flaky": container(COUNT.format(str(tmp_path / "count"), code), ("out",), **RETRY)})
    )
    validate(documents)
    run = Simulator(documents, tmp_path / "argo", {})
    if pods == 1:
        with pytest.raises(Failed, match=f"flaky: exit code {code}"):
            run.run()
    else:
        run.run()
    assert run.pods == ["flaky"] * pods
    (template,) = documents[1]["spec"]["templates"]
    assert template["retryStrategy"]["backoff"] == {"duration": "10s", "factor": 2, "cap": "3600s"}


FATES = {
    "lost node": (("Error", -1, "pod deleted"), True),
    "evicted": (("Failed", 137, "The node was low on resource: ephemeral-storage."), True),
    "preempted": (("Failed", 143, "Pod was terminated in response to imminent node shutdown."), True),
    "out of memory": (("Failed", 137, "main: OOMKilled (exit code 137)"), False),
    "no image": (("Failed", -1, "main: ImagePullBackOff"), False),
}


@pytest.mark.parametrize("fate", FATES)
def test_what_the_cluster_did_is_tried_again_but_not_what_comes_again(tmp_path, fate):
    end, again = FATES[fate]
    documents = documents_of(
        pipeline({"say": container("import sys; open(sys.argv[1], 'w').write('x')", ("out",), **RETRY)})
    )
    run = Simulator(documents, tmp_path, {}, fates={"say-0": end})
    if again:
        run.run()
    else:
        with pytest.raises(Failed, match=f"exit code {end[1]}"):
            run.run()
    assert run.pods == ["say"] * (1 + again)


def test_a_time_limit_that_ran_out_is_not_tried_again(tmp_path):
    limit = {"activeDeadlineSeconds": "1"}
    platform = {"platforms": {"kubernetes": {"deploymentSpec": {"executors": {"exec-a": limit}}}}}
    documents = documents_of(
        pipeline({"a": container("import time; time.sleep(60)", ("out",), **RETRY)}), platform=platform
    )
    run = Simulator(documents, tmp_path, {})
    with pytest.raises(Failed, match="exit code 143: Pod was active on the node longer"):
        run.run()
    assert run.pods == ["a"]


def test_a_uri_given_later_that_is_no_place_in_a_bucket_is_named(tmp_path):
    documents = documents_of(imported_spec({"componentInputParameter": "where"}))
    run = Simulator(documents, tmp_path, {}, {"where": "gs://b/a"})
    with pytest.raises(KeyError, match="parameter where is not s3://BUCKET/KEY"):
        run.run()


def test_the_runs_time_and_how_long_its_record_stays():
    times = {"Completion": 3600, "Success": 600, "Failure": 60}
    config = {"activeDeadlineSeconds": 7200} | {f"resourceTtlOn{end}": time for end, time in times.items()}
    documents = documents_of(
        pipeline({"a": container(ECHO, ("out",))}), platform={"platforms": {"kubernetes": {"pipelineConfig": config}}}
    )
    validate(documents)
    assert spec_of(documents)["activeDeadlineSeconds"] == 7200
    assert spec_of(documents)["ttlStrategy"] == {f"secondsAfter{end}": time for end, time in times.items()}


# ---- the command


def test_the_command_prints_what_kubectl_reads():
    options = ["--artifact-repository", "s3://artifacts/stereo", "--endpoint", "http://minio:9000"]
    done = command("argo", DEMO, *options, "--secret", "minio-keys", "--param", "num_epochs=3")
    assert done.returncode == 0, done.stderr
    assert list(yaml.safe_load_all(done.stdout)) == manifests(pipeline_of("demo"), {"num_epochs": 3}, REPOSITORY)


def test_the_command_passes_its_options_on(capsys):
    options = {"schedule": "0 3 * * *", "service_account": "runner", "priority_class": "high"}
    command = ["argo", str(DEMO), "--artifact-repository", "s3://artifacts/stereo", "--endpoint", "http://minio:9000"]
    command += ["--secret", "minio-keys", *(f"--{key.replace('_', '-')}={value}" for key, value in options.items())]
    cli(command, standalone_mode=False)
    said = list(yaml.safe_load_all(capsys.readouterr().out))
    assert said == manifests(pipeline_of("demo"), {}, REPOSITORY, **options)
    cli([*command, "--no-cache", "--argo-version", "3.7"], standalone_mode=False)
    said = list(yaml.safe_load_all(capsys.readouterr().out))
    assert said == manifests(pipeline_of("demo"), {}, REPOSITORY, **options, cache=False, version="3.7")
    assert said[-1]["kind"] == "CronWorkflow" and said[-1]["spec"]["schedules"] == ["0 3 * * *"]
    with pytest.raises(UserError, match="--schedule '@daily': expected five fields"):
        cli([*command, "--schedule", "@daily"], standalone_mode=False)


def test_hera_is_named_where_it_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "hera.workflows", None)
    for name in [name for name in sys.modules if name.startswith("stereo_core.orchestration.argo")]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(UserError, match=r"pip install 'stereo-pipelines\[pipelines\]'"):
        cli(["argo", str(DEMO), "--artifact-repository", "s3://b"], standalone_mode=False)
