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
    """Quantise a checkpoint or an ONNX file to int8 or fp8, and measure the loss of accuracy.

    Args:
        images: The folder of images, disparities and masks.
        annotations: The folder of annotation files that `convert` writes: train.txt for calibration and val.txt
            for evaluation, or another one if missing; with paths relative to the images.
        checkpoint: The checkpoint, for the backends torchao and modelopt.pytorch.
        onnx: The ONNX file, for the backend modelopt.onnx. Connect this or a checkpoint.
        backend: torchao (weights only), modelopt.pytorch or modelopt.onnx; "" leaves it to the spec.
        dataset_name: How disparities are coded, if the spec sets no data_sources: FSD, IsaacRealDataset,
            Crestereo, Middlebury, Eth3d, Kitti or GenericDataset.
        disparity_format: Coding of disparities, see data_sources[*].disparity_format; empty: by dataset_name and the
            files, unless the spec sets it.
        disparity_scale: Stored value of a disparity of 1 px, for 8-bit PNGs (Middlebury 2003: 4); 0: format's default.
        spec: Keys of `depth_net quantize`'s spec, nested as in the YAML file; merged over spec_file.
        spec_file: A YAML file with the spec, merged over the defaults.

    Returns:
        quantized: The quantised checkpoint, or ONNX file with QuantizeLinear and DequantizeLinear.
        metrics: epe, d1 and bytes before and after, and the number of quantised layers.
        report: A page with the metrics, and pictures before and after.
    """
    return launch("quantize")
