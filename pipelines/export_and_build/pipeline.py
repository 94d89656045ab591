"""export_and_build: build engines from a checkpoint or an ONNX file: two ranges of sizes, fp32 and fp16 each.

An engine is verified if it can run: ONNX Runtime everywhere, TensorRT on a node with its type of GPU.
"""

import stereo_components as steps
from kfp import dsl

from ..steps import importer, policy, reported

EXPORT = {"export": {"dynamic_hw": True, "input_height": 320, "input_width": 736}}  # one file for all sizes
SMALL = {
    "gen_trt_engine": {
        "min_height": 256,
        "opt_height": 320,
        "max_height": 384,
        "min_width": 320,
        "opt_width": 736,
        "max_width": 832,
    }
}
LARGE = {
    "gen_trt_engine": {
        "min_height": 384,
        "opt_height": 576,
        "max_height": 768,
        "min_width": 640,
        "opt_width": 960,
        "max_width": 1280,
    }
}


@dsl.pipeline(
    name="export-and-build",
    description="Build engines from a checkpoint or an ONNX file, for two ranges of sizes, fp32 and fp16 each. Engines "
    "are verified if they can run: ONNX Runtime everywhere, TensorRT on its type of GPU.",
)
def export_and_build(
    model_uri: str,
    backend: str = "",
    export_spec: dict = EXPORT,
    small_spec: dict = SMALL,
    large_spec: dict = LARGE,
):
    """Build engines from an existing model.

    Each engine is compared with its ONNX file if it can run; otherwise status and log say that it is not verified.

    Args:
        model_uri: A checkpoint of any layout, or an ONNX file from `export`, TAO or NGC (or a folder with one): a
            local path, or s3://, gs://, minio://.
        backend: The engines' backend: auto, tensorrt, tensorrt_rtx, openvino or onnxruntime; empty leaves it to the
            specs.
        export_spec: Spec of export; an imported ONNX file keeps its own size and opset.
        small_spec: Spec of gen_trt_engine for the first range of sizes. An ONNX file of fixed size needs ranges that
            include it, or {} here and in large_spec.
        large_spec: Spec of gen_trt_engine for the second range of sizes.
    """
    with reported("export-and-build"):
        model = importer(model_uri, "model")
        # Kubeflow's cache compares artifacts by name, not by content, and others may change the data there.
        export = policy(steps.export(checkpoint=model, spec=export_spec), cache=False)
        for size, spec in (("small", small_spec), ("large", large_spec)):
            for precision in ("fp32", "fp16"):
                engine = steps.gen_trt_engine(
                    onnx=export.outputs["onnx"], backend=backend, precision=precision, spec=spec
                )
                policy(engine).set_display_name(f"{size} {precision}")
