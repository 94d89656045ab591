"""gen_trt_engine as a container component."""

from kfp import dsl

from ..image import launch


@dsl.container_component
def gen_trt_engine(
    onnx: dsl.Input[dsl.Model],
    engine: dsl.Output[dsl.Model],
    backend: str = "",
    precision: str = "",
    spec: dict = {},  # noqa: B006
    spec_file: dsl.Input[dsl.Artifact] = None,
):
    """Build an engine from an ONNX file, with a backend that is installed.

    Args:
        onnx: The ONNX file of `export`.
        backend: auto, tensorrt, tensorrt_rtx, openvino or onnxruntime; empty leaves it to the spec.
        precision: fp32, fp16, bf16, int8 or fp8 (int8 and fp8 need a file from `quantize`); empty leaves it to the
            spec.
        spec: Keys of `depth_net gen_trt_engine`'s spec, nested as in the YAML file; merged over spec_file.
        spec_file: A YAML file with the spec, merged over the defaults.

    Returns:
        engine: The backend's own file and its side-car `<file>.json`. The engine is compared with the ONNX file if it
            can run on this node (ONNX Runtime always, TensorRT on its own type of GPU); otherwise status and log say
            that it is not verified.
    """
    return launch("gen_trt_engine")
