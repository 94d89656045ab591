"""What `kubectl apply -k` would send: valid, within pod security `restricted`, with least rights, every name there."""

from __future__ import annotations

import copy
import gzip
import json
import re
import shutil
import subprocess
from pathlib import Path

import jsonschema
import kubernetes_validate
import pytest
import yaml
from click.testing import CliRunner
from kubeflow_katib_api.models import V1beta1Experiment
from kubernetes.utils.quantity import parse_quantity
from needs import lacking
from pod_security import pods, violations
from stereo_pipelines.profiles import SHARED_MIB

from stereo_core import __version__
from stereo_core.errors import SpecError
from stereo_core.orchestration.argo.check import problems
from stereo_core.orchestration.cli import cli
from stereo_core.orchestration.katib import experiment, read_spec
from stereo_core.run.status import StatusLog
from stereo_core.spec.loading import build, load_spec, read_tree
from stereo_core.spec.train import AUTO

MANIFESTS = Path(__file__).parents[2] / "manifests"
SCHEMAS = MANIFESTS.parent.parent / "shared/schemas"
OVERLAYS = sorted(path.name for path in (MANIFESTS / "overlays").iterdir())
GPU_OVERLAYS = ["eks", "gke", "on-prem"]
FOREIGN = ("argoproj.io", "trainer.kubeflow.org", "pipelines.kubeflow.org")


def build_overlay(folder: Path) -> list[dict]:
    """What kubectl makes of a folder."""
    if not shutil.which("kubectl"):
        lacking("kubectl", "kubectl is not here")
    done = subprocess.run(["kubectl", "kustomize", str(folder)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return list(yaml.safe_load_all(done.stdout))


@pytest.fixture(scope="module")
def overlays() -> dict[str, list[dict]]:
    return {name: build_overlay(MANIFESTS / "overlays" / name) for name in OVERLAYS}


def read(path: str) -> dict:
    return yaml.safe_load((MANIFESTS / path).read_text())


def read_first(path: str) -> dict:
    return next(yaml.safe_load_all((MANIFESTS / path).read_text()))


def named(documents: list[dict], kind: str) -> dict[str, dict]:
    return {d["metadata"]["name"]: d for d in documents if d["kind"] == kind}


def strict_schema(document: dict) -> dict:
    path = SCHEMAS / f"{document['apiVersion'].replace('/', '_')}_{document['kind']}.json.gz"
    if not path.is_file():
        lacking("shared", f"{path} is not here")
    return json.loads(gzip.decompress(path.read_bytes()))


def validate(document: dict) -> None:
    """Against the resource's own schema; unknown fields are errors."""
    if document["apiVersion"].startswith(FOREIGN):
        jsonschema.Draft202012Validator(strict_schema(document)).validate(document)
    else:
        kubernetes_validate.validate(document, kubernetes_validate.latest_version(), strict=True)


def values_of(part: object, key: str):
    """Every value of a key, at any depth."""
    if isinstance(part, dict):
        for name, value in part.items():
            if name == key:
                yield value
            yield from values_of(value, key)
    elif isinstance(part, list):
        for value in part:
            yield from values_of(value, key)


# ---- valid


@pytest.mark.parametrize("name", OVERLAYS)
def test_every_resource_of_an_overlay_is_valid(overlays, name):
    documents = overlays[name]
    for document in documents:
        validate(document)
    assert problems([d for d in documents if d["kind"] == "WorkflowTemplate"]) == []
    kinds = {document["kind"] for document in documents}
    assert {"Namespace", "NetworkPolicy", "ResourceQuota", "LimitRange", "PriorityClass", "WorkflowTemplate"} <= kinds
    assert ("TrainingRuntime" in kinds) == (name in GPU_OVERLAYS)


def test_a_misspelt_field_is_found():
    quota = {"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "q"}, "spec": {"hard": {}, "soft": {}}}
    with pytest.raises(kubernetes_validate.ValidationError, match="soft"):
        validate(quota)
    runtime = read("trainer/runtime.yaml")
    validate(runtime)
    runtime["spec"]["mlPolicy"]["torch"] = {"numProcPerNode": "auto"}  # earlier releases had it
    with pytest.raises(jsonschema.ValidationError, match="numProcPerNode"):
        validate(runtime)
    pipeline = read_first("kfp/demo.yaml")
    validate(pipeline)
    pipeline["spec"]["title"] = "demo"
    with pytest.raises(jsonschema.ValidationError, match="title"):
        validate(pipeline)


def test_trainjob():
    job = read("trainer/trainjob.yaml")
    validate(job)
    assert job["spec"]["runtimeRef"]["name"] == read("trainer/runtime.yaml")["metadata"]["name"]
    gpus = job["spec"]["trainer"]["resourcesPerNode"]["limits"]["nvidia.com/gpu"]
    assert int(gpus) == job["spec"]["trainer"]["numProcPerNode"]  # a process a GPU


def test_a_wrong_spec_is_not_tried_again_and_a_lost_node_is():
    job = read("trainer/runtime.yaml")["spec"]["template"]["spec"]["replicatedJobs"][0]["template"]["spec"]
    assert job["template"]["spec"]["restartPolicy"] == "Never"
    rules = {rule["action"]: rule for rule in job["podFailurePolicy"]["rules"]}
    assert rules["FailJob"]["onExitCodes"]["values"] == [2] and rules["Ignore"]["onPodConditions"]
    validate({"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "j"}, "spec": job})


def test_another_attempt_goes_on_from_the_checkpoint():
    """A lost node's pod is begun anew with the same arguments, in the same folder."""
    job = read("trainer/runtime.yaml")["spec"]["template"]["spec"]["replicatedJobs"][0]["template"]["spec"]
    (node,) = job["template"]["spec"]["containers"]
    for args in (node["args"], read("trainer/trainjob.yaml")["spec"]["trainer"]["args"]):
        keys = dict(token.split("=") for token in args if "=" in token)
        assert keys["train.resume_training_checkpoint_path"] == AUTO and keys["results_dir"].startswith("/data/")


def test_every_loader_process_has_its_shared_memory(overlays):
    """Without, loaders die of a bus error."""
    every, each = SHARED_MIB
    workers = build("train", {}).dataset.train_dataset.workers
    steps = {n: d["spec"]["templates"][0] for n, d in named(overlays["gke"], "WorkflowTemplate").items()}
    steps = {n: (pod, pod["container"]["resources"]) for n, pod in steps.items() if "/dev/shm" in str(pod)}
    job = named(overlays["gke"], "TrainingRuntime")["stereo-train"]["spec"]["template"]["spec"]["replicatedJobs"][0]
    training = read("trainer/trainjob.yaml")["spec"]["trainer"]["resourcesPerNode"]
    steps["TrainJob"] = job["template"]["spec"]["template"]["spec"], training
    assert {"stereo-train", "stereo-train-distributed", "stereo-trt-inference", "TrainJob"} <= set(steps)
    for name, (pod, resources) in steps.items():
        (size,) = (v["emptyDir"]["sizeLimit"] for v in pod["volumes"] if v["name"] == "shared-memory")
        wanted = (every + each * workers * int(resources["limits"]["nvidia.com/gpu"])) * 2**20
        assert wanted <= parse_quantity(size) < 1.25 * wanted, name
        assert parse_quantity(size) < parse_quantity(resources["requests"]["memory"]) / 2, name


def test_the_examples_fit_into_the_quota():
    """What asks for more than the quota would wait for ever."""
    quotas = named(list(yaml.safe_load_all((MANIFESTS / "base/limits.yaml").read_text())), "ResourceQuota")
    trainer = read("trainer/trainjob.yaml")["spec"]["trainer"]
    asked = trainer["resourcesPerNode"]["requests"]
    for quota in ("stereo", "stereo-training"):
        for name, most in quotas[quota]["spec"]["hard"].items():
            if (resource := name.removeprefix("requests.")) in asked:
                assert trainer["numNodes"] * parse_quantity(asked[resource]) <= parse_quantity(most), (quota, name)
    search = read("katib/experiment.yaml")["spec"]
    assert search["parallelTrialCount"] <= int(quotas["stereo-training"]["spec"]["hard"]["requests.nvidia.com/gpu"])


def test_kubeflow_resources_carry_the_compiled_pipelines():
    documents = build_overlay(MANIFESTS / "kfp")
    for document in documents:
        validate(document)
    versions = {d["metadata"]["name"]: d["spec"] for d in documents if d["kind"] == "PipelineVersion"}
    assert {d["metadata"]["name"] for d in documents if d["kind"] == "Pipeline"} == set(versions)
    assert {d["metadata"]["namespace"] for d in documents} == {"kubeflow"}
    assert len(versions) > 4
    for name, carried in versions.items():
        folder = name.replace("-", "_")
        path = MANIFESTS.parent / f"pipelines/{folder}/compiled/{folder}.yaml"
        pipeline, platform = yaml.safe_load_all(path.read_text())
        assert carried["pipelineName"] == name == pipeline["pipelineInfo"]["name"]
        assert (carried["pipelineSpec"], carried["platformSpec"]) == (pipeline, platform)


# ---- pod security


@pytest.mark.parametrize("name", OVERLAYS)
def test_every_pod_passes_restricted(overlays, name):
    found = [(d["metadata"]["name"], pod) for d in overlays[name] for pod in pods(d)]
    steps = (MANIFESTS / "argo/templates.yaml").read_text().count("kind: WorkflowTemplate")
    assert steps > 10 and len(found) == steps + (name in GPU_OVERLAYS)
    assert {where: list(violations(pod)) for where, pod in found if list(violations(pod))} == {}
    labels = named(overlays[name], "Namespace")["stereo"]["metadata"]["labels"]
    assert labels["pod-security.kubernetes.io/enforce"] == "restricted"


def test_every_pod_of_a_pipelines_workflow_passes_restricted():
    found = 0
    for path in sorted(MANIFESTS.parent.glob("pipelines/*/compiled/*.argo.yaml")):
        for document in yaml.safe_load_all(path.read_text()):
            if document["kind"] in ("WorkflowTemplate", "Workflow"):
                wrong = [rule for pod in pods(document) for rule in violations(pod)]
                assert wrong == [], (path.name, document["metadata"])
                found += 1
    assert found > 20


def test_compiled_workflows_fit_the_local_overlay(overlays):
    """Their account may run Argo's executor, their bucket and its keys are those of the namespace."""
    documents = overlays["kind-local"]
    accounts = named(documents, "ServiceAccount")
    repository = yaml.safe_load(named(documents, "ConfigMap")["artifact-repositories"]["data"]["stereo"])["s3"]
    endpoint = named(documents, "ConfigMap")["stereo-storage"]["data"]["AWS_ENDPOINT_URL"]
    paths = sorted(MANIFESTS.parent.glob("pipelines/*/compiled/*.argo.yaml"))
    assert len(paths) > 4
    for path in paths:
        (config, *steps, workflow) = yaml.safe_load_all(path.read_text())
        assert workflow["spec"]["serviceAccountName"] in accounts, path.name
        own = json.loads(config["data"]["repository"])["s3"]
        assert {key: own[key] for key in ("bucket", "endpoint", "accessKeySecret", "secretKeySecret")} == {
            key: repository[key] for key in ("bucket", "endpoint", "accessKeySecret", "secretKeySecret")
        }
        assert endpoint.endswith(f"//{own['endpoint']}")
        for step in (d for d in steps if d["kind"] == "WorkflowTemplate"):
            environment = {e["name"]: e["valueFrom"] for e in step["spec"]["templates"][-1]["container"]["env"]}
            assert environment["AWS_ENDPOINT_URL"]["configMapKeyRef"]["name"] == "stereo-storage"
            assert environment["AWS_SECRET_ACCESS_KEY"]["secretKeyRef"] == own["secretKeySecret"] | {"optional": True}


PRIVILEGED = {
    "name": "x",
    "securityContext": {"privileged": True, "allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
}
MUTATIONS = [  # the rule, and what spoils the pod, its security context, its first container or that one's context
    ("runAsNonRoot", {"shared": {"runAsNonRoot": None}, "own": {"runAsNonRoot": None}}),
    ("runAsNonRoot", {"shared": {"runAsNonRoot": False}}),
    ("runAsUser", {"own": {"runAsUser": 0}}),
    ("seccompProfile", {"shared": {"seccompProfile": None}}),
    ("seccompProfile", {"own": {"seccompProfile": {"type": "Unconfined"}}}),
    ("appArmorProfile", {"shared": {"appArmorProfile": {"type": "Unconfined"}}}),
    ("seLinuxOptions", {"own": {"seLinuxOptions": {"type": "spc_t"}}}),
    ("seLinuxOptions", {"shared": {"seLinuxOptions": {"user": "system_u"}}}),
    ("sysctls", {"shared": {"sysctls": [{"name": "kernel.msgmax", "value": "1"}]}}),
    ("allowPrivilegeEscalation", {"own": {"allowPrivilegeEscalation": None}}),
    ("privileged", {"own": {"privileged": True}}),
    ("privileged", {"pod": {"initContainers": [PRIVILEGED]}}),
    ("privileged", {"pod": {"ephemeralContainers": [PRIVILEGED]}}),
    ("procMount", {"own": {"procMount": "Unmasked"}}),
    ("hostProcess", {"own": {"windowsOptions": {"hostProcess": True}}}),
    ("capabilities", {"own": {"capabilities": None}}),
    ("capabilities", {"own": {"capabilities": {"drop": ["ALL"], "add": ["SYS_ADMIN"]}}}),
    ("hostPort", {"one": {"ports": [{"containerPort": 80, "hostPort": 80}]}}),
    ("host of a probe", {"one": {"livenessProbe": {"tcpSocket": {"host": "a", "port": 1}}}}),
    ("host of a probe", {"one": {"lifecycle": {"preStop": {"httpGet": {"host": "a", "port": 1}}}}}),
    ("volume of hostPath", {"pod": {"volumes": [{"name": "x", "hostPath": {"path": "/"}}]}}),
    ("hostNetwork", {"pod": {"hostNetwork": True}}),
    ("hostPID", {"pod": {"hostPID": True}}),
    ("hostIPC", {"pod": {"hostIPC": True}}),
]


@pytest.mark.parametrize(("rule", "changes"), MUTATIONS)
@pytest.mark.parametrize("path", ["trainer/runtime.yaml", "katib/experiment.yaml", "argo/templates.yaml"])
def test_what_restricted_refuses_is_found(path, rule, changes):
    (pod,) = pods(read_first(path))
    assert list(violations(pod)) == []
    pod = copy.deepcopy(pod)
    one = pod["containers"][0]
    places = {"pod": pod, "shared": pod["securityContext"], "one": one, "own": one["securityContext"]}
    for place, change in changes.items():
        places[place].update(change)
        for key in (key for key, value in change.items() if value is None):
            del places[place][key]
    assert set(violations(pod)) == {rule}


def test_a_kind_whose_pods_are_not_known_is_no_kind_without_pods():
    job = {"kind": "Deployment", "spec": {"template": {"spec": {"containers": [{"name": "a"}]}}}}
    with pytest.raises(ValueError, match="Deployment"):
        list(pods(job))


def test_what_argo_adds_to_a_pod_counts():
    """Its containers would run as root and with every capability, and a template's patch may undo what it says."""
    template = read_first("argo/templates.yaml")
    broken = {
        "capabilities": lambda t: t.pop("podSpecPatch"),
        "runAsUser": lambda t: t["securityContext"].pop("runAsUser"),
        "hostPID": lambda t: t.update(podSpecPatch=json.dumps(json.loads(t["podSpecPatch"]) | {"hostPID": True})),
    }
    for rule, spoil in broken.items():
        document = copy.deepcopy(template)
        spoil(document["spec"]["templates"][0])
        (pod,) = pods(document)
        assert rule in list(violations(pod))


# ---- names and rights


@pytest.mark.parametrize("name", OVERLAYS)
def test_what_is_named_is_there(overlays, name):
    documents = overlays[name]
    accounts, roles = named(documents, "ServiceAccount"), named(documents, "Role")
    for binding in named(documents, "RoleBinding").values():
        assert binding["roleRef"]["name"] in roles
        assert all(subject["name"] in accounts for subject in binding["subjects"])
    for key, kind in (("serviceAccountName", "ServiceAccount"), ("priorityClassName", "PriorityClass")):
        assert set(values_of(documents, key)) <= set(named(documents, kind))
    claims = {claim["claimName"] for claim in values_of(documents, "persistentVolumeClaim")}
    assert claims <= set(named(documents, "PersistentVolumeClaim"))
    assert {ref["name"] for ref in values_of(documents, "configMapRef")} <= set(named(documents, "ConfigMap"))
    quotas = named(documents, "ResourceQuota")["stereo-training"]["spec"]["scopeSelector"]["matchExpressions"]
    assert quotas[0]["values"] == ["stereo-training"]


@pytest.mark.parametrize("name", OVERLAYS)
def test_secrets_by_name_alone_and_no_wide_rights(overlays, name):
    documents = overlays[name]
    assert "Secret" not in {document["kind"] for document in documents}
    assert {ref["name"] for ref in values_of(documents, "secretKeyRef")} <= {"stereo-s3", "stereo-env"}
    assert not {d["kind"] for d in documents} & {"ClusterRole", "ClusterRoleBinding"}
    for role in named(documents, "Role").values():
        for rule in role["rules"]:
            assert "*" not in [*rule["apiGroups"], *rule["resources"], *rule["verbs"]]
            assert "secrets" not in rule["resources"] or rule["resourceNames"]
    executor = named(documents, "Role")["stereo-argo"]["rules"]
    assert {(r, v) for rule in executor for r in rule["resources"] for v in rule["verbs"]} == {
        ("workflowtaskresults", "create"),
        ("workflowtaskresults", "patch"),
        ("workflowartifactgctasks", "list"),
        ("workflowartifactgctasks", "watch"),
        ("workflowartifactgctasks/status", "patch"),
    }
    assert named(documents, "ServiceAccount")["stereo-train"]["automountServiceAccountToken"] is False


@pytest.mark.parametrize("name", OVERLAYS)
def test_the_network_is_closed_but_for_what_is_named(overlays, name):
    policies = {policy: d["spec"] for policy, d in named(overlays[name], "NetworkPolicy").items()}
    assert policies.pop("default-deny") == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    incoming = {policy for policy, spec in policies.items() if "Ingress" in spec["policyTypes"]}
    assert incoming == {"training"}  # no other pod takes calls
    anywhere = [rule["ports"] for spec in policies.values() for rule in spec.get("egress", []) if "to" not in rule]
    assert [{port["port"] for port in ports} for ports in anywhere] == [{443, 6443}]
    (label,) = policies["training"]["podSelector"]["matchLabels"].items()
    if runtimes := named(overlays[name], "TrainingRuntime"):
        job = runtimes["stereo-train"]["spec"]["template"]["spec"]["replicatedJobs"][0]
        assert label in job["template"]["spec"]["template"]["metadata"]["labels"].items()


# pod ports behind the services of known installations: a policy sees these, not the services' own
PODS = {
    "kubeflow": {
        "ml-pipeline": {8888, 8887},
        "metadata-grpc-service": {8080},
        "minio-service, to 2.14": {9000},
        "seaweedfs, from 2.15 (service port 9000)": {8333},
    },
    "minio": {"minio": {9000}},
    "kube-system": {"kube-dns": {53}},
}


@pytest.mark.parametrize("name", OVERLAYS)
def test_policies_let_pods_reach_the_ports_that_pods_have(overlays, name):
    open_ports: dict[str, set[int]] = {}
    for policy in named(overlays[name], "NetworkPolicy").values():
        for rule in policy["spec"].get("egress", []):
            for peer in rule.get("to", []):
                labels = peer.get("namespaceSelector", {}).get("matchLabels", {})
                there = labels.get("kubernetes.io/metadata.name")
                open_ports.setdefault(there, set()).update(port["port"] for port in rule.get("ports", []))
    assert {"kubeflow", "kube-system"} <= set(open_ports)
    for namespace in set(PODS) & set(open_ports):
        assert open_ports[namespace] == set().union(*PODS[namespace].values()), namespace


def test_argos_controller_may_write_its_cache_where_it_runs_and_long_templates_beside_the_pods(overlays, tmp_path):
    """In its own namespace, which one line says; in the pipelines' namespace it may create, and pods may not."""
    shutil.copytree(MANIFESTS / "controller", tmp_path / "controller")
    for namespace in ("argo", "workflows"):
        path = tmp_path / "controller/kustomization.yaml"
        path.write_text(path.read_text().replace("namespace: argo ", f"namespace: {namespace} "))
        documents = build_overlay(path.parent)
        for document in documents:
            validate(document)
        roles, bindings = named(documents, "Role"), named(documents, "RoleBinding")
        assert roles.keys() == bindings.keys() == {"stereo-argo-cache", "stereo-argo-long"}
        wanted = {
            "stereo-argo-cache": (namespace, ["create", "get", "update", "delete"]),
            "stereo-argo-long": ("stereo", ["create"]),
        }
        for name, (place, verbs) in wanted.items():
            assert roles[name]["metadata"]["namespace"] == bindings[name]["metadata"]["namespace"] == place
            assert roles[name]["rules"] == [{"apiGroups": [""], "resources": ["configmaps"], "verbs": verbs}]
            assert bindings[name]["subjects"] == [{"kind": "ServiceAccount", "name": "argo", "namespace": namespace}]
            assert bindings[name]["roleRef"]["name"] == name
    for name in OVERLAYS:
        rules = [rule for role in named(overlays[name], "Role").values() for rule in role["rules"]]
        assert not [rule for rule in rules if "configmaps" in rule["resources"] and "create" in rule["verbs"]], name


def test_every_pod_names_its_user():
    """Katib and others put containers into pods, whose images may name no user: runAsNonRoot alone keeps them out."""
    paths = [MANIFESTS / name for name in ("katib/experiment.yaml", "trainer/runtime.yaml", "argo/templates.yaml")]
    paths += sorted(MANIFESTS.parent.glob("pipelines/*/compiled/*.argo.yaml"))
    documents = [document for path in paths for document in yaml.safe_load_all(path.read_text())]
    found = [pod for document in documents for pod in pods(document)]
    assert len(found) > 50
    for pod in found:
        assert pod["securityContext"]["runAsUser"] == 10001 and pod["securityContext"]["runAsGroup"] == 0
        assert list(violations(pod)) == []


@pytest.mark.parametrize("name", OVERLAYS)
def test_the_artifact_repository(overlays, name):
    maps = named(overlays[name], "ConfigMap")
    which = maps["artifact-repositories"]["metadata"]["annotations"]
    default = which["workflows.argoproj.io/default-artifact-repository"]
    s3 = yaml.safe_load(maps["artifact-repositories"]["data"][default])["s3"]
    assert s3["bucket"] and s3["keyFormat"] == "{{workflow.name}}/{{pod.name}}"
    secured = {"name": "stereo-s3", "key": "secretkey"}
    assert s3.get("secretKeySecret") == secured if name != "eks" else s3["useSDKCreds"] is True
    scheme = "http" if s3.get("insecure") else "https"
    assert maps["stereo-storage"]["data"]["AWS_ENDPOINT_URL"] == f"{scheme}://{s3['endpoint']}"


@pytest.mark.parametrize("name", OVERLAYS)
def test_gpu_steps_ask_for_gpus_where_there_are_some(overlays, name):
    templates = {n: d["spec"]["templates"][0] for n, d in named(overlays[name], "WorkflowTemplate").items()}
    on_gpu = {n for n, t in templates.items() if "nvidia.com/gpu" in str(t["container"].get("resources"))}
    if name not in GPU_OVERLAYS:
        assert on_gpu == set()
        return
    assert {"stereo-train", "stereo-gen-trt-engine", "stereo-trt-evaluate"} <= on_gpu
    assert not on_gpu & {"stereo-convert", "stereo-synthesize", "stereo-report"}
    priorities = {n: templates[n]["priorityClassName"] for n in on_gpu}
    trainings = {n for n, p in priorities.items() if p == "stereo-training"}
    assert trainings - {"stereo-train-distributed"} == {"stereo-train", "stereo-automl"}
    assert set(priorities.values()) == {"stereo-training", "stereo-gpu-step"}


def test_one_image_for_all(overlays):
    """`images:` of an overlay reaches Argo's templates too."""
    for name, documents in overlays.items():
        images = set(values_of(documents, "image"))
        assert len(images) == 1, name
        assert images.pop().endswith(f"stereo-pipelines/runtime:{__version__}")


# ---- Katib


def katib(**automl) -> dict:
    tree = read_tree(MANIFESTS / "katib/train.yaml")
    tree["train"]["pretrained_model_path"] = ""  # whose weights settle the model's keys
    tree["automl"] |= automl
    return experiment(build("automl", tree), "search", "image:1")


def test_experiment_is_valid():
    document = read("katib/experiment.yaml")
    assert V1beta1Experiment.from_dict(document).to_dict() == document  # unknown fields would be lost
    job = document["spec"]["trialTemplate"]["trialSpec"]
    kubernetes_validate.validate(job, kubernetes_validate.latest_version(), strict=True)
    text = (MANIFESTS / "katib/experiment.yaml").read_text()
    assert not re.search(r"min: \d+e-", text)  # Kubernetes would read it as a number where it wants text


def test_a_search_needs_data(tmp_path):
    tree = read_tree(MANIFESTS / "katib/train.yaml")
    del tree["dataset"]["val_dataset"]
    (tmp_path / "train.yaml").write_text(yaml.safe_dump(tree))
    with pytest.raises(SpecError, match=r"val_dataset.data_sources: at least one entry"):
        read_spec(tmp_path / "train.yaml")


def test_experiment_searches_what_the_spec_says():
    spec = katib(
        algorithm="bohb",
        automl_max_recommendations=12,
        automl_max_epochs=9,
        automl_max_concurrent=3,
        automl_hyperparameters=["train.optim.lr", "train.optim.weight_decay", "model.corr_radius"],
        custom_param_ranges={
            "train.optim.lr": {"valid_min": 1e-5, "valid_max": 1e-3},
            "train.optim.weight_decay": {"valid_options": [0.0001, 0.01]},
        },
    )["spec"]
    assert (spec["algorithm"]["algorithmName"], spec["earlyStopping"]["algorithmName"]) == (
        "multivariate-tpe",
        "medianstop",
    )
    assert (spec["maxTrialCount"], spec["parallelTrialCount"]) == (12, 3)
    lr, decay, radius = spec["parameters"]
    assert lr["name"] == "train.optim.lr" and lr["parameterType"] == "double"
    assert lr["feasibleSpace"] == {"min": "0.00001", "max": "0.001", "distribution": "logUniform"}
    assert decay["parameterType"] == "discrete" and decay["feasibleSpace"] == {"list": ["0.0001", "0.01"]}
    assert radius["parameterType"] == "int"
    command = spec["trialTemplate"]["trialSpec"]["spec"]["template"]["spec"]["containers"][0]["command"]
    assert "train.num_epochs=9" in command
    wanted = dict(re.fullmatch(r"([\w.]+)=\$\{trialParameters\.(\w+)\}", c).groups() for c in command if "$" in c)
    given = {p["reference"]: p["name"] for p in spec["trialTemplate"]["trialParameters"]}
    assert wanted == given and list(given) == [p["name"] for p in spec["parameters"]]
    assert "earlyStopping" not in katib(algorithm="bayesian")["spec"]
    with pytest.raises(SpecError, match=r"train\.num_epochs cannot be searched"):
        katib(automl_hyperparameters=["train.num_epochs"])


def test_a_users_own_spec(tmp_path):
    path = tmp_path / "train.yaml"
    data = {f"{split}_dataset": {"data_sources": [{"data_file": "/data/l.txt"}]} for split in ("train", "val")}
    tree = {"automl": {"algorithm": "asha", "automl_max_recommendations": 7}, "train": {"num_epochs": 3}}
    path.write_text(yaml.safe_dump(tree | {"dataset": data}))
    result = CliRunner().invoke(cli, ["katib", str(path), "--image", "mine:2", "--spec-file", "/data/own.yaml"])
    spec = yaml.safe_load(result.output)["spec"]
    assert (spec["algorithm"]["algorithmName"], spec["maxTrialCount"]) == ("random", 7)
    container = spec["trialTemplate"]["trialSpec"]["spec"]["template"]["spec"]["containers"][0]
    assert container["image"] == "mine:2" and "/data/own.yaml" in container["command"]
    path.write_text("automl: {algoritm: asha}\n")
    with pytest.raises(
        SpecError, match=r"train\.yaml: automl\.algoritm: unknown key; did you mean automl\.algorithm\?"
    ):
        read_spec(path)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--name", "My_Search"),
        ("--name", "1st-search"),
        ("--name", "a" * 41),  # with the algorithm's name a Service's name is too long, and no trial starts
        ("--image", "mine: 2"),
        ("--spec-file", "train.yaml"),
    ],
)
def test_a_search_that_no_cluster_runs_is_refused(option, value):
    result = CliRunner().invoke(cli, ["katib", str(MANIFESTS / "katib/train.yaml"), option, value])
    assert result.exit_code and "kind: Experiment" not in result.output
    assert f"{value}: expected" in f"{result.output} {result.exception}"


def test_a_trials_command_is_a_training_with_its_values(tmp_path):
    tree = read_tree(MANIFESTS / "katib/train.yaml")
    tree["train"]["pretrained_model_path"] = ""
    tree["model"] = {"preset": "tiny", "stereo_backbone": {"allow_random_backbone": True}}
    for name in ("train", "val"):
        (tmp_path / f"{name}.txt").write_text("left.png right.png disparity.png\n")
        tree["dataset"][f"{name}_dataset"]["data_sources"][0]["data_file"] = str(tmp_path / f"{name}.txt")
    path = tmp_path / "train.yaml"
    path.write_text(yaml.safe_dump(tree))
    trial = experiment(read_spec(path), "search", "image:1", str(path))["spec"]["trialTemplate"]
    (container,) = trial["trialSpec"]["spec"]["template"]["spec"]["containers"]
    values = {"train.optim.lr": "0.00025", "train.optim.weight_decay": "0.0003"}
    command = "\n".join(container["command"])
    for parameter in trial["trialParameters"]:  # as Katib fills them in
        command = command.replace(f"${{trialParameters.{parameter['name']}}}", values[parameter["reference"]])
    _, verb, _, file, *overrides = command.split("\n")
    spec = load_spec(verb, Path(file), overrides)
    assert (spec.train.optim.lr, spec.train.optim.weight_decay) == (0.00025, 0.0003)
    assert (spec.results_dir, spec.train.num_epochs, spec.train.num_gpus) == ("/results", 27, 1)


def test_experiment_reads_the_metric_from_status_json(tmp_path):
    log = StatusLog(tmp_path)
    log.running("Validation metrics generated.", kpi={"val/epe": 1.5, "val/epe_pixel": 7.0, "val/loss": 3e-05})
    text = (tmp_path / "status.json").read_text()
    for metric, value in (("val/epe", "1.5"), ("val/loss", "3e-05")):
        source = katib(metric=metric)["spec"]["metricsCollectorSpec"]["source"]
        assert re.findall(source["filter"]["metricsFormat"][0], text) == [(metric, value)]


def test_katib_component_lowers_the_namespace_only_where_it_is_taken(tmp_path, overlays):
    folder = tmp_path / "manifests"
    shutil.copytree(MANIFESTS, folder)
    path = folder / "overlays/gke/kustomization.yaml"
    path.write_text(path.read_text().replace("  - ../../gpu\n", "  - ../../gpu\n  - ../../katib\n"))
    documents = build_overlay(path.parent)
    labels = named(documents, "Namespace")["stereo"]["metadata"]["labels"]
    assert labels["pod-security.kubernetes.io/enforce"] == "baseline"
    assert labels["pod-security.kubernetes.io/warn"] == "restricted"
    assert "katib" in named(documents, "NetworkPolicy") and "katib" not in named(overlays["gke"], "NetworkPolicy")
    validate(named(documents, "NetworkPolicy")["katib"])
