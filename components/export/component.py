"""export as a container component."""

from kfp import dsl

from ..image import launch


@dsl.container_component
def export(
    checkpoint: dsl.Input[dsl.Model],
    onnx: dsl.Output[dsl.Model],
    input_height: int = 0,
    input_width: int = 0,
    spec: dict = {},  # noqa: B006
    spec_file: dsl.Input[dsl.Artifact] = None,
):
    """Export a checkpoint to ONNX and check the graph against PyTorch.

    Args:
        checkpoint: The checkpoint, or an ONNX file from TAO or NGC, which is copied unchanged.
        input_height: Height of the images in px, a multiple of 32; 0 leaves it to the spec.
        input_width: Width of the images in px, a multiple of 32; 0 leaves it to the spec.
        spec: Keys of `depth_net export`'s spec, nested as in the YAML file; merged over spec_file.
        spec_file: A YAML file with the spec, merged over the defaults.

    Returns:
        onnx: The ONNX file with the model's settings in its metadata.
    """
    return launch("export")
