"""`train` and `wandb`."""

from __future__ import annotations

from typing import Annotated, Literal, get_args

from pydantic import Field

from stereo_core.spec.choice import OF_A_TRAINING, OR_STARTER
from stereo_core.spec.fields import Float, Int, NonNegative, Positive, Section, Text, Texts, key, section

MultiStep = Literal["MultiStepLR", "MultiStep", "CustomMultiStepLRScheduler"]
Scheduler = Literal[MultiStep, "StepLR", "LambdaLR", "PolynomialLR", "OneCycleLR", "CosineAnnealingLR"]
MULTI_STEP = get_args(MultiStep)  # TAO's names for one schedule

Monitor = Literal[
    "val_loss",
    "val/loss",
    "val/epe",
    "val/bp1",
    "val/bp2",
    "val/bp3",
    "val/d1",
    "val/rmse",
    "val/epe_pixel",
    "val/bp1_pixel",
    "val/bp2_pixel",
    "val/bp3_pixel",
    "val/d1_pixel",
    "val/rmse_pixel",
]
AUTO = "auto"


class Optim(Section):
    optimizer: Literal["AdamW", "SGD"] = key("AdamW", "Optimizer")
    monitor_name: Literal["val_loss", "train_loss"] = key("val_loss", "Metric for a plateau scheduler")
    lr: Float = key(1e-4, "Learning rate", ge=1e-6, le=1e-2, automl=True)
    momentum: Float = key(0.9, "Momentum of SGD", gt=0, le=1, automl=True)
    weight_decay: Float = key(1e-4, "Weight decay", ge=1e-6, le=1e-2, automl=True)
    lr_scheduler: Scheduler = key("MultiStepLR", "Learning rate schedule, in optimizer steps")
    lr_steps: list[Positive] = key([1000], "Milestones of MultiStepLR, in optimizer steps")
    lr_step_size: Int = key(1000, "Period of StepLR, in optimizer steps", ge=1, le=10000, automl=True)
    lr_decay: Float = key(
        0.1, "Factor by which MultiStepLR and StepLR multiply the learning rate", gt=0, le=1, automl=True
    )
    min_lr: Float = key(1e-7, "Last learning rate of CosineAnnealingLR", ge=1e-8, le=1e-3, automl=True)
    warmup_steps: Int = key(20, "Optimizer steps of linear warm-up; not used by OneCycleLR, which has its own", ge=0)


class Cudnn(Section):
    benchmark: bool = key(False, "Benchmark convolution algorithms and use the fastest")
    deterministic: bool = key(True, "Deterministic cuDNN kernels only")


class Train(Section):
    results_dir: Text = key("", "Output folder; empty: <results_dir>/train")
    num_epochs: Int = key(10, "Epochs", ge=1)
    num_gpus: Int = key(1, "GPUs per node", ge=1)
    gpu_ids: Annotated[list[NonNegative], Field(min_length=1)] = key([0], "GPU indices")
    num_nodes: Int = key(1, "Nodes", ge=1)
    seed: Int = key(1234, "Random seed; -1: a different one in every run", ge=-1)
    cudnn: Cudnn = section(Cudnn, "cuDNN switches")
    deterministic: bool = key(
        False,
        "Use only deterministic GPU kernels: equal seeds give equal weights, but slower; not needed on CPUs (not in "
        "TAO)",
    )
    pretrained_model_path: Text = key("", f"Checkpoint to start from, any layout, {OR_STARTER}")
    resume_training_checkpoint_path: Text = key(
        "",
        f"Checkpoint to resume from, {OF_A_TRAINING}; auto: the newest complete one of the results folder, if any;"
        " empty: start a new run",
    )
    checkpoint_interval: Int = key(1, "Epochs or steps between checkpoints, see checkpoint_interval_unit", ge=1)
    checkpoint_interval_unit: Literal["epoch", "step"] = key("epoch", "Unit of checkpoint_interval")
    checkpoint_interval_steps: Int | None = key(None, "Steps between checkpoints", ge=1)
    keep_checkpoints: Int = key(
        3, "Number of newest checkpoints to keep, besides the best one; 0: all (not in TAO)", ge=0
    )
    monitor: Monitor = key("val/epe", "Metric (lower is better) that selects dn_model_best.pth (not in TAO)")
    validation_interval: Int = key(1, "Epochs between validations", ge=1)
    precision: Literal["bf16", "fp32", "fp16"] = key("fp32", "Precision of training")
    distributed_strategy: Literal["ddp", "fsdp"] = key("ddp", "Strategy for training on several GPUs")
    activation_checkpoint: bool = key(False, "Recompute activations to save memory")
    accumulate: Int = key(1, "Batches per optimizer step (not in TAO)", ge=1)
    clip_grad_norm: Float = key(0.1, "Clip the gradient norm to this value", gt=0)
    clip_grad_value: Float | None = key(
        None, "Clip each gradient element to this absolute value instead of the norm (not in TAO)", gt=0
    )
    nonfinite: Literal["fail", "skip"] = key(
        "fail", "If the loss is NaN or infinite: fail, or skip the step (not in TAO)"
    )
    ema_decay: Float | None = key(
        None, "Decay of an exponential moving average of the weights; null: no average (not in TAO)", gt=0, lt=1
    )
    backbone_lr_factor: Float = key(1.0, "Learning rate of the backbones relative to lr (not in TAO)", ge=0)
    compile: Literal["auto", "on", "off"] = key(
        "auto",
        "on: compile the update block with torch.compile, and record a step as a CUDA graph where possible; auto: on a "
        "GPU, if it pays; off: neither (not in TAO)",
    )
    optim: Optim = section(Optim, "Optimizer and schedule")
    log_every_n_steps: Int = key(500, "Steps between log lines", ge=1)
    vis_step_interval: Int = key(10, "Steps between logged pictures of training pairs", ge=1)
    is_dry_run: bool = key(False, "One batch of training and validation, no checkpoint")
    dataloader_visualize: bool = key(
        False, "Write samples of augmented training pairs to the folder dataloader in the results"
    )
    inference_tile: bool = key(False, "Tiled inference")
    tile_wtype: Text = key("gaussian", "Blending of tiles")
    tile_min_overlap: Annotated[list[NonNegative], Field(min_length=2, max_length=2)] = key(
        [16, 16], "Overlap of tiles"
    )


class Wandb(Section):
    enable: bool = key(True, "Log to W&B if it is installed and the environment has an API key")
    project: Text = key("TAO Toolkit", "Project")
    entity: Text = key("", "Entity")
    name: Text = key("TAO Toolkit Training", "Run name")
    run_id: Text = key("", "ID of the run to resume")
    group: Text = key("", "Group")
    tags: Texts = key(["tao-toolkit"], "Tags")
    reinit: bool = key(False, "Allow several runs in one process")
    sync_tensorboard: bool = key(False, "Copy TensorBoard's logs to W&B")
    save_code: bool = key(False, "Upload the source code")
