"""quantize as a container component."""

from kfp import dsl

from ..image import launch


@dsl.container_component
def quantize(
    images: dsl.Input[dsl.Dataset],
    annotations: dsl.Input[dsl.Dataset],
    quantized: dsl.Output[dsl.Model],
    metrics: dsl.Output[dsl.Metrics],
    report: dsl.Output[dsl.HTML],
    checkpoint: dsl.Input[dsl.Model] = None,
    onnx: dsl.Input[dsl.Model] = None,
    backend: str = "",
    dataset_name: str = "GenericDataset",
    disparity_format: str = "",
    disparity_scale: float = 0.0,
    spec: dict = {},  # noqa: B006
    spec_file: dsl.Input[dsl.Artifact] = None,
):
    """Quantise a checkpoint or an ONNX file to int8 or fp8 and measure what it costs.

    Args:
        images: The folder of images, disparities and masks.
        annotations: The folder of annotation files that `convert` writes: train.txt to calibrate on, val.txt to
            evaluate on, or another where there is none; paths relative to the images.
        checkpoint: The checkpoint, for the backends torchao and modelopt.pytorch.
        onnx: The ONNX file, for the backend modelopt.onnx. Give this or a checkpoint.
        backend: torchao (weights alone), modelopt.pytorch or modelopt.onnx; "" leaves it to the spec.
        dataset_name: How disparities are coded when the spec names no data_sources: FSD, IsaacRealDataset,
            Crestereo, Middlebury, Eth3d, Kitti or GenericDataset.
        disparity_format: Coding of the disparities, as data_sources[*].disparity_format; empty goes by dataset_name and
            the files, or is left to the spec.
        disparity_scale: Stored value of 1 px of disparity, for 8-bit PNGs (Middlebury 2003: 4); 0: the format's own.
        spec: Keys of `depth_net quantize`'s spec, nested as in the YAML file; merged over spec_file.
        spec_file: A spec YAML file, merged over the defaults.

    Returns:
        quantized: The quantised checkpoint, or ONNX file with QuantizeLinear and DequantizeLinear.
        metrics: epe and d1 before and after, bytes before and after, how many layers were quantised.
        report: The same as a page, with pictures before and after.
    """
    return launch("quantize")
