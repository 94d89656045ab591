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
    """Build an engine from an ONNX file, with the backend that the installation has.

    Args:
        onnx: The ONNX file of `export`.
        backend: auto, tensorrt, tensorrt_rtx, openvino, inductor (compiles gen_trt_engine.checkpoint of the spec) or
            onnxruntime; empty leaves it to the spec.
        precision: fp32, fp16, bf16, int8 or fp8 (int8 and fp8 of a file that `quantize` made); empty leaves it to the
            spec.
        spec: Keys of `depth_net gen_trt_engine`'s spec, nested as in the YAML file; merged over spec_file.
        spec_file: A spec YAML file, merged over the defaults.

    Returns:
        engine: The backend's own file and its side-car `<file>.json`; compared with the ONNX file where it can run
            (ONNX Runtime everywhere, TensorRT on a node with the GPU it is for), else status and log say that it was
            not.
    """
    return launch("gen_trt_engine")
