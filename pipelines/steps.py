"""Steps that several pipelines share: annotation files, training, engine, evaluation of both."""

from __future__ import annotations

import os

import stereo_components as steps
from kfp import dsl

from .profiles import ANYWHERE, ANYWHERE_LIGHT, PROFILES, apply, profile_named, with_environment

# To compile for your nodes, set these variables before `stereo-pipelines compile`: STEREO_PIPELINES_PROFILE to a
# profile of profiles.py or your own MODULE:NAME, STEREO_PIPELINES_PULL_SECRET to the secret for pulling the image.
_CHOSEN = os.environ.get("STEREO_PIPELINES_PROFILE", "")
HEAVY, LIGHT = (profile_named(_CHOSEN), PROFILES["cpu"]) if _CHOSEN else (ANYWHERE, ANYWHERE_LIGHT)
PULL_SECRET = os.environ.get("STEREO_PIPELINES_PULL_SECRET") or None

BENCHMARKS = [  # an example; set your own locations
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
    """Add convert to a pipeline; returns the arguments of the steps that read its annotations.

    Args:
        images: Artifact of an earlier step, the folder of stereo pairs.
        convert_spec: Pipeline parameter, like all following ones; see the components' READMEs.
    """
    # Kubeflow's cache compares artifacts by name, not by content: a step that reads data that others may change always
    # runs. Later steps depend only on its output and may use the cache.
    convert = policy(steps.convert(images=images, spec=convert_spec), cache=False, light=True)
    return {
        "images": images,
        "annotations": convert.outputs["annotations"],
        "dataset_name": dataset_name,
        "disparity_format": disparity_format,
        "disparity_scale": disparity_scale,
    }


def train_to_engine_steps(
    data, *, num_epochs, backend, train_spec, evaluate_spec, inference_spec, export_spec, engine_spec, trained="trained"
) -> None:
    """Add train, evaluate, inference, export, gen_trt_engine, trt_evaluate, trt_inference to a pipeline.

    Checkpoint and engine are measured with the same evaluate_spec and inference_spec on the same annotations.

    Args:
        data: What `annotated` returns.
        num_epochs: Pipeline parameter, like all following ones; see the components' READMEs.
        trained: Display name of the checkpoint's evaluation.
    """
    train = policy(steps.train(**data, num_epochs=num_epochs, spec=train_spec))
    checkpoint = train.outputs["checkpoint"]
    policy(steps.evaluate(**data, checkpoint=checkpoint, spec=evaluate_spec)).set_display_name(trained)
    policy(steps.inference(**data, checkpoint=checkpoint, spec=inference_spec))

    export = policy(steps.export(checkpoint=checkpoint, spec=export_spec))
    build = policy(steps.gen_trt_engine(onnx=export.outputs["onnx"], backend=backend, spec=engine_spec))
    engine = build.outputs["engine"]
    policy(steps.trt_evaluate(**data, engine=engine, spec=evaluate_spec)).set_display_name("engine")
    policy(steps.trt_inference(**data, engine=engine, spec=inference_spec))


def importer(uri, kind: str):
    """Import the artifact at a URI: images, annotations, or a model, whose kind the steps find out themselves."""
    types = {"images": dsl.Dataset, "annotations": dsl.Dataset, "model": dsl.Model}
    metadata = {} if kind == "model" else {"kind": kind}
    task = dsl.importer(artifact_uri=uri, artifact_class=types[kind], reimport=False, metadata=metadata)
    task.set_display_name(kind)
    return task.output


def reported(title: str) -> dsl.ExitHandler:
    """The exit handler around a pipeline's steps: it writes a summary, whether they succeed or fail."""
    return dsl.ExitHandler(policy(steps.final_status(title=title), cache=False, light=True))


def policy(task: dsl.PipelineTask, cache: bool = True, light: bool = False) -> dsl.PipelineTask:
    """Set a task's placement, access to object storage and trackers, caching, and one retry after an interruption
    (e.g. a lost node).

    The local engine and Argo recognise interruptions and GPU errors by the exit code. Kubeflow retries after any
    failure, so a step with wrong input fails twice, a second later. KFP's longest back-off is for Argo below it the
    time limit of all attempts together (default: one hour), so it must cover two whole attempts.

    Args:
        cache: Off for a step that reads data that others may change, or that has side effects.
        light: The step needs no GPU and no data loader processes.
    """
    profile = LIGHT if light else HEAVY
    apply(task, profile, pull_secret=PULL_SECRET)
    with_environment(task).set_caching_options(cache)
    whole = f"{2 * profile.timeout + 3600}s"
    return task.set_retry(num_retries=1, backoff_duration="10s", backoff_factor=2.0, backoff_max_duration=whole)
