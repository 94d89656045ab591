"""The steps that pipelines share: annotation files, a trained checkpoint, an engine, and the measure of both."""

from __future__ import annotations

import stereo_components as steps
from kfp import dsl


def train_to_engine_steps(
    images,
    *,
    dataset_name,
    num_epochs,
    backend,
    convert_spec,
    train_spec,
    evaluate_spec,
    inference_spec,
    export_spec,
    engine_spec,
) -> None:
    """Add convert, train, evaluate, inference, export, gen_trt_engine, trt_evaluate, trt_inference to a pipeline.

    Checkpoint and engine are measured with the same evaluate_spec and inference_spec on the same annotations.

    Args:
        images: Artifact of a step before, the folder of stereo pairs.
        dataset_name: Pipeline parameter, as every following one; the components' READMEs say what each means.
    """
    # Kubeflow's cache knows an artifact by its name, not by its content: the step that reads a location which others
    # may change always runs. The later ones follow from its output and may be taken from the cache.
    convert = policy(steps.convert(images=images, spec=convert_spec), cache=False)
    data = {"images": images, "annotations": convert.outputs["annotations"], "dataset_name": dataset_name}

    train = policy(steps.train(**data, num_epochs=num_epochs, spec=train_spec))
    checkpoint = train.outputs["checkpoint"]
    policy(steps.evaluate(**data, checkpoint=checkpoint, spec=evaluate_spec))
    policy(steps.inference(**data, checkpoint=checkpoint, spec=inference_spec))

    export = policy(steps.export(checkpoint=checkpoint, spec=export_spec))
    build = policy(steps.gen_trt_engine(onnx=export.outputs["onnx"], backend=backend, spec=engine_spec))
    engine = build.outputs["engine"]
    policy(steps.trt_evaluate(**data, engine=engine, spec=evaluate_spec))
    policy(steps.trt_inference(**data, engine=engine, spec=inference_spec))


def policy(task: dsl.PipelineTask, cache: bool = True) -> dsl.PipelineTask:
    """Say the task's caching outright, and let it survive one interruption (an evicted or lost node)."""
    return task.set_caching_options(cache).set_retry(num_retries=1, backoff_duration="10s", backoff_factor=2.0)
