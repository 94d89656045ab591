"""Set up a Lightning Trainer, PyTorch's kernels and a network according to the spec's `train`."""

from __future__ import annotations

import logging
import os
import shutil
import warnings
from collections.abc import Sequence
from pathlib import Path

import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import Logger

from stereo_core.errors import SpecError
from stereo_core.models import channels_last
from stereo_core.models.compiler import COMPILER, triton
from stereo_core.spec.train import Train
from stereo_core.training.checkpoints import AtomicCheckpointIO
from stereo_core.training.cuda_graph import EAGER_STEPS, captures
from stereo_core.training.distribution import Ranks
from stereo_core.training.strategy import GivenRanks, strategy, synchronise_batch_norm
from stereo_core.values import counted

LOG = logging.getLogger(__name__)

COMPILED = ("update_block",)
"""Parts of the network that `train.compile` compiles."""
WORTH_COMPILING = 1000  # steps: compiling takes half a minute, and saves 70 ms per step (benchmarks/RESULTS.md)
_PRECISIONS = {"fp32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}


def trainer_of(
    settings: Train,
    ranks: Ranks,
    callbacks: list[pl.Callback],
    loggers: Sequence[Logger] = (),
    folder: Path | None = None,
) -> pl.Trainer:
    """A trainer for one of the processes `ranks`; checkpoints are written only if a callback does so.

    Args:
        settings: the spec's `train`.
        folder: default folder for Lightning's files.
    """
    by_value = settings.clip_grad_value is not None
    return pl.Trainer(
        accelerator="gpu" if ranks.gpu else "cpu",
        devices=list(ranks.devices) if ranks.gpu else len(ranks.devices),
        num_nodes=ranks.nodes,
        strategy=strategy(settings.distributed_strategy, ranks),
        precision=_PRECISIONS[settings.precision],
        max_epochs=settings.num_epochs,
        check_val_every_n_epoch=settings.validation_interval,
        accumulate_grad_batches=settings.accumulate,
        gradient_clip_algorithm="value" if by_value else "norm",
        gradient_clip_val=settings.clip_grad_value if by_value else settings.clip_grad_norm,
        log_every_n_steps=settings.log_every_n_steps,
        fast_dev_run=settings.is_dry_run,
        default_root_dir=folder,
        logger=list(loggers),
        callbacks=callbacks,
        enable_checkpointing=any(isinstance(callback, pl.callbacks.Checkpoint) for callback in callbacks),
        plugins=[AtomicCheckpointIO(), *([GivenRanks(ranks)] if ranks.world > 1 else [])],
        enable_progress_bar=False,  # replaced by our ProgressBar
        enable_model_summary=False,
        num_sanity_val_steps=0,
        inference_mode=False,  # inference-mode tensors could not be used in training afterwards
        use_distributed_sampler=False,
    )


def check_compiler(settings: Train, gpu: bool) -> None:
    """Raise SpecError if `train.compile` is on, but the compiler that PyTorch would call is missing."""
    found = COMPILER if gpu else shutil.which(os.environ.get("CXX", "g++"))
    if settings.compile == "on" and not found:
        raise SpecError(
            f"train.compile: on needs a {'C' if gpu else 'C++'} compiler, but there is none on the PATH; install g++ "
            "and Python's headers, or set it to auto"
        )


def choose_kernels(settings: Train, gpu: bool) -> None:
    """Set cuDNN's switches and, with `train.deterministic`, deterministic GPU kernels. Without it the order of some
    sums varies, and equal seeds give weights that differ in their last bits. An operation without such a kernel
    warns."""
    torch.backends.cudnn.benchmark = settings.cudnn.benchmark and not settings.deterministic
    torch.backends.cudnn.deterministic = settings.cudnn.deterministic or settings.deterministic
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # required by cuBLAS for determinism
    torch.utils.deterministic.fill_uninitialized_memory = False  # a slow debugging aid
    torch.use_deterministic_algorithms(settings.deterministic and gpu, warn_only=True)


def tune(network: torch.nn.Module, settings: Train, ranks: Ranks, steps: int) -> None:
    """Set how the network computes, not what: recomputation, memory layout, compiled parts, synchronised batch norm.

    Compiled parts are those with many small operations; the GRU is compiled once, not once per iteration. Compiling
    makes the filter of the cost volume slower (benchmarks/RESULTS.md). Validation runs eagerly because its images have
    many sizes (see StereoModule).

    Args:
        steps: batches of the whole run.
    """
    network.recompute = settings.activation_checkpoint
    sharded = ranks.world > 1 and settings.distributed_strategy == "fsdp"  # fsdp accepts only contiguous weights
    if ranks.gpu and not sharded:
        channels_last(network)
    captured = captures(settings, ranks.gpu, ranks.world)
    parts = compiled_parts(settings, captured, steps)
    LOG.info("train.compile: %s: %s", settings.compile, _how(parts, captured))
    for name in parts:
        getattr(network, name).compile()
    if ranks.gpu and ranks.world > 1:
        synchronise_batch_norm(network)


def compiled_parts(settings: Train, captured: bool, steps: int) -> tuple[str, ...]:
    """The parts that `train.compile` compiles.

    Args:
        captured: whether steps become a CUDA graph; without it compiling was not measured, so auto does not compile.
        steps: batches of the whole run.
    """
    pays = captured and triton is not None and steps >= WORTH_COMPILING
    return COMPILED if settings.compile == "on" or (settings.compile == "auto" and pays) else ()


def _how(parts: tuple[str, ...], captured: bool) -> str:
    """How steps are computed, for the log."""
    compiled = (
        f"the first step compiles {', '.join(parts)}, which takes up to a minute" if parts else "nothing is compiled"
    )
    if captured:
        return f"{compiled}; after {counted(EAGER_STEPS, 'step')} the next one is recorded as a CUDA graph"
    return f"{compiled}, and no CUDA graph is used"


def quieten() -> None:
    """Suppress Lightning's warnings about things that are intended here."""
    for name in ("pytorch_lightning", "lightning_fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in (
        r"Found \d+ module\(s\) in eval mode",  # the frozen ViT
        "The number of training batches",
        r".*does not have many workers",
        r"Checkpoint directory .* exists",
        r".*isinstance\(treespec, LeafSpec\)",
        "You're resuming from a checkpoint that ended before the epoch ended",  # EpochSampler continues there
        r".*sync_dist=True.* when logging on epoch level",  # logged values are equal on all ranks
        "`broadcast_buffers` is deprecated",  # the oldest supported torch lacks its replacement
        "Grad strides do not match bucket view strides",  # of convolutions with one channel per group
    ):
        warnings.filterwarnings("ignore", message=message)


def check_fsdp(settings: Train) -> None:
    """Raise SpecError for settings of the spec's `train` that do not work with sharded weights."""
    if settings.ema_decay is not None:
        raise SpecError(
            "train.ema_decay: fsdp shards the weights and cannot average them; set "
            "train.distributed_strategy=ddp, or remove train.ema_decay"
        )
    if settings.precision == "fp16":
        raise SpecError("train.precision: fp16's gradient scaling does not work with fsdp; choose bf16 or fp32, or ddp")
