"""export_and_build: a checkpoint or an ONNX file becomes engines, two ranges of sizes, fp32 and fp16 each.

They are verified where they can run: of ONNX Runtime everywhere, of TensorRT on a node with the GPU they are for.
"""

import stereo_components as steps
from kfp import dsl

from ..steps import importer, policy, reported

EXPORT = {"export": {"dynamic_hw": True, "input_height": 320, "input_width": 736}}  # one file for every size
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
    description="A checkpoint or an ONNX file becomes engines for two ranges of sizes, fp32 and fp16 each; verified "
    "where they can run: ONNX Runtime everywhere, TensorRT on the GPU it is for.",
)
def export_and_build(
    model_uri: str,
    backend: str = "",
    export_spec: dict = EXPORT,
    small_spec: dict = SMALL,
    large_spec: dict = LARGE,
):
    """Deploy a model that exists.

    Each engine is compared with its ONNX file where it can run; elsewhere status and log say that it is not verified.

    Args:
        model_uri: A checkpoint of any layout, or an ONNX file of `export`, TAO or NGC: a file or a folder that holds
            one; on this machine, or s3://, gs://, minio://.
        backend: The engines' backend: auto, tensorrt, tensorrt_rtx, openvino or onnxruntime; empty leaves it to the
            specs.
        export_spec: Spec of export; an ONNX file keeps the size and the opset it has.
        small_spec: Spec of gen_trt_engine for the first range of sizes. An ONNX file of one size needs ranges that hold
            it, or {} here and below.
        large_spec: Spec of gen_trt_engine for the second range of sizes.
    """
    with reported("export-and-build"):
        model = importer(model_uri, "model")
        # Kubeflow's cache knows an artifact by its name, not by its content, and others may change what lies there.
        export = policy(steps.export(checkpoint=model, spec=export_spec), cache=False)
        for size, spec in (("small", small_spec), ("large", large_spec)):
            for precision in ("fp32", "fp16"):
                engine = steps.gen_trt_engine(
                    onnx=export.outputs["onnx"], backend=backend, precision=precision, spec=spec
                )
                policy(engine).set_display_name(f"{size} {precision}")
