"""The one place that names the image and the command of every component."""

from __future__ import annotations

import os

from kfp import dsl

from stereo_core import __version__

# Set STEREO_PIPELINES_IMAGE (best with a digest) before `stereo-pipelines compile` to compile for your registry.
IMAGE = os.environ.get("STEREO_PIPELINES_IMAGE", f"stereo-pipelines/runtime:{__version__}")


def launch(action: str) -> dsl.ContainerSpec:
    """The container of a component: the same command on Kubeflow, on Argo and on this machine."""
    return dsl.ContainerSpec(
        image=IMAGE, command=["depth_net-launch"], args=[action, dsl.PIPELINE_TASK_EXECUTOR_INPUT_PLACEHOLDER]
    )
