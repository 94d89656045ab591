"""demo: the whole job on synthetic scenes with the tiny preset, in minutes on two CPU cores."""

import stereo_components as steps
from kfp import dsl

from ..steps import policy, train_to_engine_steps

CONVERT = {  # where synthesize puts things
    "image_dir_pattern": ["left/rgb"],
    "right_dir_pattern": ["right/rgb"],
    "depth_dir_pattern": ["left/disparity"],
    "nocc_dir_pattern": ["left/nocc"],
    "image_extension": ".png",
    "depth_extension": ".png",
    "nocc_extension": ".png",
    "split_ratio": 0.75,
}
LOADER = {"batch_size": 2, "workers": 1}
TRAIN = {
    "model": {"preset": "tiny", "stereo_backbone": {"allow_random_backbone": True}},
    "dataset": {
        "max_disparity": 64,
        "train_dataset": {**LOADER, "augmentation": {"crop_size": [128, 160]}},
        "val_dataset": LOADER,
    },
    "train": {"optim": {"lr": 0.001}},
}
EVALUATE = {"dataset": {"max_disparity": 64, "test_dataset": LOADER}}
INFERENCE = {"dataset": {"infer_dataset": LOADER}}
EXPORT = {"export": {"input_height": 128, "input_width": 160, "batch_size": 1, "valid_iters": 8, "on_cpu": True}}


@dsl.pipeline(
    name="demo", description="The whole job on synthetic scenes with the tiny preset, in minutes on two CPU cores."
)
def demo(
    num_scenes: int = 32,
    height: int = 128,
    width: int = 160,
    max_disparity: int = 48,
    dataset_name: str = "FSD",
    num_epochs: int = 12,
    backend: str = "onnxruntime",
    convert_spec: dict = CONVERT,
    train_spec: dict = TRAIN,
    evaluate_spec: dict = EVALUATE,
    inference_spec: dict = INFERENCE,
    export_spec: dict = EXPORT,
    engine_spec: dict = {},  # noqa: B006
):
    """The whole job on images that need no download.

    Args:
        num_scenes: Number of synthetic stereo pairs.
        height: Image height in px.
        width: Image width in px.
        max_disparity: Largest disparity in px.
        dataset_name: How the synthetic disparities are coded.
        num_epochs: Epochs to train.
        backend: The engine's backend: auto, tensorrt, tensorrt_rtx, openvino or onnxruntime.
        convert_spec: Spec of convert.
        train_spec: Spec of train.
        evaluate_spec: Spec of evaluate and trt_evaluate.
        inference_spec: Spec of inference and trt_inference.
        export_spec: Spec of export; its input size is the images'.
        engine_spec: Spec of gen_trt_engine.
    """
    scenes = steps.synthesize(num_scenes=num_scenes, height=height, width=width, max_disparity=max_disparity, seed=1234)
    images = policy(scenes, light=True)
    train_to_engine_steps(
        images.outputs["images"],
        dataset_name=dataset_name,
        num_epochs=num_epochs,
        backend=backend,
        convert_spec=convert_spec,
        train_spec=train_spec,
        evaluate_spec=evaluate_spec,
        inference_spec=inference_spec,
        export_spec=export_spec,
        engine_spec=engine_spec,
    )
