"""convert as a container component."""

from kfp import dsl

from ..image import launch


@dsl.container_component
def convert(
    images: dsl.Input[dsl.Dataset],
    annotations: dsl.Output[dsl.Dataset],
    spec: dict = {},  # noqa: B006
    spec_file: dsl.Input[dsl.Artifact] = None,
):
    """List the stereo samples of a folder as train, validation and test annotation files.

    Args:
        images: The folder to search (the spec's data_root).
        spec: Keys of `depth_net convert`'s spec, nested as in the YAML file; merged over spec_file.
        spec_file: A YAML file with the spec, merged over the defaults.

    Returns:
        annotations: A folder with train.txt and val.txt, or test.txt; paths are relative to the images.
    """
    return launch("convert")
