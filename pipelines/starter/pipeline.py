"""starter: train the package's starter network on synthetic scenes only, measure it on real pairs, publish it."""

import stereo_components as steps
from kfp import dsl

from ..steps import importer, policy, reported

SCENES = {"dataset_name": "Synthetic", "height": 320, "width": 640, "scene_disparity": [6, 190]}
TRAIN = {
    "model": {"preset": "small", "train_iters": 8},
    "dataset": {
        "max_disparity": 192,
        "train_dataset": {
            "data_sources": [{**SCENES, "pairs_per_epoch": 2000}],
            "batch_size": 8,
            "augmentation": {"crop_size": [320, 640]},
        },
        "val_dataset": {"data_sources": [{**SCENES, "pairs_per_epoch": 16}]},
    },
    "train": {
        "precision": "bf16",
        "clip_grad_norm": 1.0,
        # A text, because YAML readers disagree on whether 1e-05 is a number.
        "optim": {"lr": 0.0008, "weight_decay": "0.00001", "lr_scheduler": "OneCycleLR"},
    },
}
EVALUATE = {"dataset": {"max_disparity": 192}}


@dsl.pipeline(
    name="starter",
    description="Train the starter network on synthetic scenes only, measure it on unseen pairs, publish it.",
)
def starter(
    images_uri: str,
    annotations_uri: str,
    publish_uri: str,
    dataset_name: str = "GenericDataset",
    disparity_format: str = "",
    disparity_scale: float = 0.0,
    num_epochs: int = 4,
    train_spec: dict = TRAIN,
    evaluate_spec: dict = EVALUATE,
):
    """Repeat the training of the starter network, or train it with your own scenes.

    Args:
        images_uri: Location of the evaluation's images, disparities and masks: a local folder, or s3://, gs://,
            minio://.
        annotations_uri: Location of the folder with their annotation file test.txt, with paths relative to images_uri.
        publish_uri: Where to publish the model, its metrics and its card: s3://bucket/prefix, or a folder. An existing
            model is replaced unless the new epe is higher.
        dataset_name: How the evaluation's disparities are coded: FSD, IsaacRealDataset, Crestereo, Middlebury, Eth3d,
            Kitti or GenericDataset.
        disparity_format: Coding of disparities, see data_sources[*].disparity_format; empty: by dataset_name and the
            files.
        disparity_scale: Stored value of a disparity of 1 px, for 8-bit PNGs (Middlebury 2003: 4); 0: format's default.
        num_epochs: Epochs to train; 0 leaves it to train_spec.
        train_spec: Spec of train; all its data_sources are Synthetic.
        evaluate_spec: Spec of evaluate.
    """
    with reported("starter"):
        train = policy(steps.train(num_epochs=num_epochs, spec=train_spec))
        checkpoint = train.outputs["checkpoint"]
        measured = steps.evaluate(
            images=importer(images_uri, "images"),
            annotations=importer(annotations_uri, "annotations"),
            checkpoint=checkpoint,
            dataset_name=dataset_name,
            disparity_format=disparity_format,
            disparity_scale=disparity_scale,
            spec=evaluate_spec,
        )
        publish = steps.publish_model(
            model=checkpoint,
            metrics=policy(measured, cache=False).outputs["metrics"],
            uri=publish_uri,
            title="Starter",
            existing="compare",
        )
        policy(publish, cache=False, light=True)
