"""Hardware profiles: what stands in the compiled files, and what the local engine reads of it."""

import os
import subprocess
import sys

import pytest
import yaml
from kfp import compiler, dsl
from stereo_components import synthesize
from stereo_pipelines.profiles import PROFILES, Profile, apply, profile_named, with_environment

from stereo_core.errors import SpecError
from stereo_core.orchestration.argo.pod import pull_secrets
from stereo_core.orchestration.compile import compiled_path, pipeline_folders
from stereo_core.orchestration.graph import load_pipeline
from stereo_core.orchestration.namespace import VARIABLE_KEYS

GIB = {"Gi": 1.0, "Mi": 1 / 1024}


def compiled(path, profile: Profile, secrets: bool = False) -> tuple[dict, dict]:
    """The step's container and its part of the platform document."""

    @dsl.pipeline(name="profiled")
    def profiled(pull: str = "registry", storage: str = "store", keys: str = "keys"):
        task = apply(synthesize(num_scenes=1), profile, pull_secret=pull if secrets else None)
        if secrets:
            with_environment(task, storage_secret=storage, env_secret=keys)

    compiler.Compiler().compile(profiled, str(path))
    spec, platform = yaml.safe_load_all(path.read_text())
    container = spec["deploymentSpec"]["executors"]["exec-synthesize"]["container"]
    return container, platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]["exec-synthesize"]


@pytest.mark.parametrize("name", PROFILES)
def test_profiles_compile(tmp_path, name):
    profile = PROFILES[name]
    container, platform = compiled(tmp_path / "p.yaml", profile)
    resources = container["resources"]
    for kind in ("Cpu", "Memory"):
        wanted = getattr(profile, kind.lower())
        assert resources[f"resource{kind}Limit"] == resources[f"resource{kind}Request"] == wanted
    accelerator = resources.get("accelerator", {})
    wanted = (str(profile.accelerators), "nvidia.com/gpu") if profile.accelerators else (None, None)
    assert (accelerator.get("resourceCount"), accelerator.get("resourceType")) == wanted

    (shared,) = platform["emptyDirMounts"]
    assert (shared["mountPath"], shared["medium"]) == ("/dev/shm", "Memory")
    assert shared["sizeLimit"] == f"{256 + 512 * profile.workers}Mi"
    in_gib = [float(text[:-2]) * GIB[text[-2:]] for text in (shared["sizeLimit"], profile.memory)]
    assert in_gib[0] <= in_gib[1] / 2, "shared memory counts towards the step's memory"
    assert platform.get("nodeSelector", {}).get("labels", {}) == profile.node_selector
    assert [(t["key"], t["operator"], t["effect"]) for t in platform.get("tolerations", [])] == [
        (key, "Exists", "NoSchedule") for key in profile.tolerate
    ]
    assert "imagePullSecret" not in platform and "secretAsEnv" not in platform

    task = load_pipeline(tmp_path / "p.yaml").tasks["synthesize"]
    assert task.timeout == profile.timeout
    assert task.component.executor.accelerators == profile.accelerators


def test_only_gpu_profiles_tolerate_gpu_nodes():
    assert {name for name, profile in PROFILES.items() if profile.accelerators} == {
        name for name, profile in PROFILES.items() if profile.tolerate
    }
    assert set(PROFILES) == {"cpu", "one-gpu", "multi-gpu", "a100", "h100", "l4", "t4", "jetson"}


def test_secrets_are_named_by_parameters(tmp_path):
    _, platform = compiled(tmp_path / "p.yaml", PROFILES["cpu"], secrets=True)
    (pull,), (storage, keys) = platform["imagePullSecret"], platform["secretAsEnv"]
    assert pull["secretNameParameter"] == {"componentInputParameter": "pull"}
    assert storage["secretNameParameter"] == {"componentInputParameter": "storage"} and storage["optional"]
    assert keys["secretNameParameter"] == {"componentInputParameter": "keys"} and keys["optional"]
    assert [(pair["secretKey"], pair["envVar"]) for pair in keys["keyToEnv"]] == [(k, k) for k in VARIABLE_KEYS]
    variables = [pair["envVar"] for source in (storage, keys) for pair in source["keyToEnv"]]
    assert len(variables) == len(set(variables)), "no variable from two secrets"
    assert load_pipeline(tmp_path / "p.yaml").tasks["synthesize"], "the local engine reads it too"


LOADING = {"train", "automl", "evaluate", "inference", "quantize", "trt-evaluate", "trt-inference"}


@pytest.mark.parametrize("folder", pipeline_folders(), ids=lambda folder: folder.name)
def test_no_shipped_step_is_without_shared_memory_time_limit_and_environment(folder):
    """A container's own /dev/shm has 64 MiB, too little for processes that load images."""
    for task in load_pipeline(compiled_path(folder)).tasks.values():
        if task.imported:
            continue
        assert 24 * 3600 <= task.timeout <= 7 * 24 * 3600
        mounts = {m["mountPath"]: (m["medium"], m["sizeLimit"]) for m in task.platform.get("emptyDirMounts", ())}
        loads = task.reference.rstrip("-0123456789") in LOADING
        assert mounts.get("/dev/shm") == ("Memory", "4352Mi") or not loads
        keys = [
            p["envVar"]
            for kind in ("secretAsEnv", "configMapAsEnv")
            for s in task.platform[kind]
            for p in s["keyToEnv"]
        ]
        assert {"AWS_ACCESS_KEY_ID", "AWS_ENDPOINT_URL", "AWS_REGION", "WANDB_API_KEY"} <= set(keys)


def test_a_profile_and_a_pull_secret_of_ones_own(tmp_path):
    """As a user compiles for nodes that this library does not know."""
    (tmp_path / "nodes.py").write_text(
        "from stereo_pipelines.profiles import Profile\nA10 = Profile('8', '32Gi', workers=6, accelerators=1)\nX = 1\n"
    )
    path = tmp_path / "demo.yaml"
    code = "import sys; from kfp import compiler; from stereo_pipelines.demo.pipeline import demo\n"
    command = [sys.executable, "-c", f"{code}compiler.Compiler().compile(demo, sys.argv[1])", path]
    environment = {"PYTHONPATH": str(tmp_path), "STEREO_PIPELINES_PULL_SECRET": "registry"}

    def run(profile: str) -> subprocess.CompletedProcess:
        given = os.environ | environment | {"STEREO_PIPELINES_PROFILE": profile}
        return subprocess.run(command, env=given, capture_output=True, text=True)

    done = run("nodes:A10")
    assert done.returncode == 0, done.stderr
    tasks = load_pipeline(path).tasks
    on_gpus = {name for name, task in tasks.items() if task.component.executor.accelerators}
    assert on_gpus == set(tasks) - {"synthesize", "synthesize-2", "convert", "convert-2"}
    assert {secret for task in tasks.values() for secret in pull_secrets(task)} == {"registry"}
    wrong = run("nodes:A11")
    assert wrong.returncode and "profile nodes:A11: module 'nodes' has no attribute 'A11'" in wrong.stderr


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("h200", "no profile 'h200'; known: cpu, one-gpu"),
        ("nowhere_at_all:X", "profile nowhere_at_all:X: No module named"),
        (":X", "profile :X: "),
        ("stereo_pipelines.profiles:DAY", "expected a stereo_pipelines.profiles.Profile, got 86400"),
    ],
)
def test_a_profile_that_is_none(name, message):
    with pytest.raises(SpecError, match=message):
        profile_named(name)
