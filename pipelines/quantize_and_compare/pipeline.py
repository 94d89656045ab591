"""quantize_and_compare: compare fp32, fp16 and int8 engines of one model on your images."""

import stereo_components as steps
from kfp import dsl

from ..steps import importer, policy, reported

QUANTIZE = {"quantize": {"backend": "modelopt.onnx", "mode": "static_ptq", "algorithm": "max"}}


@dsl.pipeline(
    name="quantize-and-compare",
    description="Compare fp32, fp16 and int8 engines of one model on your images.",
)
def quantize_and_compare(
    images_uri: str,
    model_uri: str,
    dataset_name: str = "GenericDataset",
    disparity_format: str = "",
    disparity_scale: float = 0.0,
    backend: str = "",
    convert_spec: dict = {},  # noqa: B006
    export_spec: dict = {},  # noqa: B006
    quantize_spec: dict = QUANTIZE,
    engine_spec: dict = {},  # noqa: B006
    evaluate_spec: dict = {},  # noqa: B006
):
    """Measure what fp16 and int8 lose in accuracy and gain in latency and size.

    Args:
        images_uri: Location of images, disparities and masks: a local folder, or s3://, gs://, minio://.
        model_uri: A checkpoint of any layout, or an ONNX file from `export`, TAO or NGC.
        dataset_name: How disparities are coded: FSD, IsaacRealDataset, Crestereo, Middlebury, Eth3d, Kitti or
            GenericDataset.
        disparity_format: Coding of disparities, see data_sources[*].disparity_format; empty: by dataset_name and the
            files.
        disparity_scale: Stored value of a disparity of 1 px, for 8-bit PNGs (Middlebury 2003: 4); 0: format's default.
        backend: The engines' backend: auto, tensorrt, tensorrt_rtx, openvino or onnxruntime; empty leaves it to
            engine_spec.
        convert_spec: Spec of convert: the patterns that find left, right, disparity and mask, and the split.
        export_spec: Spec of export.
        quantize_spec: Spec of quantize; it calibrates on the same images.
        engine_spec: Spec of gen_trt_engine for all three engines.
        evaluate_spec: Spec of trt_evaluate for all three engines.
    """
    with reported("quantize-and-compare"):
        images = importer(images_uri, "images")
        model = importer(model_uri, "model")
        # Kubeflow's cache compares artifacts by name: a step that reads data that others may change always runs.
        convert = policy(steps.convert(images=images, spec=convert_spec), cache=False, light=True)
        export = policy(steps.export(checkpoint=model, spec=export_spec), cache=False)
        data = {
            "images": images,
            "annotations": convert.outputs["annotations"],
            "dataset_name": dataset_name,
            "disparity_format": disparity_format,
            "disparity_scale": disparity_scale,
        }
        quantize = policy(steps.quantize(onnx=export.outputs["onnx"], **data, spec=quantize_spec))
        original, quantized = export.outputs["onnx"], quantize.outputs["quantized"]
        builds = {}
        for precision, onnx in (("fp32", original), ("fp16", original), ("int8", quantized)):
            build = policy(steps.gen_trt_engine(onnx=onnx, backend=backend, precision=precision, spec=engine_spec))
            builds[precision] = build.set_display_name(f"build {precision}")
        metrics, before = [], [*builds.values()]
        for precision, build in builds.items():
            measured = steps.trt_evaluate(**data, engine=build.outputs["engine"], spec=evaluate_spec)
            # One after the other, after all builds: latencies are compared, and steps may share a machine.
            before = [policy(measured).set_display_name(f"evaluate {precision}").after(*before)]
            metrics.append(measured.outputs["metrics"])
        compared = dict(zip(("first", "second", "third"), metrics, strict=True))
        policy(steps.report(**compared, names=["fp32", "fp16", "int8"], title="Precisions"), light=True)
