"""trt_evaluate as a container component."""

from kfp import dsl

from ..image import launch


@dsl.container_component
def trt_evaluate(
    images: dsl.Input[dsl.Dataset],
    annotations: dsl.Input[dsl.Dataset],
    engine: dsl.Input[dsl.Model],
    metrics: dsl.Output[dsl.Metrics],
    report: dsl.Output[dsl.HTML],
    epe: dsl.OutputPath(float),
    dataset_name: str = "GenericDataset",
    disparity_format: str = "",
    disparity_scale: float = 0.0,
    batch_size: int = 0,
    spec: dict = {},  # noqa: B006
    spec_file: dsl.Input[dsl.Artifact] = None,
):
    """Measure an engine's disparities against ground truth, and its latency.

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
        spec: Keys of `depth_net trt_evaluate`'s spec, nested as in the YAML file; merged over spec_file.
        spec_file: A YAML file with the spec, merged over the defaults.

    Returns:
        metrics: epe and rmse in px, bp1, bp2, bp3 and d1 as shares in 0..1, latency in ms.
        report: A page with metrics and error maps.
        epe: The mean end-point error (EPE) in px, for conditions.
    """
    return launch("trt_evaluate")
