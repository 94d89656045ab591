"""automl as a container component."""

from kfp import dsl

from ..image import launch


@dsl.container_component
def automl(
    images: dsl.Input[dsl.Dataset],
    annotations: dsl.Input[dsl.Dataset],
    checkpoint: dsl.Output[dsl.Model],
    best_spec: dsl.Output[dsl.Artifact],
    metrics: dsl.Output[dsl.Metrics],
    report: dsl.Output[dsl.HTML],
    pretrained: dsl.Input[dsl.Model] = None,
    algorithm: str = "",
    dataset_name: str = "GenericDataset",
    disparity_format: str = "",
    disparity_scale: float = 0.0,
    max_epochs: int = 0,
    max_recommendations: int = 0,
    spec: dict = {},  # noqa: B006
    spec_file: dsl.Input[dsl.Artifact] = None,
):
    """Search for the hyperparameters of a training: many short trainings, the best one handed on.

    Args:
        images: The folder of images, disparities and masks.
        annotations: The folder of annotation files that `convert` writes (train.txt, val.txt); paths relative to
            the images.
        pretrained: A checkpoint that every trial starts from.
        algorithm: bayesian, hyperband, asha or bohb; "" leaves it to the spec.
        dataset_name: How disparities are coded when the spec names no data_sources: FSD, IsaacRealDataset,
            Crestereo, Middlebury, Eth3d, Kitti or GenericDataset.
        disparity_format: Coding of the disparities, as data_sources[*].disparity_format; empty goes by dataset_name and
            the files, or is left to the spec.
        disparity_scale: Stored value of 1 px of disparity, for 8-bit PNGs (Middlebury 2003: 4); 0: the format's own.
        max_epochs: Epochs of a trial that is not stopped early; 0 leaves it to the spec.
        max_recommendations: Trials in all, the first with the spec as it is; 0 leaves it to the spec.
        spec: Keys of `depth_net automl`'s spec (those of train, and automl), nested as in the YAML file; merged over
            spec_file.
        spec_file: A spec YAML file, merged over the defaults.

    Returns:
        checkpoint: The best checkpoint of the best trial.
        best_spec: The spec with the best values, to be given to `train` as spec_file.
        metrics: Validation metrics of the best trial (epe) and of the spec as it is (baseline_epe), in px; how many
            trials there were, were stopped early and failed.
        report: All trials, their course and the importance of each key as a page.
    """
    return launch("automl")
