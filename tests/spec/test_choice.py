"""A checkpoint of a training by its choice: best, latest, epoch or step, and never another one in its place."""

from __future__ import annotations

import errno
import logging
import os
from pathlib import Path

import pytest

from stereo_core.errors import SpecError
from stereo_core.files import point
from stereo_core.spec import load_spec
from stereo_core.spec.choice import STARTER_FILE

TEMPLATES = Path(__file__).parent / "tao"
NAMES = ("model_epoch_000_step_00004.pth", "model_epoch_001_step_00006.pth", "model_epoch_001_step_00008.pth")
EARLIER = "model_epoch_001_step_00020.pth"  # of a longer run in the same folder
KEYS = [
    ("evaluate", "evaluate.checkpoint"),
    ("inference", "inference.checkpoint"),
    ("export", "export.checkpoint"),
    ("quantize", "quantize.model_path"),
    ("train", "train.pretrained_model_path"),
    ("train", "train.resume_training_checkpoint_path"),
    ("doctor", "train.resume_training_checkpoint_path"),
]


@pytest.fixture
def training(workspace) -> Path:
    """`run/train` as a training leaves it, below the folder that specs of the workspace are loaded in."""
    folder = Path("run/train")
    folder.mkdir(parents=True)
    for name in (*NAMES, EARLIER):
        (folder / name).touch()
    (folder / "dn_model_latest.pth").symlink_to(NAMES[2])
    (folder / "dn_model_best.pth").symlink_to(NAMES[0])
    return folder


def load(verb: str, key: str, value: str) -> str:
    """What the key is once the spec is loaded."""
    template = "train" if verb in ("train", "doctor", "quantize") else verb
    spec = load_spec(verb, TEMPLATES / f"{template}.yaml", [f"{key}={value}", "results_dir=out"])
    section, name = key.split(".")
    return getattr(getattr(spec, section), name)


@pytest.mark.parametrize(("verb", "key"), KEYS)
def test_every_key_takes_a_choice_and_the_log_says_the_file(training, caplog, verb, key):
    with caplog.at_level(logging.INFO):
        assert load(verb, key, f"{training}@best") == f"{training}/{NAMES[0]}"
    assert f"{key}: {training}@best is the file {training}/{NAMES[0]}" in caplog.messages


@pytest.mark.parametrize(("verb", "key"), [one for one in KEYS if "resume" not in one[1]])
def test_every_key_takes_the_starter_and_a_file_of_that_name_by_its_path(workspace, verb, key):
    Path("starter").touch()
    assert load(verb, key, "starter") == str(STARTER_FILE)
    assert load(verb, key, "./starter") == "./starter"


@pytest.mark.parametrize(
    ("choice", "name"),
    [("best", NAMES[0]), ("latest", NAMES[2]), ("epoch=0", NAMES[0]), ("epoch=1", NAMES[2]), ("step=6", NAMES[1])],
)
def test_the_file_that_is_meant(training, choice, name):
    """An epoch's last checkpoint, and none that an earlier run left."""
    assert load(*KEYS[0], f"{training}@{choice}") == f"{training}/{name}"


def test_the_best_of_a_search_lies_in_a_trial_s_folder(training):
    link = Path("run/dn_model_best.pth")
    link.symlink_to(f"train/{NAMES[1]}")
    assert load(*KEYS[0], "run@best") == f"{training}/{NAMES[1]}"


@pytest.mark.parametrize("missing", [("symlink",), ("symlink", "link")])
def test_a_choice_is_the_same_file_where_the_file_system_has_no_links(training, monkeypatch, missing):
    """The calls are refused as FAT and some network file systems do; a real one can not be mounted here."""
    for name in missing:
        monkeypatch.setattr(os, name, refuse)
    for number, name in enumerate((*NAMES, EARLIER)):
        (training / name).write_text(f"weights {number}")
    for choice, name in (("latest", NAMES[2]), ("best", NAMES[0])):
        (training / f"dn_model_{choice}.pth").unlink()
        point(training / f"dn_model_{choice}.pth", training / name)
        assert load(*KEYS[0], f"{training}@{choice}") == f"{training}/{name}"
    with pytest.raises(SpecError, match=f"best is {NAMES[0]}, latest is {NAMES[2]}"):
        load(*KEYS[0], f"{training}@step=20")


def refuse(*_, **__):
    raise PermissionError(errno.EPERM, "Operation not permitted")


@pytest.mark.parametrize("choice", ["epoch=7", "step=20", "step=7"])
@pytest.mark.parametrize(("verb", "key"), KEYS[:2])
def test_what_is_not_there_is_never_replaced(training, verb, key, choice):
    """TAO's item 24: best or an epoch that is not there falls back to the latest."""
    with pytest.raises(SpecError) as error:
        load(verb, key, f"{training}@{choice}")
    held = f"{', '.join(NAMES)}, best is {NAMES[0]}, latest is {NAMES[2]}"
    assert str(error.value) == f"command line: {key}: {training}@{choice}: no such checkpoint; the folder holds {held}"


@pytest.mark.parametrize("link", ["best", "latest"])
def test_a_link_that_leads_nowhere_is_none(training, link):
    path = training / f"dn_model_{link}.pth"
    path.unlink()
    path.symlink_to("model_epoch_000_step_00000.pth")
    with pytest.raises(SpecError, match=rf"run/train@{link}: no such checkpoint; the folder holds "):
        load(*KEYS[0], f"{training}@{link}")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (
            "run/train",
            "run/train: is a folder; add @ and a choice of its checkpoints: best, latest, epoch=N or step=N;",
        ),
        ("run/train@newest", "run/train@newest: newest is not one of best, latest, epoch=N or step=N;"),
        ("gone@best", "gone@best: no such folder: gone"),
        ("run@latest", "run@latest: no such checkpoint; the folder holds no checkpoint of a training"),
        ("s3://runs/train@best", "s3://runs/train@best: @ works only for local folders; name"),
        ("me@home.pth", "no such file: me@home.pth"),
    ],
)
def test_what_can_not_be_chosen(training, value, message):
    with pytest.raises(SpecError) as error:
        load(*KEYS[0], value)
    assert f"command line: evaluate.checkpoint: {message}" in str(error.value)


def test_an_at_sign_in_a_file_s_name_chooses_nothing(training):
    Path("run/train@best").touch()
    assert load(*KEYS[0], "run/train@best") == "run/train@best"
