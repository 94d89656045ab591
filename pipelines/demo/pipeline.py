"""demo: the starter network on rich scenes, then unchanged, fine-tuned and as an engine on a style new to it."""

import stereo_components as steps
from kfp import dsl

from ..steps import annotated, policy, train_to_engine_steps

SYNTHETIC = {  # folder names of synthesize
    "image_dir_pattern": ["left/rgb"],
    "right_dir_pattern": ["right/rgb"],
    "depth_dir_pattern": ["left/disparity"],
    "nocc_dir_pattern": ["left/nocc"],
    "image_extension": ".png",
    "depth_extension": ".png",
    "nocc_extension": ".png",
}
CONVERT = {**SYNTHETIC, "split_ratio": 0.75}
MAX_DISPARITY = {"max_disparity": 96}
LOADER = {"batch_size": 2, "workers": 1}
TRAIN = {
    "dataset": {
        **MAX_DISPARITY,
        "train_dataset": {**LOADER, "augmentation": {"crop_size": [96, 192]}},
        "val_dataset": LOADER,
    },
    "train": {
        "pretrained_model_path": "starter",
        "validation_interval": 2,
        "optim": {"lr": 0.0001, "lr_scheduler": "OneCycleLR"},
    },
}
EVALUATE = {"dataset": {**MAX_DISPARITY, "test_dataset": LOADER}}
ZERO_SHOT = {**EVALUATE, "evaluate": {"checkpoint": "starter"}}
INFERENCE = {"dataset": {**MAX_DISPARITY, "infer_dataset": LOADER}}
EXPORT = {"export": {"input_height": 192, "input_width": 320, "batch_size": 1, "on_cpu": True}}

DESCRIPTION = (
    "The starter network on rich synthetic scenes, then unchanged, fine-tuned and as an engine on a style new to it, "
    "in minutes on two CPU cores."
)


@dsl.pipeline(name="demo", description=DESCRIPTION)
def demo(
    num_scenes: int = 16,
    height: int = 192,
    width: int = 320,
    max_disparity: int = 64,
    rich_scenes: int = 4,
    dataset_name: str = "FSD",
    num_epochs: int = 2,
    backend: str = "onnxruntime",
    convert_spec: dict = CONVERT,
    zero_shot_spec: dict = ZERO_SHOT,
    train_spec: dict = TRAIN,
    evaluate_spec: dict = EVALUATE,
    inference_spec: dict = INFERENCE,
    export_spec: dict = EXPORT,
    engine_spec: dict = {},  # noqa: B006
):
    """Run all steps on synthetic images, with the starter network. Needs no download.

    Args:
        num_scenes: Synthetic stereo pairs of a style new to the starter.
        height: Image height in px.
        width: Image width in px.
        max_disparity: Largest disparity in px.
        rich_scenes: Synthetic pairs of 640 x 384 px in the starter's own style, rich.
        dataset_name: How the synthetic disparities are coded.
        num_epochs: Epochs to fine-tune.
        backend: The engine's backend: auto, tensorrt, tensorrt_rtx, openvino or onnxruntime.
        convert_spec: Spec of convert.
        zero_shot_spec: Spec of the evaluation of the unchanged network.
        train_spec: Spec of train.
        evaluate_spec: Spec of evaluate and trt_evaluate.
        inference_spec: Spec of inference and trt_inference.
        export_spec: Spec of export; the input size is that of the images.
        engine_spec: Spec of gen_trt_engine.
    """
    rich = steps.synthesize(num_scenes=rich_scenes, height=384, width=640, max_disparity=96, seed=11, style="rich")
    rich_data = annotated(policy(rich, light=True).outputs["images"], SYNTHETIC, dataset_name=dataset_name)
    policy(steps.evaluate(**rich_data, spec=zero_shot_spec)).set_display_name("zero-shot, rich")
    scenes = steps.synthesize(
        num_scenes=num_scenes, height=height, width=width, max_disparity=max_disparity, seed=1234, style="planes"
    )
    images = policy(scenes, light=True)
    data = annotated(images.outputs["images"], convert_spec, dataset_name=dataset_name)
    policy(steps.evaluate(**data, spec=zero_shot_spec)).set_display_name("zero-shot")
    train_to_engine_steps(
        data,
        num_epochs=num_epochs,
        backend=backend,
        train_spec=train_spec,
        evaluate_spec=evaluate_spec,
        inference_spec=inference_spec,
        export_spec=export_spec,
        engine_spec=engine_spec,
        trained="fine-tuned",
    )
