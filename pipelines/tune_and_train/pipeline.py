"""tune_and_train: a hyperparameter search, then a longer training with the best values, both measured."""

import stereo_components as steps
from kfp import dsl

from ..steps import importer, policy, reported


@dsl.pipeline(
    name="tune-and-train",
    description="A hyperparameter search, then a longer training with the best values, both measured.",
)
def tune_and_train(
    images_uri: str,
    dataset_name: str = "GenericDataset",
    disparity_format: str = "",
    disparity_scale: float = 0.0,
    algorithm: str = "",
    max_recommendations: int = 0,
    max_epochs: int = 0,
    num_epochs: int = 0,
    convert_spec: dict = {},  # noqa: B006
    automl_spec: dict = {},  # noqa: B006
    evaluate_spec: dict = {},  # noqa: B006
):
    """Search hyperparameters with short trials, then train with the best values.

    Args:
        images_uri: Location of images, disparities and masks: a local folder, or s3://, gs://, minio://.
        dataset_name: How disparities are coded: FSD, IsaacRealDataset, Crestereo, Middlebury, Eth3d, Kitti or
            GenericDataset.
        disparity_format: Coding of disparities, see data_sources[*].disparity_format; empty: by dataset_name and the
            files.
        disparity_scale: Stored value of a disparity of 1 px, for 8-bit PNGs (Middlebury 2003: 4); 0: format's default.
        algorithm: Search algorithm: bayesian, hyperband, asha or bohb; empty leaves it to automl_spec.
        max_recommendations: Trials of the search; 0 leaves it to automl_spec.
        max_epochs: Epochs of a trial; 0 leaves it to automl_spec.
        num_epochs: Epochs of the training after the search; 0 leaves it to automl_spec's train.num_epochs.
        convert_spec: Spec of convert: the patterns that find left, right, disparity and mask, and the split.
        automl_spec: Spec of automl: the spec of train with a section automl. train uses the same spec with the best
            values.
        evaluate_spec: Spec of evaluate, for the best trial's checkpoint and the final one.
    """
    with reported("tune-and-train"):
        images = importer(images_uri, "images")
        # Kubeflow's cache compares artifacts by name: a step that reads data that others may change always runs.
        convert = policy(steps.convert(images=images, spec=convert_spec), cache=False, light=True)
        data = {
            "images": images,
            "annotations": convert.outputs["annotations"],
            "dataset_name": dataset_name,
            "disparity_format": disparity_format,
            "disparity_scale": disparity_scale,
        }
        search = policy(
            steps.automl(
                **data,
                algorithm=algorithm,
                max_recommendations=max_recommendations,
                max_epochs=max_epochs,
                spec=automl_spec,
            )
        )
        train = policy(steps.train(**data, num_epochs=num_epochs, spec_file=search.outputs["best_spec"]))
        metrics = []
        for name, task in (("best trial", search), ("training", train)):
            measured = steps.evaluate(**data, checkpoint=task.outputs["checkpoint"], spec=evaluate_spec)
            metrics.append(policy(measured).set_display_name(f"evaluate {name}").outputs["metrics"])
        names = ["best trial", "training"]
        policy(steps.report(first=metrics[0], second=metrics[1], names=names, title="Search and training"), light=True)
