"""info as a container component."""

from kfp import dsl

from ..image import launch


@dsl.container_component
def info(
    images: dsl.Input[dsl.Dataset],
    annotations: dsl.Input[dsl.Dataset],
    report: dsl.Output[dsl.HTML],
    dataset_name: str = "GenericDataset",
    spec: dict = {},  # noqa: B006
    spec_file: dsl.Input[dsl.Artifact] = None,
):
    """Count what a data set holds: pairs, image sizes, ground truth, masks, disparities.

    Args:
        images: The folder of images, disparities and masks.
        annotations: The folder of annotation files that `convert` writes (train.txt, val.txt, test.txt; all that are
            there are read); paths relative to the images.
        dataset_name: How disparities are coded when the spec names no data_sources: FSD, IsaacRealDataset,
            Crestereo, Middlebury, Eth3d, Kitti or GenericDataset.
        spec: Keys of `depth_net info`'s spec, nested as in the YAML file; merged over spec_file.
        spec_file: A spec YAML file, merged over the defaults.

    Returns:
        report: The figures of each annotation file and of all, and a histogram of the disparities, as a page.
    """
    return launch("info")
