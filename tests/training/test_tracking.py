"""Where figures go, and that nothing goes anywhere unasked. The libraries are the real ones."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
from pytorch_lightning.loggers import MLFlowLogger, TensorBoardLogger, WandbLogger

from stereo_core.spec import ExperimentSpec
from stereo_core.training.tracking import trackers


@pytest.fixture(autouse=True)
def nothing_set(monkeypatch, tmp_path):
    """An environment without accounts, whoever runs the tests."""
    for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_BASE_URL", "MLFLOW_TRACKING_URI", "MLFLOW_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))


def of(folder: Path, train: dict | None = None, **wandb) -> list:
    return trackers(ExperimentSpec(train=train or {}, wandb=wandb), folder)


def test_tensorboard_alone_by_default(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    (logger,) = of(tmp_path)
    assert isinstance(logger, TensorBoardLogger)
    assert Path(logger.log_dir) == tmp_path / "lightning_logs" / "version_1"
    assert caplog.messages == [], "nobody asked for W&B"
    of(tmp_path, enable=True)
    (line,) = caplog.messages
    assert line.startswith("W&B is off: ") and ("not installed" in line or "WANDB_API_KEY" in line)


def test_a_dry_run_logs_nowhere(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert of(tmp_path, {"is_dry_run": True}) == []


def test_wandb_that_the_spec_turns_off_is_silent(tmp_path, monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    monkeypatch.setenv("WANDB_API_KEY", "x" * 40)
    assert len(of(tmp_path, enable=False)) == 1 and not caplog.messages


def test_wandb_that_the_environment_turns_off(tmp_path, monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    monkeypatch.setenv("WANDB_API_KEY", "x" * 40)
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert len(of(tmp_path)) == 1 and "disabled" in caplog.text


def test_an_entry_in_netrc_is_a_key(tmp_path, monkeypatch, caplog):
    pytest.importorskip("wandb")
    caplog.set_level(logging.INFO)
    (tmp_path / "netrc").write_text("machine wandb.example login user password hunter2\n")
    assert len(of(tmp_path)) == 1  # it is another server's
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.example:8080/path")
    assert isinstance(of(tmp_path, project="p7")[1], WandbLogger)
    assert "goes" not in caplog.text and "'p7'" in caplog.text and "hunter2" not in caplog.text


@pytest.mark.slow
def test_a_wandb_run_holds_what_the_spec_says_and_no_more(tmp_path, monkeypatch):
    """A run written to disk (strings in it are plain): every key acts, and nothing of the machine or the code is in."""
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    keys = {"project": "pro7", "entity": "ent7", "name": "nam7", "run_id": "run7", "group": "gro7", "tags": ["tag7"]}
    _, logger = of(tmp_path, **keys)
    try:
        logger.log_metrics({"val/epe": 7.125}, step=3)
        logger.log_image("train/vis", [np.zeros((4, 4, 3), np.uint8)], step=3)
        assert logger.experiment.entity == "ent7"
    finally:
        wandb.teardown()  # all is written after it
    (run,) = (tmp_path / "wandb").glob("offline-run-*-run7")
    written = (run / "run-run7.wandb").read_bytes()
    for text in ("pro7", "ent7", "nam7", "gro7", "tag7", "val/epe", "7.125"):
        assert text.encode() in written, text
    files = sorted(path.name for path in (run / "files").rglob("*") if path.is_file())
    assert len(files) == 1 and files[0].startswith("vis_") and files[0].endswith(".png")
    for text in ("wandb-metadata", "requirements.txt", "stereo_core", "cpu_count", "tracking.py", "system."):
        assert text.encode() not in written, text


@pytest.mark.slow
def test_wandb_takes_code_and_tensorboard_where_it_is_asked_to(tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    before = wandb.init(dir=tmp_path, project="earlier")
    tensorboard, logger = of(tmp_path, save_code=True, sync_tensorboard=True, reinit=True)
    try:
        assert logger.experiment.id != before.id  # reinit: not the run in progress
        tensorboard.log_metrics({"only/tensorboard": 7.125}, step=3)
        tensorboard.experiment.close()
    finally:
        wandb.teardown()  # all is written after it
        wandb.tensorboard.unpatch()  # other tests of this process write TensorBoard files too
    (written,) = (tmp_path / "wandb").glob(f"offline-run-*-{logger.version}/*.wandb")
    for text in ("only/tensorboard", "7.125", "training/tracking.py"):
        assert text.encode() in written.read_bytes(), text


@pytest.mark.slow
def test_mlflow(tmp_path, monkeypatch, caplog):
    pytest.importorskip("mlflow")
    caplog.set_level(logging.INFO)
    uri = f"sqlite:///{tmp_path}/hunter2.db"
    for name, value in {"TRACKING_URI": uri, "EXPERIMENT_NAME": "exp7", "RUN_NAME": "nam7"}.items():
        monkeypatch.setenv(f"MLFLOW_{name}", value)
    _, logger = of(tmp_path, enable=False)
    assert isinstance(logger, MLFlowLogger) and "'exp7'" in caplog.text and "hunter2" not in caplog.text
    logger.log_metrics({"val/epe": 7.125}, step=3)
    logger.finalize("success")

    from mlflow.telemetry import get_telemetry_client
    from mlflow.tracking import MlflowClient

    client = MlflowClient(uri)
    (run,) = client.search_runs([client.get_experiment_by_name("exp7").experiment_id])
    assert run.info.run_name == "nam7" and run.info.status == "FINISHED"
    ((value, step),) = [(m.value, m.step) for m in client.get_metric_history(run.info.run_id, "val/epe")]
    assert (value, step) == (7.125, 3)
    assert get_telemetry_client() is None
