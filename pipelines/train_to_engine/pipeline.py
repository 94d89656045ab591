"""train_to_engine: from a folder of stereo pairs to a trained checkpoint and an engine, both measured."""

from kfp import dsl

from ..steps import annotated, importer, reported, train_to_engine_steps


@dsl.pipeline(
    name="train-to-engine",
    description="From a folder of stereo pairs to a trained checkpoint and an engine, both measured.",
)
def train_to_engine(
    images_uri: str,
    dataset_name: str = "GenericDataset",
    disparity_format: str = "",
    disparity_scale: float = 0.0,
    num_epochs: int = 0,
    backend: str = "",
    convert_spec: dict = {},  # noqa: B006
    train_spec: dict = {},  # noqa: B006
    evaluate_spec: dict = {},  # noqa: B006
    inference_spec: dict = {},  # noqa: B006
    export_spec: dict = {},  # noqa: B006
    engine_spec: dict = {},  # noqa: B006
):
    """Train, evaluate, export and build an engine for your own images.

    Args:
        images_uri: Location of images, disparities and masks: a local folder, or s3://, gs://, minio://.
        dataset_name: How disparities are coded: FSD, IsaacRealDataset, Crestereo, Middlebury, Eth3d, Kitti or
            GenericDataset.
        disparity_format: Coding of disparities, see data_sources[*].disparity_format; empty: by dataset_name and the
            files.
        disparity_scale: Stored value of a disparity of 1 px, for 8-bit PNGs (Middlebury 2003: 4); 0: format's default.
        num_epochs: Epochs to train; 0 leaves it to train_spec.
        backend: The engine's backend: auto, tensorrt, tensorrt_rtx, openvino or onnxruntime; empty leaves it to
            engine_spec.
        convert_spec: Spec of convert: the patterns that find left, right, disparity and mask, and the split.
        train_spec: Spec of train.
        evaluate_spec: Spec of evaluate and trt_evaluate.
        inference_spec: Spec of inference and trt_inference.
        export_spec: Spec of export.
        engine_spec: Spec of gen_trt_engine.
    """
    with reported("train-to-engine"):
        data = annotated(
            importer(images_uri, "images"),
            convert_spec,
            dataset_name=dataset_name,
            disparity_format=disparity_format,
            disparity_scale=disparity_scale,
        )
        train_to_engine_steps(
            data,
            num_epochs=num_epochs,
            backend=backend,
            train_spec=train_spec,
            evaluate_spec=evaluate_spec,
            inference_spec=inference_spec,
            export_spec=export_spec,
            engine_spec=engine_spec,
        )
