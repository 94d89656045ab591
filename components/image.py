"""Image, command and signature of all components."""

from __future__ import annotations

import inspect
import os
from typing import get_args

from kfp import dsl
from kfp.dsl.base_component import BaseComponent

from stereo_core import __version__

# Set STEREO_PIPELINES_IMAGE (best with a digest) before `stereo-pipelines compile` to compile for your registry.
IMAGE = os.environ.get("STEREO_PIPELINES_IMAGE", f"stereo-pipelines/runtime:{__version__}")


def described(component: BaseComponent) -> BaseComponent:
    """Give the component a signature (its inputs as keywords) and a docstring, for `help` and editors."""
    function, inputs = component.pipeline_func, component.component_spec.inputs or {}
    parameters = [
        one.replace(kind=one.KEYWORD_ONLY, annotation=next(iter(get_args(one.annotation)), one.annotation))
        for name, one in inspect.signature(function).parameters.items()
        if name in inputs
    ]
    component.__name__, component.__signature__ = function.__name__, inspect.Signature(parameters)
    shown = str(component.__signature__).replace(f"{dsl.Artifact.__module__}.", "dsl.")
    component.__doc__ = f"{function.__name__}{shown}\n\n{inspect.cleandoc(function.__doc__)}"
    return component


def launch(action: str) -> dsl.ContainerSpec:
    """The container of a component. Kubeflow, Argo and the local engine run the same command."""
    return dsl.ContainerSpec(
        image=IMAGE, command=["depth_net-launch"], args=[action, dsl.PIPELINE_TASK_EXECUTOR_INPUT_PLACEHOLDER]
    )
