"""nightly_regression: run all steps and compare with the last good run; fails if the engine is less accurate."""

import stereo_components as steps
from kfp import dsl

from ..steps import importer, policy, reported


@dsl.pipeline(
    name="nightly-regression",
    description="Run all steps and compare with the last good run. Fails if the engine is less accurate, otherwise the "
    "new engine becomes the last good one.",
)
def nightly_regression(
    images_uri: str,
    last_good_uri: str,
    max_epe_increase: float = 0.05,
    dataset_name: str = "GenericDataset",
    disparity_format: str = "",
    disparity_scale: float = 0.0,
    num_epochs: int = 0,
    backend: str = "",
    convert_spec: dict = {},  # noqa: B006
    train_spec: dict = {},  # noqa: B006
    evaluate_spec: dict = {},  # noqa: B006
    export_spec: dict = {},  # noqa: B006
    engine_spec: dict = {},  # noqa: B006
):
    """Find regressions that changes of code, data or machines have caused since the last good run.

    Args:
        images_uri: Location of images, disparities and masks: a local folder, or s3://, gs://, minio://.
        last_good_uri: Where the last good engine is published: s3://bucket/prefix, or a folder that all runs share. The
            first run always publishes its engine there.
        max_epe_increase: Largest allowed increase of the engine's epe, in px.
        dataset_name: How disparities are coded: FSD, IsaacRealDataset, Crestereo, Middlebury, Eth3d, Kitti or
            GenericDataset.
        disparity_format: Coding of disparities, see data_sources[*].disparity_format; empty: by dataset_name and the
            files.
        disparity_scale: Stored value of a disparity of 1 px, for 8-bit PNGs (Middlebury 2003: 4); 0: format's default.
        num_epochs: Epochs to train; 0 leaves it to train_spec.
        backend: The engine's backend: auto, tensorrt, tensorrt_rtx, openvino or onnxruntime; empty leaves it to
            engine_spec.
        convert_spec: Spec of convert; its seed keeps the split the same every night.
        train_spec: Spec of train; its seed keeps the training the same every night.
        evaluate_spec: Spec of trt_evaluate.
        export_spec: Spec of export.
        engine_spec: Spec of gen_trt_engine.
    """
    with reported("nightly-regression"):  # no cache: it would hide regressions
        images = importer(images_uri, "images")
        convert = policy(steps.convert(images=images, spec=convert_spec), cache=False, light=True)
        data = {
            "images": images,
            "annotations": convert.outputs["annotations"],
            "dataset_name": dataset_name,
            "disparity_format": disparity_format,
            "disparity_scale": disparity_scale,
        }
        train = policy(steps.train(**data, num_epochs=num_epochs, spec=train_spec), cache=False)
        export = policy(steps.export(checkpoint=train.outputs["checkpoint"], spec=export_spec), cache=False)
        build = steps.gen_trt_engine(onnx=export.outputs["onnx"], backend=backend, spec=engine_spec)
        engine = policy(build, cache=False).outputs["engine"]
        measured = policy(steps.trt_evaluate(**data, engine=engine, spec=evaluate_spec), cache=False)
        publish = steps.publish_model(
            model=engine,
            metrics=measured.outputs["metrics"],
            uri=last_good_uri,
            title="Last good engine",
            existing="compare",
            max_epe_increase=max_epe_increase,
        )
        policy(publish, cache=False, light=True)
