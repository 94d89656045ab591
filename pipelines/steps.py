"""The steps that pipelines share: annotation files, a trained checkpoint, an engine, and the measure of both."""

from __future__ import annotations

import os

import stereo_components as steps
from kfp import dsl

from .profiles import ANYWHERE, ANYWHERE_LIGHT, PROFILES, apply, profile_named, with_environment

# To compile for your nodes, set before `stereo-pipelines compile`: STEREO_PIPELINES_PROFILE to a name of profiles.py or
# to MODULE:NAME of one of yours, STEREO_PIPELINES_PULL_SECRET to the name of the secret that pulls the image.
_CHOSEN = os.environ.get("STEREO_PIPELINES_PROFILE", "")
HEAVY, LIGHT = (profile_named(_CHOSEN), PROFILES["cpu"]) if _CHOSEN else (ANYWHERE, ANYWHERE_LIGHT)
PULL_SECRET = os.environ.get("STEREO_PIPELINES_PULL_SECRET") or None

BENCHMARKS = [  # an example; where they lie is yours to say
    {
        "title": "KITTI 2015",
        "uri": "s3://datasets/kitti2015/training",
        "dataset_name": "Kitti",
        "convert_spec": {
            "image_dir_pattern": ["image_2"],
            "right_dir_pattern": ["image_3"],
            "depth_dir_pattern": ["disp_occ_0"],
            "image_extension": "_10.png",
            "depth_extension": "_10.png",
        },
    },
    {
        "title": "Middlebury",
        "uri": "s3://datasets/MiddEval3/trainingQ",
        "dataset_name": "Middlebury",
        "convert_spec": {
            "image_dir_pattern": ["im0"],
            "right_dir_pattern": ["im1"],
            "depth_dir_pattern": ["disp0GT"],
            "nocc_dir_pattern": ["mask0nocc"],
            "image_extension": ".png",
            "depth_extension": ".pfm",
            "nocc_extension": ".png",
        },
    },
]


def annotated(images, convert_spec, *, dataset_name, disparity_format="", disparity_scale=0.0) -> dict:
    """Add convert to a pipeline; returns what the steps take that read its annotations.

    Args:
        images: Artifact of a step before, the folder of stereo pairs.
        convert_spec: Pipeline parameter, as every following one; the components' READMEs say what each means.
    """
    # Kubeflow's cache knows an artifact by its name, not by its content: the step that reads a location which others
    # may change always runs. The later ones follow from its output and may be taken from the cache.
    convert = policy(steps.convert(images=images, spec=convert_spec), cache=False, light=True)
    return {
        "images": images,
        "annotations": convert.outputs["annotations"],
        "dataset_name": dataset_name,
        "disparity_format": disparity_format,
        "disparity_scale": disparity_scale,
    }


def train_to_engine_steps(
    data, *, num_epochs, backend, train_spec, evaluate_spec, inference_spec, export_spec, engine_spec
) -> None:
    """Add train, evaluate, inference, export, gen_trt_engine, trt_evaluate, trt_inference to a pipeline.

    Checkpoint and engine are measured with the same evaluate_spec and inference_spec on the same annotations.

    Args:
        data: What `annotated` returns.
        num_epochs: Pipeline parameter, as every following one; the components' READMEs say what each means.
    """
    train = policy(steps.train(**data, num_epochs=num_epochs, spec=train_spec))
    checkpoint = train.outputs["checkpoint"]
    policy(steps.evaluate(**data, checkpoint=checkpoint, spec=evaluate_spec))
    policy(steps.inference(**data, checkpoint=checkpoint, spec=inference_spec))

    export = policy(steps.export(checkpoint=checkpoint, spec=export_spec))
    build = policy(steps.gen_trt_engine(onnx=export.outputs["onnx"], backend=backend, spec=engine_spec))
    engine = build.outputs["engine"]
    policy(steps.trt_evaluate(**data, engine=engine, spec=evaluate_spec))
    policy(steps.trt_inference(**data, engine=engine, spec=inference_spec))


def importer(uri, kind: str):
    """The artifact at a URI: images, annotations, or a model of which its consumers look what it is."""
    types = {"images": dsl.Dataset, "annotations": dsl.Dataset, "model": dsl.Model}
    metadata = {} if kind == "model" else {"kind": kind}
    task = dsl.importer(artifact_uri=uri, artifact_class=types[kind], reimport=False, metadata=metadata)
    task.set_display_name(kind)
    return task.output


def reported(title: str) -> dsl.ExitHandler:
    """The block of a pipeline's steps; however they end, a summary of it is written."""
    return dsl.ExitHandler(policy(steps.final_status(title=title), cache=False, light=True))


def policy(task: dsl.PipelineTask, cache: bool = True, light: bool = False) -> dsl.PipelineTask:
    """Place the task, let it reach object storage and trackers, say its caching outright, and let it survive one
    interruption (a lost node).

    The local engine and Argo tell an interruption or a GPU that failed by the exit code; Kubeflow can not and tries
    again after any failure, which a wrong input costs a second. What KFP calls the longest back-off is to Argo below it
    the time for all attempts together, an hour where it is not said: it must hold two whole attempts.

    Args:
        cache: Off for what reads a place that others may change, or has an effect outside of its outputs.
        light: It needs no GPU and loads no data in processes of its own.
    """
    profile = LIGHT if light else HEAVY
    apply(task, profile, pull_secret=PULL_SECRET)
    with_environment(task).set_caching_options(cache)
    whole = f"{2 * profile.timeout + 3600}s"
    return task.set_retry(num_retries=1, backoff_duration="10s", backoff_factor=2.0, backoff_max_duration=whole)
