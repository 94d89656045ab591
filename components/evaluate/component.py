"""evaluate as a container component."""

from kfp import dsl

from ..image import launch


@dsl.container_component
def evaluate(
    images: dsl.Input[dsl.Dataset],
    annotations: dsl.Input[dsl.Dataset],
    metrics: dsl.Output[dsl.Metrics],
    report: dsl.Output[dsl.HTML],
    epe: dsl.OutputPath(float),
    checkpoint: dsl.Input[dsl.Model] = None,
    dataset_name: str = "GenericDataset",
    disparity_format: str = "",
    disparity_scale: float = 0.0,
    batch_size: int = 0,
    spec: dict = {},  # noqa: B006
    spec_file: dsl.Input[dsl.Artifact] = None,
):
    """Compare a checkpoint's disparities with ground truth.

    Args:
        images: The folder of images, disparities and masks.
        annotations: The folder of annotation files that `convert` writes (test.txt, or val.txt where there is
            none); paths relative to the images.
        checkpoint: The checkpoint; without it the one that the spec names (evaluate.checkpoint: starter).
        dataset_name: How disparities are coded when the spec names no data_sources: FSD, IsaacRealDataset,
            Crestereo, Middlebury, Eth3d, Kitti or GenericDataset.
        disparity_format: Coding of the disparities, as data_sources[*].disparity_format; empty goes by dataset_name and
            the files, or is left to the spec.
        disparity_scale: Stored value of 1 px of disparity, for 8-bit PNGs (Middlebury 2003: 4); 0: the format's own.
        batch_size: Pairs in a batch; 0 leaves it to the spec.
        spec: Keys of `depth_net evaluate`'s spec, nested as in the YAML file; merged over spec_file.
        spec_file: A spec YAML file, merged over the defaults.

    Returns:
        metrics: epe and rmse in px, bp1, bp2, bp3 and d1 as shares in 0..1.
        report: Metrics and error maps as a page.
        epe: The mean endpoint error in px, for conditions.
    """
    return launch("evaluate")
