"""Where the figures of a training run go: TensorBoard files, and where they were asked for W&B and MLflow.

Nothing leaves this machine unless W&B or MLflow is on, and then figures and disparity panels (W&B alone) do: neither
code (wandb.save_code asks for it) nor the command, git state, packages, console lines or statistics of the machine.
"""

from __future__ import annotations

import importlib.util
import logging
import netrc
import os
from pathlib import Path
from urllib.parse import urlsplit

import torch
from pytorch_lightning.loggers import Logger, MLFlowLogger, TensorBoardLogger, WandbLogger

import stereo_core
from stereo_core.spec.experiment import ExperimentSpec
from stereo_core.spec.train import Wandb

LOG = logging.getLogger(__name__)

PACKAGE = Path(stereo_core.__file__).parent
_INSTALL = "pip install 'stereo-pipelines[tracking]'"


def trackers(spec: ExperimentSpec, folder: Path) -> list[Logger]:
    """The run's loggers, TensorBoard's first; none on a dry run. W&B and MLflow are the first rank's alone.

    Args:
        spec: the experiment; `wandb` and `train.is_dry_run` count.
        folder: the run's results.
    """
    if spec.train.is_dry_run:
        return []
    tensorboard = TensorBoardLogger(folder, name="lightning_logs", version=1)
    if torch.distributed.is_available() and torch.distributed.is_initialized() and torch.distributed.get_rank():
        return [tensorboard]
    return [tensorboard, *filter(None, (_wandb(spec.wandb, folder), _mlflow()))]


def _wandb(settings: Wandb, folder: Path) -> WandbLogger | None:
    """W&B, or None with a line that says why; silent where the spec turns it off."""
    if not settings.enable:
        return None
    missing = _missing_for_wandb()
    if missing:
        LOG.info("W&B is off: %s", missing)
        return None
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # read when wandb is imported
    import wandb

    if settings.reinit:
        wandb.finish()  # a run in progress in this process would go on otherwise
    LOG.info("W&B: figures and disparity panels go to project %r, run %r", settings.project, settings.name)
    return WandbLogger(
        project=settings.project,
        name=settings.name,
        id=settings.run_id or None,
        entity=settings.entity or None,
        group=settings.group or None,
        tags=settings.tags,
        sync_tensorboard=settings.sync_tensorboard,
        save_code=settings.save_code,
        save_dir=folder,
        log_model=False,
        settings=wandb.Settings(
            code_dir=str(PACKAGE) if settings.save_code else None,
            console="off",
            disable_code=not settings.save_code,
            disable_git=True,
            x_disable_machine_info=True,
            x_disable_meta=True,
            x_disable_stats=True,
            x_save_requirements=False,
        ),
    )


def _missing_for_wandb() -> str:
    """What W&B lacks to be used; empty where it has all."""
    if importlib.util.find_spec("wandb") is None:
        return f"it is not installed ({_INSTALL})"
    mode = os.environ.get("WANDB_MODE")
    if mode == "disabled":
        return "WANDB_MODE is disabled"
    if mode == "offline" or os.environ.get("WANDB_API_KEY") or _netrc_knows(os.environ.get("WANDB_BASE_URL")):
        return ""
    return "no WANDB_API_KEY in the environment, no entry in netrc, and WANDB_MODE is not offline"


def _netrc_knows(url: str | None) -> bool:
    host = urlsplit(url or "https://api.wandb.ai").hostname
    try:
        return netrc.netrc(os.environ.get("NETRC")).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False


def _mlflow() -> MLFlowLogger | None:
    """MLflow where MLFLOW_TRACKING_URI is set, with MLflow's own variables for experiment, run name and run id."""
    uri = os.environ.get("MLFLOW_TRACKING_URI")
    if not uri:
        return None
    if importlib.util.find_spec("mlflow") is None:
        LOG.warning("MLFLOW_TRACKING_URI is set, but MLflow is not installed (%s)", _INSTALL)
        return None
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # read when mlflow is imported
    experiment = os.environ.get("MLFLOW_EXPERIMENT_NAME", "stereo-pipelines")
    LOG.info("MLflow: figures go to experiment %r", experiment)  # the URI may hold a password
    return MLFlowLogger(
        experiment,
        run_name=os.environ.get("MLFLOW_RUN_NAME"),
        run_id=os.environ.get("MLFLOW_RUN_ID"),
        tracking_uri=uri,
    )
