"""No key is ignored in silence: it is read somewhere, or the table says why it is not."""

from __future__ import annotations

import logging
import re
from fnmatch import fnmatchcase
from pathlib import Path

import pytest

import stereo_core
from stereo_core.spec import SPECS, load_spec
from stereo_core.spec.effects import WITHOUT_EFFECT, reason
from stereo_core.spec.paths import group_of, walk

TEMPLATES = Path(__file__).parent / "tao"
JUDGED_AT_LOADING = {  # read by spec/requirements.py alone: one value only is possible
    "dataset.dataset_name",
    "model.model_type",
    "model.hidden_dims",
    "model.n_downsample",
    "model.cv_group",
    "model.volume_dim",
    "model.stereo_backbone.use_bn",
    "model.stereo_backbone.use_clstoken",
    "export.format",
    "quantize.mode",  # each backend has one
    "export.input_channel",
    "automl.automl_hyperparameters",  # spec/search_space.py makes dimensions of both
    "automl.custom_param_ranges",
}


def keys(verb: str) -> list[str]:
    return [path for path, field in walk(SPECS[verb]) if group_of(field)[0] is None]


def test_every_pattern_of_the_table_fits_a_key():
    known = {path for verb in ("convert", "synthesize", "train") for path in keys(verb)}
    for pattern in WITHOUT_EFFECT:
        assert any(fnmatchcase(path, pattern) for path in known), pattern


@pytest.mark.parametrize("verb", ["convert", "synthesize", "train"])
def test_a_key_is_read_or_in_the_table(verb):
    root = Path(stereo_core.__file__).parent
    files = [path for path in root.rglob("*.py") if path.parent.name != "spec"]
    code = "\n".join(path.read_text(encoding="utf-8") for path in files)
    silent = []
    for path in keys(verb):
        leaf = path.rpartition(".")[2]
        if reason(path) or path in JUDGED_AT_LOADING:
            continue
        if not re.search(rf"""\.{leaf}\b|["']{leaf}["']""", code):
            silent.append(path)
    assert not silent


def warnings(caplog, verb: str, template: str, *overrides: str) -> list[str]:
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        load_spec(verb, TEMPLATES / f"{template}.yaml", list(overrides))
    return [record.getMessage() for record in caplog.records]


def test_one_warning_a_key_and_only_away_from_the_default(workspace, caplog):
    overrides = ["train.tile_wtype=box", "evaluate.batch_size=4", "dataset.val_dataset.augmentation.max_scale=0.1"]
    found = warnings(caplog, "train", "train", *overrides)
    assert [line for line in found if line.startswith("train.tile_wtype has no effect here: ")]
    assert len([line for line in found if "dataset.val_dataset.augmentation.max_scale" in line]) == 1
    assert not [line for line in found if "evaluate" in line or "train.seed" in line or "train_dataset" in line]


def test_training_augments_and_may_skip_pairs_and_evaluation_may_not(workspace, caplog):
    path = "dataset.train_dataset.augmentation"
    overrides = [
        f"{path}.do_flip=true",
        f"{path}.max_scale=0.9",
        f"{path}.gamma=[0.8,1.2,1,1]",
        "dataset.on_error=skip",
    ]
    found = warnings(caplog, "train", "train", *overrides)
    assert not [line for line in found if line.startswith(("dataset.train_dataset", "dataset.on_error"))]
    found = warnings(caplog, "evaluate", "evaluate", "dataset.on_error=skip")
    assert [line for line in found if line.startswith("dataset.on_error has no effect here: only training")]


def test_a_crop_size_that_brings_nothing_to_a_size_is_named(workspace, caplog):
    path = "dataset.test_dataset.augmentation.crop_size"
    assert [line for line in warnings(caplog, "evaluate", "evaluate") if line.startswith(path)]
    assert not [line for line in warnings(caplog, "evaluate", "evaluate", "evaluate.resize=pad") if path in line]


def test_an_optimizer_and_a_schedule_take_their_own_keys(workspace, caplog):
    set_away = {"momentum": "0.5", "lr_decay": "0.5", "min_lr": "1e-5", "warmup_steps": "3"}
    own = [f"train.optim.{name}={value}" for name, value in set_away.items()]

    def named(*overrides: str) -> set[str]:
        found = warnings(caplog, "train", "train", *own, *overrides)
        return {line.split()[0].removeprefix("train.optim.") for line in found if line.startswith("train.optim.")}

    assert named("train.optim.lr_scheduler=StepLR") == {"momentum", "min_lr"}
    others = ("train.optim.optimizer=SGD", "train.optim.lr_scheduler=OneCycleLR")
    assert named(*others) == {"momentum", "lr_decay", "min_lr", "warmup_steps"}


def test_tao_s_defaults_draw_no_warning(workspace, caplog):
    assert warnings(caplog, "convert", "convert_middlebury") == []
    assert warnings(caplog, "gen_trt_engine", "gen_trt_engine") == []
