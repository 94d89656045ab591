"""The network in the package: it finds disparities it was never shown, and learns a new style from a dozen scenes."""

from __future__ import annotations

from pathlib import Path

import pytest

from stereo_core.run.perform import perform
from stereo_core.spec import spec_from_dict


def listed(folder: Path, **scenes) -> dict:
    """Synthetic scenes as files; an entry of data_sources."""
    assert perform("synthesize", spec_from_dict("synthesize", {"results_dir": str(folder), **scenes})) == 0
    kinds = ("left/rgb", "right/rgb", "left/disparity")
    data = [f"scene_{number:04d}/dataset/data" for number in range(scenes["num_scenes"])]
    lines = [" ".join(f"{one}/{kind}/0000.png" for kind in kinds) for one in data]
    (folder / "list.txt").write_text("\n".join(lines) + "\n")
    return {"data_file": str(folder / "list.txt"), "dataset_name": "FSD"}


def evaluated(folder: Path, source: dict, checkpoint: str) -> float:
    """Its EPE in px, model.preset and model.max_disparity being left to the checkpoint."""
    dataset = {"max_disparity": 192, "test_dataset": {"data_sources": [source], "workers": 0}}
    tree = {"dataset": dataset, "evaluate": {"checkpoint": checkpoint, "results_dir": str(folder)}}
    outcomes = []
    assert perform("evaluate", spec_from_dict("evaluate", tree), on_outcome=outcomes.append) == 0
    return outcomes[0].kpi["epe"]


def test_it_finds_the_disparities_of_scenes_it_never_saw(tmp_path):
    source = listed(tmp_path / "scenes", num_scenes=2, height=192, width=384, max_disparity=48, seed=70)
    epe = evaluated(tmp_path / "out", source, "starter")
    assert epe < 4  # random weights are some 40 px off


@pytest.mark.slow
def test_a_dozen_scenes_of_another_style_teach_it_that_style(tmp_path):
    planes = {"style": "planes", "height": 96, "width": 192, "max_disparity": 40}
    shown = listed(tmp_path / "shown", num_scenes=12, seed=7, **planes)
    others = listed(tmp_path / "others", num_scenes=4, seed=8, **planes)
    split = {"data_sources": [shown], "batch_size": 2, "workers": 1, "augmentation": {"crop_size": [96, 192]}}
    optim = {"lr": 2e-4, "lr_scheduler": "OneCycleLR"}
    train = {"pretrained_model_path": "starter", "results_dir": str(tmp_path / "train"), "num_epochs": 5}
    train |= {"validation_interval": 5, "optim": optim}
    spec = {"dataset": {"max_disparity": 192, "train_dataset": split}, "train": train}
    assert perform("train", spec_from_dict("train", spec)) == 0
    after = evaluated(tmp_path / "after", others, str(tmp_path / "train" / "dn_model_latest.pth"))
    assert after < evaluated(tmp_path / "before", others, "starter")
