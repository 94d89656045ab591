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
    """Search hyperparameters with many short training runs, and pass on the best one.

    Args:
        images: The folder of images, disparities and masks.
        annotations: The folder of annotation files that `convert` writes (train.txt, val.txt), with paths relative
            to the images.
        pretrained: A checkpoint from which every trial starts.
        algorithm: bayesian, hyperband, asha or bohb; "" leaves it to the spec.
        dataset_name: How disparities are coded, if the spec sets no data_sources: FSD, IsaacRealDataset,
            Crestereo, Middlebury, Eth3d, Kitti or GenericDataset.
        disparity_format: Coding of disparities, see data_sources[*].disparity_format; empty: by dataset_name and the
            files, unless the spec sets it.
        disparity_scale: Stored value of a disparity of 1 px, for 8-bit PNGs (Middlebury 2003: 4); 0: format's default.
        max_epochs: Epochs of a trial that is not stopped early; 0 leaves it to the spec.
        max_recommendations: Number of trials, including the baseline (the unchanged spec); 0 leaves it to the spec.
        spec: Keys of `depth_net automl`'s spec (keys of train, and automl), nested as in the YAML file; merged over
            spec_file.
        spec_file: A YAML file with the spec, merged over the defaults.

    Returns:
        checkpoint: The best checkpoint of the best trial.
        best_spec: The spec with the best values, for the input spec_file of `train`.
        metrics: Validation metrics of the best trial (epe) and of the baseline (baseline_epe), in px; the number of
            trials, of trials stopped early and of failed trials.
        report: A page with all trials, their validations and the importance of each key.
    """
    return launch("automl")
