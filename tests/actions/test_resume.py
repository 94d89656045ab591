"""Runs that are stopped, killed or broken, and how they go on: checkpoints, signals, refusals."""

from __future__ import annotations

import math
import multiprocessing
import os
import resource
import shutil
import signal
import threading
import time

import numpy as np
import pytest
import torch
import training_runs
from training_runs import MODEL, assert_same, checkpoints, load

from stereo_core.automl.trials import StatusReader
from stereo_core.errors import ModelError, SpecError
from stereo_core.files import sha256_of
from stereo_core.models import files, load_model
from stereo_core.models.checkpoints import to_tao
from stereo_core.models.files import read_sidecar
from stereo_core.report.curves import read_curves
from stereo_core.spec import spec_from_dict
from stereo_core.training.callbacks import StatusLines
from stereo_core.training.checkpoints import AtomicCheckpointIO


def test_resume_goes_on(finished, train, tmp_path):
    folder, _ = finished
    first = str(folder / "model_epoch_001_step_00004.pth")
    code, outcome = train(tmp_path, num_epochs=4, resume_training_checkpoint_path=first)
    assert code == 0
    assert checkpoints(tmp_path) == ["model_epoch_002_step_00006.pth", "model_epoch_003_step_00008.pth"]
    saved = load(tmp_path / "dn_model_latest.pth")
    assert (saved["epoch"], saved["global_step"]) == (3, 8)
    assert saved["optimizer_states"][0]["state"][0]["step"] == 8
    assert outcome.kpi["initial_epe"] == finished[1].kpi["initial_epe"] != outcome.kpi["epe"]


def test_resume_equals_an_undisturbed_run(train, tmp_path):
    """At an epoch's end: same samples, same crops, same rates, so the same weights."""
    rates = {"lr_steps": [3], "lr_decay": 0.1}
    keys = {"num_epochs": 2, "optim": rates, "backbone_lr_factor": 0.5}
    assert train(tmp_path / "whole", **keys)[0] == 0
    first = str(tmp_path / "whole" / "model_epoch_000_step_00002.pth")
    assert train(tmp_path / "part", **keys, resume_training_checkpoint_path=first)[0] == 0
    whole, part = (load(tmp_path / name / "model_epoch_001_step_00004.pth") for name in ("whole", "part"))
    assert whole["lr_schedulers"][0]["_last_lr"] == part["lr_schedulers"][0]["_last_lr"]
    assert whole["lr_schedulers"][0]["_last_lr"] == pytest.approx([1e-4, 0.5e-4])
    assert_same(part, whole)


@pytest.mark.parametrize("start", ["model_epoch_000_step_00002.pth", "model_epoch_000_step_00004.pth"])
def test_resume_from_a_step_checkpoint(every_two_steps, train, tmp_path, status_lines, recwarn, start):
    """Within an epoch and at its end: no sample twice, none left out, so the same weights to the last bit."""
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
    said = [record.message for record in caplog.records if "the new value holds" in record.message]
    assert said[0] == "lr of the network is 0.0002 and was 0.001: the new value holds from here" and len(said) == 6


def test_another_optimizer_does_not_go_on(finished, train, tmp_path, status_lines):
    first = str(finished[0] / "model_epoch_000_step_00002.pth")
    code, _ = train(tmp_path, num_epochs=2, optim={"optimizer": "SGD"}, resume_training_checkpoint_path=first)
    assert code == 2 and "was trained by AdamW" in status_lines(tmp_path)[-1]["message"]


@pytest.mark.parametrize(("size", "keys", "words"), [
    (2, {}, "batch_size 1, now 2"), (1, {"accumulate": 2}, "accumulate 1, now 2"),
])  # fmt: skip
def test_an_epoch_is_not_cut_anew_in_its_middle(every_two_steps, train, tmp_path, status_lines, size, keys, words):
    within, at_end = (str(every_two_steps / f"model_epoch_000_step_{step:05d}.pth") for step in (2, 4))
    resumed = {"num_epochs": 2, **keys, "resume_training_checkpoint_path": within}
    assert train(tmp_path / "a", batch_size=size, **resumed)[0] == 2
    assert words in status_lines(tmp_path / "a")[-1]["message"]
    resumed["resume_training_checkpoint_path"] = at_end
    assert train(tmp_path / "b", batch_size=size, **resumed)[0] == 0


def test_a_run_that_is_gone_on_with_elsewhere_stays_as_it_is(every_two_steps, train, tmp_path):
    """The validation that its checkpoint has not had is written beside none of its files."""
    before = {path.name: path.read_bytes() for path in every_two_steps.glob("*.json")}
    first = every_two_steps / "model_epoch_000_step_00004.pth"
    assert "metrics" not in read_sidecar(first)
    keys = {"num_epochs": 1, "resume_training_checkpoint_path": str(first)}
    assert train(tmp_path, batch_size=1, **keys)[0] == 2  # all its epochs are done
    assert train(tmp_path, batch_size=1, **keys | {"num_epochs": 2})[0] == 0
    assert {path.name: path.read_bytes() for path in every_two_steps.glob("*.json")} == before


def test_a_run_with_more_epochs_than_are_wanted_does_not_go_on(finished, train, tmp_path, capfd):
    """`auto` takes a finished run as finished, and one that is past the end as a mistake."""
    shutil.copytree(finished[0], tmp_path, dirs_exist_ok=True, symlinks=True)
    code, _ = train(tmp_path, num_epochs=1, resume_training_checkpoint_path="auto")
    assert code == 2
    assert "train.num_epochs: 1, but the checkpoint to resume has 2 already" in capfd.readouterr().err


def test_step_interval(train, tmp_path, monkeypatch):
    """On the way: each epoch has an order of its own, and what a kill in a write has left is swept up."""
    order = {0: [], 1: []}
    look = lambda self, trainer, module, batch, index: order[trainer.current_epoch].extend(batch["path"])  # noqa: E731
    monkeypatch.setattr(StatusLines, "on_train_batch_start", look, raising=False)
    (tmp_path / ".model_epoch_000_step_00003.abc.pth").touch()
    keys = {"checkpoint_interval": 3, "checkpoint_interval_unit": "step", "num_epochs": 2, "validation_interval": 2}
    assert train(tmp_path, batch_size=1, **keys)[0] == 0
    assert checkpoints(tmp_path) == [
        "model_epoch_000_step_00003.pth",
        "model_epoch_001_step_00006.pth",
        "model_epoch_001_step_00008.pth",  # the end always counts
    ]
    assert len(set(order[0])) == 4 and sorted(order[0]) == sorted(order[1]) and order[0] != order[1]
    assert not list(tmp_path.glob(".model_epoch_*"))


def test_steps_of_several_batches_are_saved_once_each(train, tmp_path, monkeypatch):
    """Two batches a step: the step count stands still for a batch."""
    written = []
    write = AtomicCheckpointIO.save_checkpoint

    def count(self, checkpoint, path, **rest):
        written.append(path.name)
        write(self, checkpoint, path, **rest)

    monkeypatch.setattr(AtomicCheckpointIO, "save_checkpoint", count)
    keys = {"checkpoint_interval": 1, "checkpoint_interval_unit": "step", "accumulate": 2, "num_epochs": 2}
    keys["keep_checkpoints"] = 0
    assert train(tmp_path, batch_size=1, **keys)[0] == 0
    assert written == [f"model_epoch_{(step - 1) // 2:03d}_step_{step:05d}.pth" for step in (1, 2, 3, 4)]
    batches = load(tmp_path / written[0])["loops"]["fit_loop"]["epoch_loop.batch_progress"]["current"]["ready"]
    assert batches == 2
    written.clear()
    resume = str(tmp_path / "model_epoch_001_step_00003.pth")
    assert train(tmp_path, batch_size=1, resume_training_checkpoint_path=resume, **keys)[0] == 0
    assert written == ["model_epoch_001_step_00004.pth"]


@pytest.mark.slow
@pytest.mark.parametrize("hook", ["on_train_batch_end", "on_validation_batch_start"])
def test_whatever_ends_a_run_its_last_step_is_there(finished, train, tmp_path, monkeypatch, hook):
    """A tracker that can not be reached, say, right after a step, or a validation that fails after the epoch's last."""
    keys = {"num_epochs": 2, "checkpoint_interval": 2}

    def fail(self, trainer, *_):
        if trainer.global_step == 2:
            raise ConnectionError("the tracker is gone")

    with monkeypatch.context() as patched:
        patched.setattr(StatusLines, hook, fail, raising=False)
        assert train(tmp_path, **keys)[0] == 1
    assert checkpoints(tmp_path) == ["model_epoch_000_step_00002.pth"]
    assert train(tmp_path, **keys, resume_training_checkpoint_path="auto")[0] == 0
    assert_same(*(load(folder / "dn_model_latest.pth") for folder in (tmp_path, finished[0])))


def test_what_can_not_be_resumed(finished, train, tiny_checkpoint, tmp_path, status_lines):
    assert train(tmp_path, resume_training_checkpoint_path=str(tiny_checkpoint))[0] == 2
    assert "no state of a training run" in status_lines(tmp_path)[-1]["message"]
    latest = str(finished[0] / "dn_model_latest.pth")
    assert train(tmp_path, num_epochs=2, resume_training_checkpoint_path=latest)[0] == 2
    assert "the checkpoint to resume has 2 already" in status_lines(tmp_path)[-1]["message"]


def test_a_step_checkpoint_at_the_end_of_the_run_can_not_be_resumed(every_two_steps, train, tmp_path, status_lines):
    latest = str(every_two_steps / "model_epoch_001_step_00008.pth")
    assert train(tmp_path, batch_size=1, num_epochs=2, resume_training_checkpoint_path=latest)[0] == 2
    assert "the checkpoint to resume has 2 already" in status_lines(tmp_path)[-1]["message"]


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


def test_plain_numbers_in_a_checkpoint_do_not_hinder_resuming(finished, train, tmp_path):
    content = load(finished[0] / "model_epoch_000_step_00002.pth") | {"best": np.float64(1.5)}
    torch.save(content, tmp_path / "best.pth")
    keys = {"num_epochs": 2, "resume_training_checkpoint_path": str(tmp_path / "best.pth")}
    assert train(tmp_path / "run", **keys)[0] == 0


def test_full_disk_keeps_the_previous_checkpoint(train, tmp_path, status_lines):
    """A file-size limit stands for the full disk: the write fails in the middle of the file."""
    assert train(tmp_path, num_epochs=1)[0] == 0
    first = tmp_path / "model_epoch_000_step_00002.pth"
    before = first.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) // 2, hard))
    try:
        code, _ = train(tmp_path, num_epochs=2, resume_training_checkpoint_path=str(first))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert code == 1
    last = status_lines(tmp_path)[-1]
    assert last["status"] == "FAILURE" and "could not be written" in last["message"] and "are intact" in last["message"]
    assert checkpoints(tmp_path) == [first.name] and first.read_bytes() == before
    assert os.readlink(tmp_path / "dn_model_latest.pth") == first.name
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_finishes_the_step_and_leaves_a_checkpoint(train, tmp_path, status_lines, number, code):
    sent = []

    def stop_once_it_runs():
        while "Train metrics" not in (tmp_path / "status.json").read_text():
            time.sleep(0.05)
        sent.append(time.monotonic())
        os.kill(os.getpid(), number)

    (tmp_path / "status.json").touch()
    killer = threading.Thread(target=stop_once_it_runs, daemon=True)
    killer.start()
    before = signal.getsignal(number)
    assert train(tmp_path, num_epochs=1000, checkpoint_interval=1000, validation_interval=1000)[0] == code
    assert time.monotonic() - sent[0] < 30  # what Kubernetes gives a pod
    assert signal.getsignal(number) == before
    last = status_lines(tmp_path)[-1]
    assert last["status"] == "FAILURE" and "resume_training_checkpoint_path=auto goes on from it" in last["message"]
    (name,) = checkpoints(tmp_path)
    saved = load(tmp_path / "dn_model_latest.pth")
    assert saved["global_step"] >= 2 and name.endswith(f"step_{saved['global_step']:05d}.pth")


@pytest.mark.parametrize(
    ("hook", "step"), [("on_train_batch_end", 2), ("on_validation_batch_start", 4), ("on_train_epoch_end", 4)]
)
def test_resume_after_sigterm(train, tmp_path, monkeypatch, hook, step):
    """SIGTERM within the first epoch's four steps, in the validation after them, or at the epoch's end."""
    keys = {"num_epochs": 3, "checkpoint_interval": 3, "keep_checkpoints": 0}
    with monkeypatch.context() as patched:

        def stop(self, trainer, *_):
            if trainer.global_step == step:
                os.kill(os.getpid(), signal.SIGTERM)

        patched.setattr(StatusLines, hook, stop, raising=False)
        assert train(tmp_path, batch_size=1, **keys)[0] == 143
    (name,) = checkpoints(tmp_path)
    assert name == f"model_epoch_000_step_{step:05d}.pth"
    latest = str(tmp_path / "dn_model_latest.pth")
    assert train(tmp_path, batch_size=1, resume_training_checkpoint_path=latest, **keys)[0] == 0
    assert {name, "model_epoch_002_step_00012.pth"} <= set(checkpoints(tmp_path))
    saved = load(tmp_path / "dn_model_latest.pth")
    assert (saved["epoch"], saved["global_step"]) == (2, 12)
    assert saved["optimizer_states"][0]["state"][0]["step"] == 12


def test_auto_goes_on_only_where_there_is_something(finished, train, tmp_path, status_lines, monkeypatch, capfd):
    """TAO's item 27: there a run resumes because a file lies there. Here it is asked to, says so, and may be over. The
    file, which may have gigabytes, is checked once."""
    keys = {"num_epochs": 2, "resume_training_checkpoint_path": "auto"}
    assert train(tmp_path, num_epochs=1)[0] == 0
    before = {path.name: path.read_bytes() for path in tmp_path.glob("*.pth*")}
    record = [(tmp_path / name).read_bytes() for name in ("experiment.yaml", "status.json")]
    elsewhere = str(finished[0] / "model_epoch_000_step_00002.pth")
    for other in ({}, {"is_dry_run": True}, {"resume_training_checkpoint_path": elsewhere}):  # not asked to go on
        assert train(tmp_path, num_epochs=2, **other)[0] == 2
        said = capfd.readouterr().err
        assert f"{tmp_path} holds checkpoints of another training" in said and "_path=auto goes on with that" in said
        assert [(tmp_path / name).read_bytes() for name in ("experiment.yaml", "status.json")] == record
    assert {path.name: path.read_bytes() for path in tmp_path.glob("*.pth*")} == before
    checked = []
    monkeypatch.setattr(files, "sha256_of", lambda path: checked.append(path.name) or sha256_of(path))
    code, outcome = train(tmp_path, **keys)
    assert checked == ["model_epoch_000_step_00002.pth"]
    assert code == 0 and outcome.kpi["initial_epe"] != outcome.kpi["epe"]
    messages = [line["message"] for line in status_lines(tmp_path)]
    said = f"Resuming training from checkpoint: {tmp_path / 'model_epoch_000_step_00002.pth'} "
    assert [message for message in messages if message.startswith(said)]
    before = (tmp_path / "dn_model_latest.pth").read_bytes()
    code, outcome = train(tmp_path, **keys)
    assert code == 0 and "2 epochs, 4 steps" in outcome.message
    assert (tmp_path / "dn_model_latest.pth").read_bytes() == before
    code, _ = train(tmp_path / "new", num_epochs=1, resume_training_checkpoint_path="auto")
    assert code == 0
    assert f"No checkpoint in {tmp_path / 'new'}: a new run." in [x["message"] for x in status_lines(tmp_path / "new")]


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
    assert f"another training is running in {tmp_path}" in capfd.readouterr().err
    assert train(tmp_path, num_epochs=2, resume_training_checkpoint_path="auto")[0] == 0


@pytest.mark.parametrize("damage", ["truncated", "one bit"])
def test_a_damaged_checkpoint_is_never_taken(every_two_steps, train, tmp_path, caplog, status_lines, damage):
    """auto falls back to the one before it, loudly, and ends where the undisturbed run did; naming it is an error."""
    names = ["model_epoch_000_step_00002.pth", "model_epoch_000_step_00004.pth"]
    for name in names:
        for copied in (name, f"{name}.json"):
            shutil.copy(every_two_steps / copied, tmp_path / copied)
    (tmp_path / "dn_model_latest.pth").symlink_to(names[1])
    content = bytearray((tmp_path / names[1]).read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / names[1]).write_bytes(content[: len(content) // 2] if damage == "truncated" else content)
    keys = {"num_epochs": 2, "validation_interval": 2, "checkpoint_interval": 2}
    with pytest.raises(ModelError, match="damaged"):
        load_model(tmp_path / "dn_model_latest.pth")
    named = str(tmp_path / "dn_model_latest.pth")
    assert train(tmp_path, batch_size=1, **keys, resume_training_checkpoint_path=named)[0] == 2
    assert "damaged" in status_lines(tmp_path)[-1]["message"]
    assert train(tmp_path, batch_size=1, **keys, resume_training_checkpoint_path="auto")[0] == 0
    errors = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    errors = [message for message in errors if "before it is tried" in message]
    assert len(errors) == 1 and names[1] in errors[0]
    assert_same(load(tmp_path / "dn_model_latest.pth"), load(every_two_steps / "dn_model_latest.pth"))
    for name in names:
        (tmp_path / name).write_bytes(b"PK\x03\x04")
    (tmp_path / "dn_model_latest.pth").unlink()
    for path in tmp_path.glob("model_epoch_001*"):
        path.unlink()
    assert train(tmp_path, batch_size=1, **keys, resume_training_checkpoint_path="auto")[0] == 2
    assert "none of its 2 checkpoints is whole" in status_lines(tmp_path)[-1]["message"]


@pytest.mark.parametrize("stopped_after", [None, 2, 5])
def test_the_newest_and_the_best_are_kept(train, tmp_path, status_lines, monkeypatch, stopped_after):
    """Five epochs, a rate that first teaches and then spoils: the best stays although it is old. The same where the run
    was stopped in an epoch's validation and went on; each validation stands at its own step."""
    keys = {"num_epochs": 5, "keep_checkpoints": 2, "optim": {"lr": 3e-3, "warmup_steps": 0}, "monitor": "val/rmse"}
    if stopped_after:
        with monkeypatch.context() as patched:

            def stop(self, trainer, *_):
                if trainer.state.fn == "fit" and trainer.current_epoch + 1 == stopped_after:
                    os.kill(os.getpid(), signal.SIGTERM)

            patched.setattr(StatusLines, "on_validation_batch_start", stop, raising=False)
            assert train(tmp_path, **keys)[0] == 143
    code, outcome = train(tmp_path, resume_training_checkpoint_path="auto", **keys)
    assert code == 0
    values = [x["kpi"]["val/rmse"] for x in status_lines(tmp_path) if x["message"].startswith("Eval metrics generated")]
    values = values[1:]  # before training
    assert len(values) == 5
    lines = [x for x in status_lines(tmp_path) if x["message"] == "Training loop in progress"]
    assert [(x["epoch"], x["step"], x["max_epoch"]) for x in lines] == [(n, 2 * n + 2, 4) for n in range(5)]
    assert list(read_curves(tmp_path)["val/rmse"]) == [0, 2, 4, 6, 8, 10]
    reader = StatusReader(tmp_path / "status.json", "val/rmse")
    assert list(reader.validations()) == list(enumerate(values, start=1))
    best = f"model_epoch_{values.index(min(values)):03d}_step_{2 * values.index(min(values)) + 2:05d}.pth"
    newest = ["model_epoch_003_step_00008.pth", "model_epoch_004_step_00010.pth"]
    assert os.readlink(tmp_path / "dn_model_best.pth") == best
    assert checkpoints(tmp_path) == sorted({best, *newest})
    assert {path.name for path in tmp_path.glob("*.pth.json")} == {f"{name}.json" for name in checkpoints(tmp_path)}
    assert outcome.artifacts["checkpoint"] == tmp_path / best and best in outcome.message
    assert read_sidecar(tmp_path / best)["metrics"]["val/rmse"] == pytest.approx(min(values), rel=1e-6)
    assert outcome.kpi["rmse"] == pytest.approx(min(values), rel=1e-6) != values[-1], "of the checkpoint handed on"


def test_the_best_is_kept_between_two_checkpoints(train, tmp_path, status_lines):
    """One checkpoint in three epochs, but each is validated: a better one is written at once."""
    keys = {"num_epochs": 3, "checkpoint_interval": 3, "optim": {"lr": 3e-3, "warmup_steps": 0}}
    assert train(tmp_path, **keys)[0] == 0
    values = [x["kpi"]["epe"] for x in status_lines(tmp_path) if x["message"].startswith("Eval metrics generated")][1:]
    epoch = values.index(min(values))
    assert os.readlink(tmp_path / "dn_model_best.pth").startswith(f"model_epoch_{epoch:03d}")


def test_sigterm_within_a_step_of_several_batches(train, tmp_path, monkeypatch):
    """The step is finished, not cut: half of its gradients would be lost."""
    keys = {"num_epochs": 1, "accumulate": 2, "ema_decay": 0.5}
    assert train(tmp_path / "whole", batch_size=1, **keys)[0] == 0
    with monkeypatch.context() as patched:

        def stop(self, trainer, module, outputs, batch, batch_index):
            if batch_index == 0:
                os.kill(os.getpid(), signal.SIGTERM)

        patched.setattr(StatusLines, "on_train_batch_end", stop, raising=False)
        assert train(tmp_path / "run", batch_size=1, **keys)[0] == 143
    assert checkpoints(tmp_path / "run") == ["model_epoch_000_step_00001.pth"]
    assert train(tmp_path / "run", batch_size=1, **keys, resume_training_checkpoint_path="auto")[0] == 0
    assert_same(*(load(tmp_path / name / "dn_model_latest.pth") for name in ("run", "whole")))


def test_sigterm_to_all_processes_at_once(scenes, split, tmp_path, monkeypatch):
    """As timeout(1) and Slurm send it: loader processes go on until the step, here of three batches, is at its end."""

    def stop_all(self, trainer, *_):
        if not self.stopped:
            for child in multiprocessing.active_children():
                os.kill(child.pid, signal.SIGTERM)
            time.sleep(0.3)
            os.kill(os.getpid(), signal.SIGTERM)
            self.stopped = True

    monkeypatch.setattr(StatusLines, "stopped", False, raising=False)
    monkeypatch.setattr(StatusLines, "on_train_batch_start", stop_all, raising=False)
    dataset = {"max_disparity": 64, "train_dataset": split(scenes / "list.txt", 1) | {"workers": 1}}
    dataset["train_dataset"]["augmentation"] = {"crop_size": [32, 64]}
    keys = {"results_dir": str(tmp_path), "num_epochs": 20, "accumulate": 3}
    assert training_runs.start(dataset, keys) == 143
    assert checkpoints(tmp_path) == ["model_epoch_000_step_00001.pth"]


@pytest.mark.slow
def test_a_run_stopped_in_every_step_is_the_run_that_never_stopped(train, tmp_path, monkeypatch):
    """A resumed run is resumed again and again; two batches a step, a validation after every second epoch, averages."""
    keys = {"num_epochs": 3, "accumulate": 2, "ema_decay": 0.7, "validation_interval": 2, "keep_checkpoints": 0}
    keys |= {"checkpoint_interval": 1, "checkpoint_interval_unit": "step"}
    assert train(tmp_path / "whole", batch_size=1, **keys)[0] == 0
    with monkeypatch.context() as patched:
        patched.setattr(
            StatusLines, "on_train_batch_start", lambda *_: os.kill(os.getpid(), signal.SIGTERM), raising=False
        )
        for _ in range(6):
            assert train(tmp_path / "run", batch_size=1, **keys, resume_training_checkpoint_path="auto")[0] == 143
    code, outcome = train(tmp_path / "run", batch_size=1, **keys, resume_training_checkpoint_path="auto")
    assert code == 0 and "3 epochs, 6 steps" in outcome.message
    assert checkpoints(tmp_path / "run") == checkpoints(tmp_path / "whole")
    for name in checkpoints(tmp_path / "whole"):
        assert_same(load(tmp_path / "run" / name), load(tmp_path / "whole" / name))
    assert os.readlink(tmp_path / "run" / "dn_model_best.pth") == os.readlink(tmp_path / "whole" / "dn_model_best.pth")


def test_a_missing_choice_is_never_replaced(finished, tmp_path):
    """TAO's item 24: best or an epoch that is not there falls back to the latest."""
    wanted = finished[0] / "model_epoch_007_step_00016.pth"
    evaluate = {"checkpoint": str(wanted), "results_dir": str(tmp_path)}
    with pytest.raises(SpecError) as error:
        spec_from_dict("evaluate", {"model": MODEL, "evaluate": evaluate})
    names = ", ".join(checkpoints(finished[0]))
    assert f"evaluate.checkpoint: no such file: {wanted}; the folder holds {names}" in str(error.value)
