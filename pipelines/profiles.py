"""Hardware profiles: the resources that a step requests. Use `apply(task, PROFILES["h100"])` in a pipeline.

Placement belongs to a pipeline, not to a component. To define your own profile write `Profile(...)`, or
`dataclasses.replace` of one here.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass, field

from kfp import dsl, kubernetes

from stereo_core.errors import SpecError
from stereo_core.orchestration.namespace import (
    CREDENTIAL_KEYS,
    CREDENTIALS,
    STORAGE,
    STORAGE_KEYS,
    VARIABLE_KEYS,
    VARIABLES,
)

SHARED_MIB = 256, 512  # size of /dev/shm: for the step, and for each data loader process
DAY = 24 * 3600


@dataclass(frozen=True)
class Profile:
    """The resources of one step.

    Args:
        cpu: CPU cores (request and limit) in Kubernetes notation ("8", "500m"); empty: the cluster's default.
        memory: The same for memory ("32Gi"); /dev/shm counts towards it.
        workers: Data loader processes of all ranks together; they determine the size of /dev/shm. 0: 64 MiB.
        accelerators: Number of GPUs; 0 requests none.
        accelerator: The GPUs' resource name in Kubernetes.
        node_selector: Labels that the node must have.
        tolerate: Keys of taints (effect NoSchedule) that the step tolerates.
        timeout: Seconds after which the step is stopped.
    """

    cpu: str = ""
    memory: str = ""
    workers: int = 0
    accelerators: int = 0
    accelerator: str = "nvidia.com/gpu"
    node_selector: dict[str, str] = field(default_factory=dict)
    tolerate: tuple[str, ...] = ("nvidia.com/gpu",)
    timeout: int = DAY


def _product(name: str) -> dict[str, str]:
    return {"nvidia.com/gpu.product": name}  # the label of NVIDIA's GPU feature discovery


# The defaults of the pipelines here. They set no placement, only time limits.
ANYWHERE = Profile(workers=8, tolerate=(), timeout=7 * DAY)
ANYWHERE_LIGHT = Profile(tolerate=())

PROFILES = {
    "cpu": Profile("4", "16Gi", workers=4, tolerate=()),
    "one-gpu": Profile("8", "32Gi", workers=8, accelerators=1),
    "multi-gpu": Profile("64", "256Gi", workers=64, accelerators=8, timeout=3 * DAY),
    "a100": Profile("12", "80Gi", workers=8, accelerators=1, node_selector=_product("NVIDIA-A100-SXM4-80GB")),
    "h100": Profile("16", "128Gi", workers=12, accelerators=1, node_selector=_product("NVIDIA-H100-80GB-HBM3")),
    "l4": Profile("8", "32Gi", workers=6, accelerators=1, node_selector=_product("NVIDIA-L4")),
    "t4": Profile("4", "16Gi", workers=4, accelerators=1, node_selector=_product("Tesla-T4")),
    "jetson": Profile(
        "4", "12Gi", workers=2, accelerators=1, node_selector={"kubernetes.io/arch": "arm64"}, timeout=DAY // 4
    ),
}


def profile_named(name: str) -> Profile:
    """A profile of this file by its name, or your own as MODULE:NAME (the module must be importable).

    Raises:
        SpecError: there is no such profile.
    """
    module, colon, variable = name.partition(":")
    if not colon:
        if name not in PROFILES:
            raise SpecError(f"no profile {name!r}; known: {', '.join(PROFILES)}; write MODULE:NAME for your own")
        return PROFILES[name]
    try:
        profile = getattr(importlib.import_module(module), variable)
    except (ImportError, AttributeError, ValueError) as error:
        raise SpecError(f"profile {name}: {error}; is its folder in PYTHONPATH?") from None
    if not isinstance(profile, Profile):
        raise SpecError(f"profile {name}: expected a stereo_pipelines.profiles.Profile, got {profile!r}")
    return profile


def apply(task: dsl.PipelineTask, profile: Profile, *, pull_secret=None) -> dsl.PipelineTask:
    """Give a task the resources and the placement of a profile; returns the task.

    Args:
        task: A container step of a pipeline.
        profile: What it needs.
        pull_secret: Name of the secret for pulling the image: a text or a pipeline parameter.
    """
    if profile.cpu:
        task.set_cpu_request(profile.cpu).set_cpu_limit(profile.cpu)
    if profile.memory:
        task.set_memory_request(profile.memory).set_memory_limit(profile.memory)
    if profile.accelerators:
        task.set_accelerator_type(profile.accelerator).set_accelerator_limit(profile.accelerators)
    if profile.workers:
        own, each = SHARED_MIB
        shared = f"{own + each * profile.workers}Mi"
        kubernetes.empty_dir_mount(task, "shared-memory", "/dev/shm", medium="Memory", size_limit=shared)
    for label, value in profile.node_selector.items():
        kubernetes.add_node_selector(task, label, value)
    for key in profile.tolerate:
        kubernetes.add_toleration(task, key=key, operator="Exists", effect="NoSchedule")
    kubernetes.set_timeout(task, profile.timeout)
    if pull_secret is not None:
        kubernetes.set_image_pull_secrets(task, [pull_secret])
    return task


def with_environment(task: dsl.PipelineTask, *, storage_secret=CREDENTIALS, env_secret=VARIABLES) -> dsl.PipelineTask:
    """Give a task access to the object storage and the trackers of its namespace; returns the task.

    Missing secrets or keys are ignored; the task then runs with the permissions of its service account. The storage's
    address and region come from the ConfigMap `stereo-storage` of `manifests/base`.

    Args:
        task: A container step of a pipeline.
        storage_secret: Name of the secret with `accesskey` and `secretkey`: a text or a pipeline parameter.
        env_secret: Name of the secret with environment variables, of VARIABLE_KEYS (WANDB_API_KEY, ...).
    """
    kubernetes.use_config_map_as_env(task, STORAGE, STORAGE_KEYS, optional=True)
    kubernetes.use_secret_as_env(task, storage_secret, CREDENTIAL_KEYS, optional=True)
    kubernetes.use_secret_as_env(task, env_secret, VARIABLE_KEYS, optional=True)
    return task
