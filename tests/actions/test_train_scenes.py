"""Training on scenes that are drawn as they are needed: no file, no list, and a stop costs nothing."""

from __future__ import annotations

import pytest
from training_runs import assert_same, checkpoints, load, start

SCENES = {"dataset_name": "Synthetic", "pairs_per_epoch": 2, "height": 64, "width": 96, "scene_disparity": [4, 30]}
DATASET = {
    "max_disparity": 64,
    "train_dataset": {
        "data_sources": [SCENES],
        "batch_size": 1,
        "workers": 1,
        "augmentation": {"crop_size": [64, 96]},
    },
    "val_dataset": {"data_sources": [SCENES | {"pairs_per_epoch": 1}], "workers": 0},
}


def train(folder, epochs: int, **settings) -> dict:
    schedule = {"optim": {"lr": 1e-4, "lr_scheduler": "StepLR", "lr_steps": [10]}}
    assert start(DATASET, {"results_dir": str(folder), "num_epochs": epochs, **schedule, **settings}) == 0
    return load(folder / "dn_model_latest.pth")


@pytest.mark.slow
def test_a_resumed_training_sees_the_scenes_that_would_have_come(tmp_path):
    whole = train(tmp_path / "whole", 2)
    train(tmp_path / "parts", 1)
    resumed = train(tmp_path / "parts", 2, resume_training_checkpoint_path="auto")
    assert checkpoints(tmp_path / "parts") == checkpoints(tmp_path / "whole")
    assert_same(whole, resumed)
