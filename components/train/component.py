"""train as a container component."""

from kfp import dsl

from ..image import launch


@dsl.container_component
def train(
    checkpoint: dsl.Output[dsl.Model],
    metrics: dsl.Output[dsl.Metrics],
    report: dsl.Output[dsl.HTML],
    images: dsl.Input[dsl.Dataset] = None,
    annotations: dsl.Input[dsl.Dataset] = None,
    pretrained: dsl.Input[dsl.Model] = None,
    dataset_name: str = "GenericDataset",
    disparity_format: str = "",
    disparity_scale: float = 0.0,
    num_epochs: int = 0,
    batch_size: int = 0,
    learning_rate: float = 0.0,
    precision: str = "",
    spec: dict = {},  # noqa: B006
    spec_file: dsl.Input[dsl.Artifact] = None,
):
    """Train or fine-tune FoundationStereo.

    Args:
        images: The folder of images, disparities and masks. Not needed, like annotations, if all data_sources
            of the spec are Synthetic.
        annotations: The folder of annotation files that `convert` writes (train.txt, val.txt), with paths relative
            to the images.
        pretrained: A checkpoint to start from.
        dataset_name: How disparities are coded, if the spec sets no data_sources: FSD, IsaacRealDataset,
            Crestereo, Middlebury, Eth3d, Kitti or GenericDataset.
        disparity_format: Coding of disparities, see data_sources[*].disparity_format; empty: by dataset_name and the
            files, unless the spec sets it.
        disparity_scale: Stored value of a disparity of 1 px, for 8-bit PNGs (Middlebury 2003: 4); 0: format's default.
        num_epochs: Epochs to train; 0 leaves it to the spec.
        batch_size: Pairs per batch and device; 0 leaves it to the spec.
        learning_rate: The largest learning rate; 0 leaves it to the spec.
        precision: fp32, bf16 or fp16; empty leaves it to the spec.
        spec: Keys of `depth_net train`'s spec, nested as in the YAML file; merged over spec_file.
        spec_file: A YAML file with the spec, merged over the defaults.

    Returns:
        checkpoint: The best checkpoint by train.monitor, or the last one if there is no validation.
        metrics: Validation metrics of that checkpoint (epe) and from before training (initial_epe), in px.
        report: A page with metrics, curves and the last validation's pictures.
    """
    return launch("train")
