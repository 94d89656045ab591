"""trt_inference as a container component."""

from kfp import dsl

from ..image import launch


@dsl.container_component
def trt_inference(
    images: dsl.Input[dsl.Dataset],
    annotations: dsl.Input[dsl.Dataset],
    engine: dsl.Input[dsl.Model],
    disparity: dsl.Output[dsl.Dataset],
    report: dsl.Output[dsl.HTML],
    dataset_name: str = "GenericDataset",
    disparity_format: str = "",
    disparity_scale: float = 0.0,
    batch_size: int = 0,
    spec: dict = {},  # noqa: B006
    spec_file: dsl.Input[dsl.Artifact] = None,
):
    """Predict disparities with an engine.

    Args:
        images: The folder of images, disparities and masks.
        annotations: The folder of annotation files that `convert` writes (test.txt, or val.txt if there is
            no test.txt), with paths relative to the images.
        engine: The engine.
        dataset_name: How disparities are coded, if the spec sets no data_sources: FSD, IsaacRealDataset,
            Crestereo, Middlebury, Eth3d, Kitti or GenericDataset.
        disparity_format: Coding of disparities, see data_sources[*].disparity_format; empty: by dataset_name and the
            files, unless the spec sets it.
        disparity_scale: Stored value of a disparity of 1 px, for 8-bit PNGs (Middlebury 2003: 4); 0: format's default.
        batch_size: Pairs per batch; 0 leaves it to the spec.
        spec: Keys of `depth_net trt_inference`'s spec, nested as in the YAML file; merged over spec_file.
        spec_file: A YAML file with the spec, merged over the defaults.

    Returns:
        disparity: A folder of disparity maps: 16-bit PNG (value / 256 = px), and other outputs that the spec selects.
        report: A page with pictures.
    """
    return launch("trt_inference")
