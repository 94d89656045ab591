"""Runs that go on: where, from what, and that they end as one that never stopped; what is refused."""

from __future__ import annotations

import math
import shutil

import numpy as np
import pytest
import torch
import training_runs
from training_runs import LOWER_LAST, assert_same, checkpoints, load

from stereo_core.errors import ModelError
from stereo_core.files import sha256_of
from stereo_core.models import files, load_model
from stereo_core.models.checkpoints import to_tao
from stereo_core.models.files import read_sidecar
from stereo_core.training.callbacks import StatusLines


def test_resume_equals_an_undisturbed_run(finished, train, tmp_path):
    """At an epoch's end: same samples, same crops, same rates, so the same weights."""
    first = str(finished[0] / "model_epoch_000_step_00002.pth")
    assert train(tmp_path, num_epochs=2, optim=LOWER_LAST, resume_training_checkpoint_path=first)[0] == 0
    assert checkpoints(tmp_path) == ["model_epoch_001_step_00004.pth"]
    saved = load(tmp_path / "dn_model_latest.pth")
    assert saved["lr_schedulers"][0]["_last_lr"] == pytest.approx([1e-4, 1e-4])
    assert_same(saved, load(finished[0] / "dn_model_latest.pth"))


@pytest.mark.parametrize(
    "start", ["model_epoch_000_step_00002.pth", pytest.param("model_epoch_000_step_00004.pth", marks=pytest.mark.slow)]
)
def test_resume_from_a_step_checkpoint(every_two_steps, train, tmp_path, status_lines, recwarn, start):
    """Within an epoch and at its end: no sample twice, none left out, so the same weights to the last bit. The run that
    is gone on with stays as it is: the validation that its checkpoint has not had is written beside none of its files.
    """
    before = {path.name: path.read_bytes() for path in every_two_steps.glob("*.json")}
    assert "metrics" not in read_sidecar(every_two_steps / "model_epoch_000_step_00004.pth")
    keys = {"num_epochs": 2, "resume_training_checkpoint_path": str(every_two_steps / start)}
    code, outcome = train(tmp_path, batch_size=1, **keys)
    assert code == 0
    progress = [line for line in status_lines(tmp_path) if line["message"] == "Training loop in progress"]
    assert [(line["epoch"], line["step"]) for line in progress] == [(0, 4), (1, 8)]
    saved = load(tmp_path / "dn_model_latest.pth")
    assert (saved["epoch"], saved["global_step"]) == (1, 8)
    assert saved["optimizer_states"][0]["state"][0]["step"] == 8
    assert math.isfinite(outcome.kpi["train_loss"]) and math.isfinite(outcome.kpi["epe"])
    said = [line["message"] for line in status_lines(tmp_path) if "0 epochs and 2 batches are done" in line["message"]]
    assert bool(said) == (start == "model_epoch_000_step_00002.pth")
    assert_same(saved, load(every_two_steps / "dn_model_latest.pth"))
    assert not [warning for warning in recwarn if "not resumable" in str(warning.message)]
    assert {path.name: path.read_bytes() for path in every_two_steps.glob("*.json")} == before


@pytest.mark.slow
def test_new_rates_hold_from_where_a_run_goes_on(finished, train, tmp_path, caplog):
    """The optimizer's state would bring back the old ones; here beta1 stands where OneCycleLR has left it."""
    content, first = load(finished[0] / "model_epoch_000_step_00002.pth"), str(tmp_path / "cycled.pth")
    for group in content["optimizer_states"][0]["param_groups"]:
        group["betas"] = (0.87, 0.999)
    torch.save(content, first)
    rates = {"lr": 2e-4, "weight_decay": 0.005, "lr_steps": [3], "lr_decay": 0.1}
    code, _ = train(tmp_path, num_epochs=2, optim=rates, backbone_lr_factor=0.5, resume_training_checkpoint_path=first)
    assert code == 0
    saved = load(tmp_path / "dn_model_latest.pth")
    groups = saved["optimizer_states"][0]["param_groups"]
    assert [group["weight_decay"] for group in groups] == [0.005, 0.005]
    assert [group["lr"] for group in groups] == pytest.approx([2e-5, 1e-5])  # after the fourth step
    assert [group["betas"] for group in groups] == [(0.9, 0.999)] * 2
    assert saved["lr_schedulers"][0]["base_lrs"] == [2e-4, 1e-4]
    said = [record.message for record in caplog.records if "the new value applies" in record.message]
    assert said[0].startswith("lr of the network is now 0.0002 (was 0.001): the new value applies") and len(said) == 6


def test_another_optimizer_does_not_go_on(finished, train, tmp_path, status_lines):
    first = str(finished[0] / "model_epoch_000_step_00002.pth")
    code, _ = train(tmp_path, num_epochs=2, optim={"optimizer": "SGD"}, resume_training_checkpoint_path=first)
    assert code == 2 and "the run used AdamW" in status_lines(tmp_path)[-1]["message"]


def test_other_trained_weights_do_not_go_on(finished, train, tmp_path, status_lines, monkeypatch):
    first = str(finished[0] / "model_epoch_000_step_00002.pth")
    monkeypatch.setitem(training_runs.MODEL, "stereo_backbone", {"train_vit": True})
    code, _ = train(tmp_path, num_epochs=2, resume_training_checkpoint_path=first)
    said = status_lines(tmp_path)[-1]["message"]
    assert code == 2 and "the run had model.stereo_backbone.train_vit=false, this one has true; set it back" in said


@pytest.mark.parametrize(("size", "keys", "words"), [
    (2, {}, "batch_size 1, now 2"), (1, {"accumulate": 2}, "accumulate 1, now 2"),
])  # fmt: skip
def test_an_epoch_is_not_cut_anew_in_its_middle(every_two_steps, train, tmp_path, status_lines, size, keys, words):
    within = str(every_two_steps / "model_epoch_000_step_00002.pth")
    assert train(tmp_path, batch_size=size, num_epochs=2, **keys, resume_training_checkpoint_path=within)[0] == 2
    assert words in status_lines(tmp_path)[-1]["message"]


@pytest.mark.slow
def test_the_next_epoch_may_be_cut_anew(every_two_steps, train, tmp_path):
    at_end = str(every_two_steps / "model_epoch_000_step_00004.pth")
    keys = {"num_epochs": 2, "accumulate": 2, "resume_training_checkpoint_path": at_end}
    assert train(tmp_path, batch_size=2, **keys)[0] == 0


def test_a_run_with_more_epochs_than_are_wanted_does_not_go_on(finished, train, tmp_path, capfd):
    """`auto` takes a finished run as finished, and one that is past the end as a mistake."""
    shutil.copytree(finished[0], tmp_path, dirs_exist_ok=True, symlinks=True)
    code, _ = train(tmp_path, num_epochs=1, resume_training_checkpoint_path="auto")
    assert code == 2
    assert "train.num_epochs is 1, but the checkpoint to resume already has 2" in capfd.readouterr().err


def test_a_finished_run_says_that_nothing_is_left_to_train(finished, train, tmp_path, caplog):
    shutil.copytree(finished[0], tmp_path, dirs_exist_ok=True, symlinks=True)
    code, _ = train(tmp_path, num_epochs=2, resume_training_checkpoint_path="auto")
    assert code == 0 and "nothing is left to train" in caplog.text


def test_weights_alone_can_not_be_resumed(train, tiny_checkpoint, tmp_path, status_lines):
    assert train(tmp_path, resume_training_checkpoint_path=str(tiny_checkpoint))[0] == 2
    assert "no training state" in status_lines(tmp_path)[-1]["message"]


def test_a_finished_run_can_not_be_resumed_by_its_name(finished, train, tmp_path, status_lines):
    latest = str(finished[0] / "dn_model_latest.pth")
    assert train(tmp_path, num_epochs=2, resume_training_checkpoint_path=latest)[0] == 2
    assert "the checkpoint to resume already has 2" in status_lines(tmp_path)[-1]["message"]


def test_a_step_checkpoint_at_the_end_of_the_run_can_not_be_resumed(every_two_steps, train, tmp_path, status_lines):
    latest = str(every_two_steps / "model_epoch_001_step_00008.pth")
    assert train(tmp_path, batch_size=1, num_epochs=2, resume_training_checkpoint_path=latest)[0] == 2
    assert "the checkpoint to resume already has 2" in status_lines(tmp_path)[-1]["message"]


def test_a_run_of_other_software_can_not_be_resumed(finished, train, tmp_path, status_lines):
    """TAO's names: its weights load, its optimizer state goes by the number of the weight."""
    content = load(finished[0] / "model_epoch_000_step_00002.pth")
    named = {f"model.{to_tao(name.removeprefix('model.'))}": value for name, value in content["state_dict"].items()}
    assert named.keys() != content["state_dict"].keys()
    torch.save(content | {"state_dict": named}, tmp_path / "tao.pth")
    keys = {"num_epochs": 2, "resume_training_checkpoint_path": str(tmp_path / "tao.pth")}
    assert train(tmp_path / "run", **keys)[0] == 2
    message = status_lines(tmp_path / "run")[-1]["message"]
    assert "tao.pth" in message and "train.pretrained_model_path" in message


@pytest.mark.slow
def test_plain_numbers_in_a_checkpoint_do_not_hinder_resuming(finished, train, tmp_path):
    content = load(finished[0] / "model_epoch_000_step_00002.pth") | {"best": np.float64(1.5)}
    torch.save(content, tmp_path / "best.pth")
    keys = {"num_epochs": 2, "resume_training_checkpoint_path": str(tmp_path / "best.pth")}
    assert train(tmp_path / "run", **keys)[0] == 0


# TAO's item 27: there a run resumes because a file lies there. Here it is asked to, says so, and may be over.


@pytest.fixture
def here(finished, tmp_path):
    """A folder of one's own with a run of two epochs that is over."""
    return shutil.copytree(finished[0], tmp_path / "here", symlinks=True)


def contents(folder, pattern="*") -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob(pattern) if path.is_file()}


@pytest.mark.parametrize("keys", [{}, {"is_dry_run": True}, {"resume_training_checkpoint_path": "elsewhere"}])
def test_a_run_that_is_not_asked_to_go_on_leaves_another_ones_folder_alone(here, finished, train, capfd, keys):
    if "resume_training_checkpoint_path" in keys:
        keys = {"resume_training_checkpoint_path": str(finished[0] / "model_epoch_000_step_00002.pth")}
    before = contents(here)
    assert train(here, num_epochs=2, **keys)[0] == 2
    said = capfd.readouterr().err
    assert f"{here} holds checkpoints of another training run" in said and "_path=auto to resume that run" in said
    assert contents(here) == before


def test_auto_goes_on_from_the_newest_checkpoint_and_says_so(finished, here, train, status_lines, monkeypatch):
    """The file, which may have gigabytes, is checked once."""
    checked = []
    monkeypatch.setattr(files, "sha256_of", lambda path: checked.append(path.name) or sha256_of(path))
    code, outcome = train(here, num_epochs=3, resume_training_checkpoint_path="auto")
    assert code == 0 and "3 epochs, 6 steps" in outcome.message
    assert checked == ["model_epoch_001_step_00004.pth"]
    assert outcome.kpi["initial_epe"] == finished[1].kpi["initial_epe"] != outcome.kpi["epe"]
    saved = load(here / "dn_model_latest.pth")
    assert (saved["epoch"], saved["global_step"], saved["optimizer_states"][0]["state"][0]["step"]) == (2, 6, 6)
    said = f"Resuming training from checkpoint: {here / 'model_epoch_001_step_00004.pth'} "
    assert [line for line in status_lines(here) if line["message"].startswith(said)]


@pytest.mark.slow
def test_auto_does_nothing_to_a_run_that_is_over(here, train):
    before = contents(here, "*.pth")
    code, outcome = train(here, num_epochs=2, resume_training_checkpoint_path="auto")
    assert code == 0 and "2 epochs, 4 steps" in outcome.message
    assert contents(here, "*.pth") == before


def test_auto_begins_a_new_run_where_there_is_no_checkpoint(train, tmp_path, status_lines):
    assert train(tmp_path, num_epochs=1, resume_training_checkpoint_path="auto")[0] == 0
    assert f"No checkpoint in {tmp_path}: starting a new run." in [line["message"] for line in status_lines(tmp_path)]


@pytest.mark.slow
def test_two_trainings_at_once_in_one_folder(train, tmp_path, monkeypatch, capfd):
    """The second is refused before it writes anything; when the first has ended, its folder is free again."""
    second = []

    def start_another(self, trainer, *_):
        record = [(tmp_path / name).read_bytes() for name in ("experiment.yaml", "status.json")]
        second.append(train(tmp_path, num_epochs=2, resume_training_checkpoint_path="auto")[0])
        assert [(tmp_path / name).read_bytes() for name in ("experiment.yaml", "status.json")] == record

    with monkeypatch.context() as patched:
        patched.setattr(StatusLines, "on_train_epoch_start", start_another)
        assert train(tmp_path, num_epochs=1)[0] == 0
    assert second == [2]
    assert f"another run is writing to {tmp_path}" in capfd.readouterr().err
    assert train(tmp_path, num_epochs=1, resume_training_checkpoint_path="auto")[0] == 0


FIRST, SECOND = "model_epoch_000_step_00002.pth", "model_epoch_000_step_00004.pth"
SHORT = {"num_epochs": 2, "validation_interval": 2, "checkpoint_interval": 2}


@pytest.fixture(params=["truncated", pytest.param("one bit", marks=pytest.mark.slow)])
def damaged(request, every_two_steps, tmp_path):
    """A folder with a whole checkpoint and a later one, the latest, that is damaged."""
    for name in (FIRST, SECOND):
        for copied in (name, f"{name}.json"):
            shutil.copy(every_two_steps / copied, tmp_path / copied)
    (tmp_path / "dn_model_latest.pth").symlink_to(SECOND)
    content = bytearray((tmp_path / SECOND).read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / SECOND).write_bytes(content[: len(content) // 2] if request.param == "truncated" else content)
    return tmp_path


def test_a_damaged_checkpoint_is_never_taken_by_its_name(damaged, train, status_lines):
    latest = str(damaged / "dn_model_latest.pth")
    with pytest.raises(ModelError, match="damaged"):
        load_model(latest)
    assert train(damaged, batch_size=1, **SHORT, resume_training_checkpoint_path=latest)[0] == 2
    assert "damaged" in status_lines(damaged)[-1]["message"]


def test_auto_falls_back_to_the_checkpoint_before_a_damaged_one(damaged, every_two_steps, train, caplog):
    """Loudly, and it comes where the undisturbed run came."""
    assert train(damaged, batch_size=1, **SHORT | {"num_epochs": 1}, resume_training_checkpoint_path="auto")[0] == 0
    errors = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    errors = [message for message in errors if "trying the checkpoint before it" in message]
    assert len(errors) == 1 and SECOND in errors[0]
    assert_same(load(damaged / "dn_model_latest.pth"), load(every_two_steps / SECOND))


def test_auto_ends_where_every_checkpoint_is_damaged(train, tmp_path, status_lines):
    for name in (FIRST, SECOND):
        (tmp_path / name).write_bytes(b"PK\x03\x04")
    assert train(tmp_path, batch_size=1, **SHORT, resume_training_checkpoint_path="auto")[0] == 2
    assert "all checkpoints (2) are damaged" in status_lines(tmp_path)[-1]["message"]
