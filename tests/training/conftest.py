"""The training step by itself: real network, real trainer, batches made by hand."""

from __future__ import annotations

import pytest
import pytorch_lightning as pl
import torch
from batches import MODEL

from stereo_core.models import create_model
from stereo_core.spec import spec_from_dict
from stereo_core.training.checkpoints import AtomicCheckpointIO
from stereo_core.training.module import StereoModule


@pytest.fixture
def fit(tmp_path):
    """Train the tiny network on batches; returns its module. Hooks: functions of the module, called before training."""

    def run(batches, hook=None, **keys):
        source = tmp_path / "list.txt"
        source.touch()
        dataset = {"max_disparity": 64, "train_dataset": {"data_sources": [{"data_file": str(source)}] * 2}}
        optim = {"lr": 1e-3, "warmup_steps": 0} | keys.pop("optim", {})
        train = {"results_dir": str(tmp_path), "num_epochs": 1, "optim": optim} | keys
        spec = spec_from_dict("train", {"dataset": dataset, "model": MODEL, "train": train})
        torch.manual_seed(0)
        module = StereoModule(create_model(preset="tiny", train_iters=1), spec)
        if hook:
            hook(module)
        trainer = pl.Trainer(
            accelerator="cpu", max_epochs=1, accumulate_grad_batches=spec.train.accumulate, logger=False,
            enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
            gradient_clip_val=0.1, use_distributed_sampler=False,
            plugins=[AtomicCheckpointIO(), *getattr(module, "plugins", [])],
        )  # fmt: skip
        module.trained_by = trainer
        trainer.fit(module, torch.utils.data.DataLoader(batches, batch_size=None))
        return module

    return run
