"""train: from scratch, from a checkpoint's weights, or on from where a run stopped."""

from __future__ import annotations

import contextlib
import logging
import signal
import sys
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import TensorBoardLogger
from pytorch_lightning.utilities.exceptions import SIGTERMException

from stereo_core.actions import Outcome
from stereo_core.actions.perform import Terminated
from stereo_core.data.datamodule import StereoDataModule
from stereo_core.errors import SpecError
from stereo_core.models import from_spec
from stereo_core.report.status import StatusLog
from stereo_core.spec import results_dir
from stereo_core.training.callbacks import StatusLines, train_kpi, validation_kpi
from stereo_core.training.checkpoints import AtomicCheckpointIO, Checkpoints
from stereo_core.training.module import StereoModule

LOG = logging.getLogger(__name__)

_METADATA = ("encoder", "variant", "max_disparity", "valid_iters")
_PRECISIONS = {"fp32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}


def run(spec, status: StatusLog) -> Outcome:
    """Train and leave `model_epoch_EEE_step_SSSSS.pth`, `dn_model_latest.pth` and a TensorBoard log.

    Where there is validation data it is also evaluated before the first step of a new run; the result stands in the KPI
    as `initial_epe` and so on beside the last validation's.

    Raises:
        SpecError: settings that do not fit each other or this machine.
        NonFiniteLossError: the loss became NaN or infinite.
        Terminated: SIGTERM came; the step was finished and a checkpoint written.
    """
    settings = spec.train
    folder = results_dir(spec, "train")
    _check(spec)
    _quieten()
    if settings.seed >= 0:
        pl.seed_everything(settings.seed, workers=True, verbose=False)
    torch.backends.cudnn.benchmark = settings.cudnn.benchmark
    torch.backends.cudnn.deterministic = settings.cudnn.deterministic
    resume = settings.resume_training_checkpoint_path or None
    if resume:
        status.running(f"Resuming training from checkpoint: {resume}")
    network = from_spec(spec, resume or settings.pretrained_model_path or None)
    LOG.info("%.1f million parameters, %.1f of them trained", *_millions(network))
    data = StereoDataModule(spec)
    checkpoints = Checkpoints(folder, settings.checkpoint_interval, settings.checkpoint_interval_unit)
    trainer = _trainer(spec, folder, [StatusLines(status), checkpoints])
    module = StereoModule(network, spec)
    initial = {}
    if data.has("val") and not resume:
        trainer.validate(module, datamodule=data, verbose=False)
        initial = {f"initial_{name}": value for name, value in validation_kpi(trainer).items()}
    with _interruptions(trainer):
        trainer.fit(module, datamodule=data, ckpt_path=resume)
    return Outcome(
        f"Train finished successfully: {trainer.current_epoch} epochs, {trainer.global_step} steps",
        kpi=initial | train_kpi(trainer) | validation_kpi(trainer),
        artifacts={"checkpoint": checkpoints.latest} if checkpoints.latest else {},
        metadata={"checkpoint": {name: getattr(network.config, name) for name in _METADATA}},
    )


@contextlib.contextmanager
def _interruptions(trainer: pl.Trainer) -> Iterator[None]:
    """Let Lightning finish the step when SIGTERM comes, and give Ctrl-C and SIGTERM back under their own names."""
    main = threading.current_thread() is threading.main_thread()
    # With another handler in place Lightning would call that one too, in the middle of a step.
    before = signal.signal(signal.SIGTERM, signal.SIG_DFL) if main else None
    try:
        yield
    except SIGTERMException as error:
        raise Terminated("SIGTERM; the step was finished and a checkpoint written") from error
    except SystemExit as error:
        if trainer.interrupted:
            raise KeyboardInterrupt from error
        raise
    finally:
        if main:
            signal.signal(signal.SIGTERM, before)


def _quieten() -> None:
    """Leave out what Lightning says of things that are meant so here."""
    for name in ("pytorch_lightning", "lightning_fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in (
        r"Found \d+ module\(s\) in eval mode",  # the frozen ViT
        "The number of training batches",
        r".*does not have many workers",
        r"Checkpoint directory .* exists",
        r".*isinstance\(treespec, LeafSpec\)",
        "You're resuming from a checkpoint that ended before the epoch ended",  # StereoModule says it
    ):
        warnings.filterwarnings("ignore", message=message)


def _check(spec) -> None:
    """What can be said before anything is loaded."""
    settings = spec.train
    if settings.num_gpus > 1 or len(settings.gpu_ids) > 1 or settings.num_nodes > 1:
        raise SpecError("train.num_gpus, train.gpu_ids, train.num_nodes: training runs on one device; set one")
    if settings.precision == "fp16" and not torch.cuda.is_available():
        raise SpecError("train.precision: fp16 needs a GPU, and there is none here; choose bf16 or fp32")


def _trainer(spec, folder: Path, callbacks: list[pl.Callback]) -> pl.Trainer:
    settings = spec.train
    gpu = torch.cuda.is_available()
    by_value = settings.clip_grad_value is not None
    return pl.Trainer(
        accelerator="gpu" if gpu else "cpu",
        devices=settings.gpu_ids if gpu else 1,
        precision=_PRECISIONS[settings.precision],
        max_epochs=settings.num_epochs,
        check_val_every_n_epoch=settings.validation_interval,
        accumulate_grad_batches=settings.accumulate,
        gradient_clip_algorithm="value" if by_value else "norm",
        gradient_clip_val=settings.clip_grad_value if by_value else settings.clip_grad_norm,
        log_every_n_steps=settings.log_every_n_steps,
        fast_dev_run=settings.is_dry_run,
        default_root_dir=folder,
        logger=TensorBoardLogger(folder, name="lightning_logs", version=1),
        callbacks=callbacks,
        plugins=[AtomicCheckpointIO()],
        enable_progress_bar=sys.stderr.isatty(),
        enable_model_summary=False,
        num_sanity_val_steps=0,
        inference_mode=False,  # its tensors could not be added to in the next validation
        use_distributed_sampler=False,
    )


def _millions(network: torch.nn.Module) -> tuple[float, float]:
    """Millions of parameters: all, and those that are trained."""
    sizes = [(p.numel(), p.requires_grad) for p in network.parameters()]
    return sum(n for n, _ in sizes) / 1e6, sum(n for n, trained in sizes if trained) / 1e6
