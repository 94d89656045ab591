"""Hardware profiles: what stands in the compiled files, and what the local engine reads of it."""

import pytest
import yaml
from kfp import compiler, dsl
from stereo_components import synthesize
from stereo_pipelines.profiles import PROFILES, SECRET_KEYS, Profile, apply

from stereo_core.orchestration.graph import load_pipeline

GIB = {"Gi": 1.0, "Mi": 1 / 1024}


def compiled(path, profile: Profile, **secrets) -> tuple[dict, dict]:
    """The step's container and its part of the platform document."""

    @dsl.pipeline(name="profiled")
    def profiled(pull: str = "registry", keys: str = "keys"):
        parameters = {"pull_secret": pull, "env_secret": keys}
        apply(synthesize(num_scenes=1), profile, **{name: parameters[name] for name in secrets})

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
    _, platform = compiled(tmp_path / "p.yaml", PROFILES["cpu"], pull_secret=True, env_secret=True)
    (pull,), (keys,) = platform["imagePullSecret"], platform["secretAsEnv"]
    assert pull["secretNameParameter"] == {"componentInputParameter": "pull"}
    assert keys["secretNameParameter"] == {"componentInputParameter": "keys"} and keys["optional"]
    assert [(pair["secretKey"], pair["envVar"]) for pair in keys["keyToEnv"]] == [(k, k) for k in SECRET_KEYS]
    assert load_pipeline(tmp_path / "p.yaml").tasks["synthesize"], "the local engine reads it too"
