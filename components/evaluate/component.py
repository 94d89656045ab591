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
    """Measure a checkpoint's disparities against ground truth.

    Args:
        images: The folder of images, disparities and masks.
        annotations: The folder of annotation files that `convert` writes (test.txt, or val.txt if there is
            no test.txt), with paths relative to the images.
        checkpoint: The checkpoint; if not connected, the one in the spec (evaluate.checkpoint: starter).
        dataset_name: How disparities are coded, if the spec sets no data_sources: FSD, IsaacRealDataset,
            Crestereo, Middlebury, Eth3d, Kitti or GenericDataset.
        disparity_format: Coding of disparities, see data_sources[*].disparity_format; empty: by dataset_name and the
            files, unless the spec sets it.
        disparity_scale: Stored value of a disparity of 1 px, for 8-bit PNGs (Middlebury 2003: 4); 0: format's default.
        batch_size: Pairs per batch; 0 leaves it to the spec.
        spec: Keys of `depth_net evaluate`'s spec, nested as in the YAML file; merged over spec_file.
        spec_file: A YAML file with the spec, merged over the defaults.

    Returns:
        metrics: epe and rmse in px, bp1, bp2, bp3 and d1 as shares in 0..1.
        report: A page with metrics and error maps.
        epe: The mean end-point error (EPE) in px, for conditions.
    """
    return launch("evaluate")
