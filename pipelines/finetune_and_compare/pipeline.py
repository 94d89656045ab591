"""finetune_and_compare: a pretrained model against its fine-tuned version, on your images and on benchmarks."""

import stereo_components as steps
from kfp import dsl

from ..steps import BENCHMARKS, importer, policy, reported


def _compare(checkpoints: dict, data: dict, spec, title) -> list[dsl.PipelineTask]:
    """Evaluate each checkpoint on the same data, and compare the metrics; returns the evaluations."""
    measured = []
    for name, checkpoint in checkpoints.items():
        task = policy(steps.evaluate(**data, checkpoint=checkpoint, spec=spec))
        measured.append(task.set_display_name(f"evaluate {name}"))
    first, second = (task.outputs["metrics"] for task in measured)
    policy(steps.report(first=first, second=second, names=list(checkpoints), title=title), light=True)
    return measured


@dsl.pipeline(
    name="finetune-and-compare",
    description="A pretrained model against its fine-tuned version, on your images and on benchmarks. An engine is "
    "built only if fine-tuning is better on your validation images.",
)
def finetune_and_compare(
    images_uri: str,
    model_uri: str,
    benchmarks: list = BENCHMARKS,
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
    """Find out whether fine-tuning helps and what it costs on other data; build an engine if it helps.

    Args:
        images_uri: Location of images, disparities and masks: a local folder, or s3://, gs://, minio://.
        model_uri: The pretrained checkpoint, of any layout.
        benchmarks: Other data sets to compare on, each a mapping of title, uri (s3://bucket/folder, or a folder that
            all steps share), dataset_name and convert_spec; [] for none.
        dataset_name: How disparities are coded: FSD, IsaacRealDataset, Crestereo, Middlebury, Eth3d, Kitti or
            GenericDataset.
        disparity_format: Coding of disparities, see data_sources[*].disparity_format; empty: by dataset_name and the
            files.
        disparity_scale: Stored value of a disparity of 1 px, for 8-bit PNGs (Middlebury 2003: 4); 0: format's default.
        num_epochs: Epochs to train; 0 leaves it to train_spec.
        backend: The engine's backend: auto, tensorrt, tensorrt_rtx, openvino or onnxruntime; empty leaves it to
            engine_spec.
        convert_spec: Spec of convert: the patterns that find left, right, disparity and mask, and the split into
            training and validation.
        train_spec: Spec of train.
        evaluate_spec: Spec of evaluate, for both models on all data.
        export_spec: Spec of export.
        engine_spec: Spec of gen_trt_engine.
    """
    with reported("finetune-and-compare"):
        images, model = importer(images_uri, "images"), importer(model_uri, "model")
        convert = policy(steps.convert(images=images, spec=convert_spec), cache=False, light=True)
        data = {
            "images": images,
            "annotations": convert.outputs["annotations"],
            "dataset_name": dataset_name,
            "disparity_format": disparity_format,
            "disparity_scale": disparity_scale,
        }
        train = policy(steps.train(**data, pretrained=model, num_epochs=num_epochs, spec=train_spec))
        checkpoints = {"pretrained": model, "fine-tuned": train.outputs["checkpoint"]}
        before, after = _compare(checkpoints, data, evaluate_spec, "Your validation images")
        with dsl.ParallelFor(benchmarks) as one:
            fetch = policy(steps.fetch_dataset(uri=one.uri, mode="reference"), cache=False, light=True)
            lists = steps.convert(images=fetch.outputs["images"], spec=one.convert_spec)
            theirs = {
                "images": fetch.outputs["images"],
                "annotations": policy(lists, cache=False, light=True).outputs["annotations"],
                "dataset_name": one.dataset_name,
            }
            _compare(checkpoints, theirs, evaluate_spec, one.title)
        with dsl.If(after.outputs["epe"] <= before.outputs["epe"], name="better"):
            export = policy(steps.export(checkpoint=train.outputs["checkpoint"], spec=export_spec))
            policy(steps.gen_trt_engine(onnx=export.outputs["onnx"], backend=backend, spec=engine_spec))
