"""train: from scratch, from a checkpoint's weights, or resuming a stopped run."""

from __future__ import annotations

import contextlib
import logging
import secrets
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytorch_lightning as pl
import torch

from stereo_core.errors import ModelError, SpecError
from stereo_core.models import from_spec, network_facts
from stereo_core.models.files import check_digest, read_sidecar
from stereo_core.models.flags import kept
from stereo_core.models.quantized import rounds
from stereo_core.run.outcome import Outcome
from stereo_core.run.ranks import in_ranks
from stereo_core.run.status import StatusLog
from stereo_core.run.termination import Terminated
from stereo_core.spec import results_dir
from stereo_core.spec.experiment import ExperimentSpec
from stereo_core.spec.train import AUTO
from stereo_core.training.callbacks import StatusLines, train_kpi, validation_kpi, validation_metrics
from stereo_core.training.checkpoints import (
    Checkpoints,
    Progress,
    Stopped,
    add_metrics,
    newest_whole,
    read_progress,
    read_seed,
)
from stereo_core.training.distribution import Ranks, gathered, joined, resolve
from stereo_core.training.doubts import beyond_the_cost_volume
from stereo_core.training.measurements import Measurements
from stereo_core.training.module import StereoDataModule, StereoModule
from stereo_core.training.pictures import Pictures
from stereo_core.training.progress import ProgressBar
from stereo_core.training.tracking import trackers
from stereo_core.training.trainer import check_compiler, check_fsdp, choose_kernels, quieten, trainer_of, tune
from stereo_core.values import counted

LOG = logging.getLogger(__name__)

HOW_TO_RESUME = "train.resume_training_checkpoint_path=auto resumes from it"


def run(spec: ExperimentSpec, status: StatusLog) -> Outcome:
    """Train and leave checkpoints (see `Checkpoints`), links to the newest and the best, and a TensorBoard log.

    With validation data, the weights are also evaluated before the first step of a new run; the KPI reports the result
    as `initial_epe` and so on, also after a resume. The resulting checkpoint is the best one by `train.monitor`, or the
    last one without validation; the message names it, and `epe` and so on are its metrics.

    With `train.resume_training_checkpoint_path` a run continues as if it had never stopped. `auto` resumes the newest
    intact checkpoint of the results folder, starts a new run if there is none, and does nothing if the run has
    finished. A checkpoint whose validation was interrupted is validated first. A run that ignores existing checkpoints
    of the folder is refused.

    On several devices or nodes (see `stereo_core.training.distribution`) every process does the same on its part of the
    data; only the first writes files.

    Raises:
        SpecError: settings that contradict each other, or that this machine or its environment do not support.
        NonFiniteLossError: the loss, its gradient or the validation is NaN or infinite.
        Terminated, KeyboardInterrupt: SIGTERM or Ctrl-C was received; a checkpoint of the last step is written.
    """
    if spec.train.precision == "fp16" and not torch.cuda.is_available():
        raise SpecError("train.precision: fp16 needs a GPU, but this machine has none; choose bf16 or fp32")
    ranks = resolve(spec.train, "train", torch.cuda.device_count())
    check_compiler(spec.train, ranks.gpu)
    if ranks.world > 1 and spec.train.distributed_strategy == "fsdp":
        check_fsdp(spec.train)
    return in_ranks(_train, spec, status, ranks)


@kept()
def _train(spec: ExperimentSpec, status: StatusLog, ranks: Ranks) -> Outcome:
    with joined(ranks):
        return _train_joined(spec, status, ranks)


def _train_joined(spec: ExperimentSpec, status: StatusLog, ranks: Ranks) -> Outcome:
    settings = spec.train
    folder = results_dir(spec, "train")
    quieten()
    choose_kernels(settings, ranks.gpu)
    resume = _to_resume(spec, folder, status)
    _check_nodes(spec, resume, ranks)
    if settings.seed < 0:
        settings.seed = _drawn_seed(resume)
    pl.seed_everything(settings.seed, workers=True, verbose=False)
    data = StereoDataModule(spec)
    data.setup()  # report bad lists before the network is built and validated
    batches = len(data.datasets["train"]) // (spec.dataset.train_dataset.batch_size * ranks.world)
    network = _network(spec, resume, ranks, batches * settings.num_epochs)
    checkpoints = Checkpoints(folder, settings)
    measurements = Measurements()
    watchers = [measurements, StatusLines(status, measurements), ProgressBar(measurements), Pictures(spec, folder)]
    trainer = trainer_of(settings, ranks, [*watchers, checkpoints], trackers(spec, folder), folder)
    module = StereoModule(network, spec)
    with _interruptions(trainer, checkpoints), contextlib.ExitStack() as ending:
        ending.callback(data.stop)
        if data.has("val"):
            _validate_first(trainer, module, data, checkpoints, resume)
        trainer.fit(module, datamodule=data, ckpt_path=resume)
    return _outcome(trainer, module, checkpoints)


def _network(spec: ExperimentSpec, resume: Path | None, ranks: Ranks, steps: int) -> torch.nn.Module:
    """The network that the run starts from or resumes, set up for training; ModelError if it is quantised."""
    start = resume or spec.train.pretrained_model_path or None
    network = from_spec(spec, start)
    if rounds(network):
        raise ModelError(
            f"{start}: a quantised checkpoint cannot be trained; train from the checkpoint that it was made from"
        )
    tune(network, spec.train, ranks, steps)
    if beyond := beyond_the_cost_volume(spec, network):
        LOG.warning("%s", beyond)
    whole, trained = _millions(network)
    others = ", the others frozen or unused" if trained < whole else ""
    LOG.info("%.1f million parameters, %.1f of them trained%s", whole, trained, others)
    return network


def _validate_first(
    trainer: pl.Trainer, module: StereoModule, data: StereoDataModule, checkpoints: Checkpoints, resume: Path | None
) -> None:
    """Validate a new run's weights, or repeat the validation that a stopped run did not finish."""
    if not resume:
        trainer.validate(module, datamodule=data, verbose=False)
        first = validation_kpi(validation_metrics(trainer))
        checkpoints.initial = {f"initial_{name}": value for name, value in first.items()}
    elif due := _due_validation(resume, module.settings.validation_interval):
        module.validated = due
        trainer.validate(module, datamodule=data, ckpt_path=resume, verbose=False)
        module.validated = None
        at_home = resume.resolve().parent == checkpoints.folder.resolve()  # do not change another run's folder
        if trainer.is_global_zero and at_home:
            add_metrics(resume, validation_metrics(trainer))


def _outcome(trainer: pl.Trainer, module: StereoModule, checkpoints: Checkpoints) -> Outcome:
    done = f"{counted(trainer.current_epoch, 'epoch')}, {counted(trainer.global_step, 'step')}"
    counts = module.kpi()  # over all ranks
    if not trainer.is_global_zero:
        return Outcome(f"Train finished successfully: {done}")
    if doubt := checkpoints.doubt():
        LOG.warning("%s", doubt)
    return Outcome(
        f"Train finished successfully: {done}; {checkpoints.words()}",
        kpi=checkpoints.initial | train_kpi(trainer) | validation_kpi(checkpoints.validation) | counts,
        artifacts={"checkpoint": checkpoints.best or checkpoints.latest} if checkpoints.latest else {},
        metadata={"checkpoint": network_facts(module.model.config)},
    )


def _to_resume(spec: ExperimentSpec, folder: Path, status: StatusLog) -> Path | None:
    """The checkpoint to resume from, reported in status.json and the log; None for a new run.

    Raises:
        SpecError: the checkpoint has more epochs than train.num_epochs, or the named one has all of them.
        ModelError: it is damaged or has no training state.
    """
    settings = spec.train
    resume_path = settings.resume_training_checkpoint_path
    path = newest_whole(folder) if resume_path == AUTO else Path(resume_path) if resume_path else None
    if path is None:
        if resume_path:
            status.running(f"No checkpoint in {folder}: starting a new run.")
            LOG.info(
                "train.resume_training_checkpoint_path is auto, but %s contains no checkpoint: starting a new run",
                folder,
            )
        return None
    check_digest(path)
    progress = read_progress(path)
    if progress.epochs + (resume_path != AUTO) > settings.num_epochs:  # with auto the run may have finished
        raise SpecError(
            f"train.num_epochs is {settings.num_epochs}, but the checkpoint to resume already has {progress.epochs} "
            f"({path}); raise num_epochs"
        )
    rest = "; train_loss of that epoch will cover only its remaining batches" if progress.batches else ""
    done = f"{counted(progress.epochs, 'epoch')} and {counted(progress.batches, 'batch', 'batches')} are done{rest}"
    status.running(f"Resuming training from checkpoint: {path} ({done})")
    LOG.info("resuming from %s: %s", path, done)
    if progress.epochs == settings.num_epochs:
        LOG.warning("nothing is left to train: %s has all epochs; to go on, raise train.num_epochs", path)
    return path


def _drawn_seed(resume: Path | None) -> int:
    """A random seed if the spec sets none: the same for all processes, and for a resumed run."""
    drawn = read_seed(resume) if resume else secrets.randbits(32)
    return int(gathered([drawn])[0])


def _check_nodes(spec: ExperimentSpec, resume: Path | None, ranks: Ranks) -> None:
    """Raise if the nodes would train differently.

    Raises:
        SpecError: the specs differ, or the nodes do not see the same checkpoints.
    """
    mine = {f"{group}.{name}": value for group in ("train", "dataset", "model")
            for name, value in getattr(spec, group).model_dump().items()}  # fmt: skip
    own = {"train.num_gpus", "train.gpu_ids"}  # may differ between nodes
    others = gathered([mine])
    changed = [name for name in mine if name not in own and any(other[name] != mine[name] for other in others)]
    if changed:
        raise SpecError(
            f"{', '.join(changed)}: the values differ between the {ranks.nodes} nodes; use the same spec on all nodes"
        )
    found = sorted(set(gathered([str(resume)])))
    if len(found) > 1:
        raise SpecError(
            f"train.results_dir: the nodes find different checkpoints to resume ({', '.join(found)}); move it to "
            "storage that all nodes share"
        )


def _due_validation(path: Path, interval: int) -> Progress | None:
    """The progress of a checkpoint at the end of an epoch whose validation was interrupted; else None."""
    progress = read_progress(path)
    due = not progress.batches and progress.epochs % interval == 0 and "metrics" not in read_sidecar(path)
    return progress if due else None


@contextlib.contextmanager
def _interruptions(trainer: pl.Trainer, checkpoints: Checkpoints) -> Iterator[None]:
    """Re-raise Ctrl-C and SIGTERM as their own exceptions."""
    on_ctrl_c = signal.getsignal(signal.SIGINT)
    try:
        yield
    except Stopped as error:
        done = f"a checkpoint of the last step is written; {HOW_TO_RESUME}"
        if checkpoints.stop_signal == signal.SIGINT:
            raise KeyboardInterrupt(f"Ctrl-C; {done}") from error
        raise Terminated(f"SIGTERM; {done}") from error
    except SystemExit as error:
        if trainer.interrupted:
            raise KeyboardInterrupt from error
        raise
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, on_ctrl_c)


def _millions(network: torch.nn.Module) -> tuple[float, float]:
    """Millions of parameters: all of them, and the trained ones."""
    sizes = [(p.numel(), p.requires_grad) for p in network.parameters()]
    return sum(n for n, _ in sizes) / 1e6, sum(n for n, trained in sizes if trained) / 1e6
