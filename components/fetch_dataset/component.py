"""fetch_dataset as a container component."""

from kfp import dsl

from ..image import launch


@dsl.container_component
def fetch_dataset(images: dsl.Output[dsl.Dataset], uri: str = "", mode: str = "copy"):
    """Fetch a data set from object storage: copy it, pack it, or refer to it.

    Args:
        uri: URI prefix of the data set, s3://bucket/folder. pack and reference also take a folder that all steps share.
        mode: copy fetches every file; pack packs the files into a few tar shards, which are read in place; reference
            records only where the files are, and each is fetched when it is read.

    Returns:
        images: The folder of the data set, or of the file that refers to it.
    """
    return launch("fetch_dataset")
