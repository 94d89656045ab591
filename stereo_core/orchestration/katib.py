"""Turns `automl` of a spec into a Katib Experiment (kubeflow.org/v1beta1) that runs the same search.

Katib stores the trials' values, and Kubernetes runs their pods. A trial is `depth_net train` with the values as
overrides, in our image, with the volumes and the secret of `manifests/`.
"""

from __future__ import annotations

import re
from decimal import Decimal
from pathlib import Path
from typing import Any, cast

from stereo_core.errors import SpecError
from stereo_core.orchestration.namespace import CREDENTIAL_KEYS, CREDENTIALS, STORAGE, USER, VARIABLES
from stereo_core.spec import ExperimentSpec
from stereo_core.spec.loading import checked, read_tree
from stereo_core.spec.search_space import Dimension, complaints, search_space

# our algorithm -> Katib's nearest. Katib has one rule for stopping trials: below the median of the others (medianstop).
ALGORITHMS = {"bayesian": "bayesianoptimization", "bohb": "multivariate-tpe", "hyperband": "random", "asha": "random"}
RESULTS = "/results"
MOUNTS = {"data": "/data", "cache": "/cache", "results": RESULTS, "scratch": "/tmp", "shared-memory": "/dev/shm"}


def read_spec(file: Path) -> ExperimentSpec:
    """Read a spec whose data files are in the cluster, not on this machine.

    Raises:
        SpecError: a wrong key, type or range, or no data to train or validate on.
    """
    spec = cast(ExperimentSpec, checked("automl", read_tree(file), str(file)))
    for split in ("train_dataset", "val_dataset"):
        if not getattr(spec.dataset, split).data_sources:
            raise SpecError(f"{file}: dataset.{split}.data_sources: at least one entry with a data_file is required")
    return spec


def experiment(spec: ExperimentSpec, name: str, image: str, spec_file: str = "/data/train.yaml") -> dict[str, Any]:
    """The Experiment of a checked spec.

    Args:
        spec: Its `automl` sets keys, algorithm and budget; each trial has at most `automl_max_epochs` epochs.
        name: Name of the Experiment.
        image: Image of the trials.
        spec_file: Path of this spec in the trials' pods, on the volume stereo-data (/data).

    Raises:
        SpecError: a key that cannot be searched, a wrong range, or a `spec_file` that depends on the current folder.
    """
    if not spec_file.startswith("/"):
        raise SpecError(
            f"--spec-file {spec_file}: expected an absolute path in the trials' pods, such as /data/train.yaml"
        )
    if wrong := [f"{path}: {rule}" for path, rule in complaints(spec)]:
        raise SpecError("\n".join(wrong))
    own, space = spec.automl, search_space(spec)
    early = {"earlyStopping": {"algorithmName": "medianstop"}} if own.algorithm != "bayesian" else {}
    return {
        "apiVersion": "kubeflow.org/v1beta1",
        "kind": "Experiment",
        "metadata": {"name": name},
        "spec": {
            "objective": {
                "type": own.direction,
                "objectiveMetricName": own.metric,
                "metricStrategies": [{"name": own.metric, "value": own.direction[:3]}],
            },
            "algorithm": {
                "algorithmName": ALGORITHMS[own.algorithm],
                "algorithmSettings": [{"name": "random_state", "value": str(own.seed)}],
            },
            **early,
            "maxTrialCount": own.automl_max_recommendations,
            "parallelTrialCount": min(own.automl_max_concurrent, own.automl_max_recommendations),
            "maxFailedTrialCount": own.automl_max_recommendations // 2,
            "parameters": [_parameter(dimension) for dimension in space],
            "metricsCollectorSpec": _collector(own.metric),
            "trialTemplate": {
                "primaryContainerName": "train",
                "trialParameters": [{"name": _short(d.path), "reference": d.path} for d in space],
                "trialSpec": _job(spec, space, image, spec_file),
            },
        },
    }


def _parameter(dimension: Dimension) -> dict[str, Any]:
    kind = "int" if dimension.integer else "double"
    if dimension.options:
        values = [_text(value) for value in dimension.options]
        return {"name": dimension.path, "parameterType": "discrete", "feasibleSpace": {"list": values}}
    space = {"min": _text(dimension.low), "max": _text(dimension.high)}
    if dimension.log:
        space["distribution"] = "logUniform"
    return {"name": dimension.path, "parameterType": kind, "feasibleSpace": space}


def _collector(metric: str) -> dict[str, Any]:
    """Katib's metrics collector: reads each validation from status.json with a pattern (name, value)."""
    return {
        "collector": {"kind": "File"},
        "source": {
            "fileSystemPath": {"kind": "File", "path": f"{RESULTS}/train/status.json", "format": "TEXT"},
            "filter": {"metricsFormat": [f'"({re.escape(metric)})": ([-+0-9.eE]+)']},
        },
    }


def _job(spec: ExperimentSpec, space: list[Dimension], image: str, spec_file: str) -> dict[str, Any]:
    """The Job of a trial: one GPU, results only inside the pod; it passes pod security `restricted`."""
    fixed = [f"results_dir={RESULTS}", f"train.num_epochs={spec.automl.automl_max_epochs}", "train.num_gpus=1"]
    values = [f"{d.path}=${{trialParameters.{_short(d.path)}}}" for d in space]
    container = {
        "name": "train",
        "image": image,
        "command": ["depth_net", "train", "-e", spec_file, *fixed, *values],
        "env": [
            {"name": "STEREO_CACHE", "value": "/cache/stereo"},
            *({"name": name, "valueFrom": {"secretKeyRef": _key(key)}} for key, name in CREDENTIAL_KEYS.items()),
        ],
        "envFrom": [{"configMapRef": {"name": STORAGE}}, {"secretRef": {"name": VARIABLES, "optional": True}}],
        "resources": {
            "requests": {"cpu": "4", "memory": "16Gi", "nvidia.com/gpu": "1"},
            "limits": {"cpu": "8", "memory": "32Gi", "nvidia.com/gpu": "1"},
        },
        "securityContext": {
            "runAsNonRoot": True,
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "volumeMounts": [{"name": name, "mountPath": path} for name, path in MOUNTS.items()],
    }
    pod = {
        "serviceAccountName": "stereo-train",
        "automountServiceAccountToken": False,
        "priorityClassName": "stereo-training",
        "restartPolicy": "Never",
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": USER,  # Katib adds its metrics collector to the pod, and that image sets no user
            "runAsGroup": 0,
            "fsGroup": 1000,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}],
        "containers": [container],
        "volumes": [
            {"name": "data", "persistentVolumeClaim": {"claimName": "stereo-data"}},
            {"name": "cache", "persistentVolumeClaim": {"claimName": "stereo-cache"}},
            {"name": "results", "emptyDir": {}},
            {"name": "scratch", "emptyDir": {}},
            {"name": "shared-memory", "emptyDir": {"medium": "Memory", "sizeLimit": "5Gi"}},
        ],
    }
    return {"apiVersion": "batch/v1", "kind": "Job", "spec": {"backoffLimit": 0, "template": {"spec": pod}}}


def _key(key: str) -> dict[str, Any]:
    return {"name": CREDENTIALS, "key": key, "optional": True}


def _short(path: str) -> str:
    return path.replace(".", "_")


def _text(value: float) -> str:
    """A number as text without an exponent, because YAML readers disagree on exponents."""
    return format(Decimal(repr(value)), "f")
