"""info as a container component."""

from kfp import dsl

from ..image import launch


@dsl.container_component
def info(
    images: dsl.Input[dsl.Dataset],
    annotations: dsl.Input[dsl.Dataset],
    report: dsl.Output[dsl.HTML],
    dataset_name: str = "GenericDataset",
    disparity_format: str = "",
    disparity_scale: float = 0.0,
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
        disparity_format: Coding of the disparities, as data_sources[*].disparity_format; empty goes by dataset_name and
            the files, or is left to the spec.
        disparity_scale: Stored value of 1 px of disparity, for 8-bit PNGs (Middlebury 2003: 4); 0: the format's own.
        spec: Keys of `depth_net info`'s spec, nested as in the YAML file; merged over spec_file.
        spec_file: A spec YAML file, merged over the defaults.

    Returns:
        report: The figures of each annotation file and of all, and a histogram of the disparities, as a page.
    """
    return launch("info")
