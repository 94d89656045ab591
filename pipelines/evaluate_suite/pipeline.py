"""evaluate_suite: one model on many data sets, in one table."""

import stereo_components as steps
from kfp import dsl

from ..steps import BENCHMARKS, importer, policy, reported


@dsl.pipeline(name="evaluate-suite", description="One model on many data sets, in one table.")
def evaluate_suite(
    model_uri: str,
    data_sets: list = BENCHMARKS,
    evaluate_spec: dict = {},  # noqa: B006
):
    """Measure one model on many data sets: accuracy on the training data says little about other data.

    Args:
        model_uri: A checkpoint of any layout (a file, or a folder with one): a local path, or s3://, gs://,
            minio://.
        data_sets: A mapping for each data set: title (in the table), uri (s3://bucket/folder, or a folder all steps
            share), dataset_name (how disparities are coded) and convert_spec (the patterns that find its files).
        evaluate_spec: Spec of evaluate, for all data sets.
    """
    with reported("evaluate-suite"):
        model = importer(model_uri, "model")
        with dsl.ParallelFor(data_sets) as one:
            images = policy(steps.fetch_dataset(uri=one.uri, mode="reference"), cache=False, light=True)
            convert = steps.convert(images=images.outputs["images"], spec=one.convert_spec)
            data = {
                "images": images.outputs["images"],
                "annotations": policy(convert, cache=False, light=True).outputs["annotations"],
                "dataset_name": one.dataset_name,
            }
            measured = policy(steps.evaluate(**data, checkpoint=model, spec=evaluate_spec))
        metrics = dsl.Collected(measured.outputs["metrics"])
        policy(steps.report(many=metrics, names=data_sets, title="Evaluation suite"), light=True)
