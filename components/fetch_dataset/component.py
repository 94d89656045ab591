"""fetch_dataset as a container component."""

from kfp import dsl

from ..image import launch


@dsl.container_component
def fetch_dataset(images: dsl.Output[dsl.Dataset], uri: str = "", mode: str = "copy"):
    """Take a data set from object storage, by copy, packed or by reference.

    Args:
        uri: Prefix of the data set, s3://bucket/folder; to pack it or to refer to it also a folder that the steps see.
        mode: copy fetches every object; pack puts them into a few tar shards, which are read in place; reference notes
            where they are, and each is fetched when it is read.

    Returns:
        images: The folder of the data set, or of a note that refers to it.
    """
    return launch("fetch_dataset")
