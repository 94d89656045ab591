"""Loggers of a training run: TensorBoard files and, if enabled, W&B and MLflow.

Nothing leaves this machine unless W&B or MLflow is enabled. Then only figures and (to W&B) disparity panels are sent:
no code (unless wandb.save_code is set), command line, git state, packages, console lines or machine statistics.
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
    """The run's loggers, TensorBoard's first; none on a dry run. Only the first rank uses W&B and MLflow.

    Args:
        spec: the experiment; `wandb` and `train.is_dry_run` are used.
        folder: the run's results.
    """
    if spec.train.is_dry_run:
        return []
    tensorboard = TensorBoardLogger(folder, name="lightning_logs", version=1)
    if torch.distributed.is_available() and torch.distributed.is_initialized() and torch.distributed.get_rank():
        return [tensorboard]
    return [tensorboard, *filter(None, (_wandb(spec.wandb, folder), _mlflow()))]


def _wandb(settings: Wandb, folder: Path) -> WandbLogger | None:
    """The W&B logger, or None; if the spec or the environment asks for it, a log line gives the reason."""
    if not settings.enable:
        return None
    missing = _missing_for_wandb()
    if missing:
        if settings.model_fields_set or any(name.startswith("WANDB_") for name in os.environ):  # somebody asked for it
            LOG.info("W&B is off: %s", missing)
        return None
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # wandb reads it at import
    import wandb

    if settings.reinit:
        wandb.finish()  # otherwise an active run of this process would continue
    LOG.info("W&B: sending figures and disparity panels to project %r, run %r", settings.project, settings.name)
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
    """Why W&B cannot be used; empty if it can."""
    if importlib.util.find_spec("wandb") is None:
        return f"it is not installed ({_INSTALL})"
    mode = os.environ.get("WANDB_MODE")
    if mode == "disabled":
        return "WANDB_MODE is disabled"
    if mode == "offline" or os.environ.get("WANDB_API_KEY") or _netrc_knows(os.environ.get("WANDB_BASE_URL")):
        return ""
    return "there is no WANDB_API_KEY in the environment and no entry in netrc, and WANDB_MODE is not offline"


def _netrc_knows(url: str | None) -> bool:
    host = urlsplit(url or "https://api.wandb.ai").hostname
    try:
        return netrc.netrc(os.environ.get("NETRC")).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False


def _mlflow() -> MLFlowLogger | None:
    """The MLflow logger if MLFLOW_TRACKING_URI is set; MLflow's variables set experiment, run name and run id."""
    uri = os.environ.get("MLFLOW_TRACKING_URI")
    if not uri:
        return None
    if importlib.util.find_spec("mlflow") is None:
        LOG.warning("MLFLOW_TRACKING_URI is set, but MLflow is not installed (%s)", _INSTALL)
        return None
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # mlflow reads it at import
    experiment = os.environ.get("MLFLOW_EXPERIMENT_NAME", "stereo-pipelines")
    LOG.info("MLflow: sending figures to experiment %r", experiment)  # not the URI: it may contain a password
    return MLFlowLogger(
        experiment,
        run_name=os.environ.get("MLFLOW_RUN_NAME"),
        run_id=os.environ.get("MLFLOW_RUN_ID"),
        tracking_uri=uri,
    )
