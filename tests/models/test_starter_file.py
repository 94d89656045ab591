"""The network in the package: what the word `starter` means wherever weights are read."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from stereo_core.errors import ModelError
from stereo_core.models import create_model, load_model, save_checkpoint
from stereo_core.models.checkpoints import convert_checkpoint
from stereo_core.report.describe import describe
from stereo_core.spec.choice import STARTER_FILE

MOST = 16 * 2**20  # bytes


def test_the_word_is_the_package_s_own_network_in_float32():
    model = load_model("starter")
    assert (model.config.preset, model.config.max_disparity, model.config.train_vit) == ("small", 192, True)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert STARTER_FILE.stat().st_size <= MOST
    assert describe("starter")["preset"] == "small"


def test_the_word_wins_over_a_file_of_that_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_checkpoint(create_model(preset="tiny"), "starter")
    assert load_model("starter").config.preset == "small"
    for file in ("./starter", Path("starter")):
        assert load_model(file).config.preset == "tiny"
        assert describe(file)["preset"] == "tiny"


def test_it_converts_to_the_layouts_of_others(tmp_path):
    convert_checkpoint("starter", tmp_path / "starter.pth", "tao")
    converted = load_model(tmp_path / "starter.pth").state_dict()
    assert all(torch.equal(value, converted[name]) for name, value in load_model("starter").state_dict().items())


def test_a_folder_s_choice_is_taken_and_a_wrong_one_refused(tmp_path):
    save_checkpoint(create_model(preset="tiny"), tmp_path / "dn_model_best.pth")
    assert load_model(f"{tmp_path}@best").config.preset == "tiny"
    with pytest.raises(ModelError, match="no such checkpoint"):
        load_model(f"{tmp_path}@epoch=3")
