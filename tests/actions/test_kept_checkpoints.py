"""Which checkpoints a training writes, keeps and names."""

from __future__ import annotations

import os
import resource
import signal

import pytest
from training_runs import MODEL, checkpoints, load

from stereo_core.automl.trials import StatusReader
from stereo_core.errors import SpecError
from stereo_core.models.files import read_sidecar
from stereo_core.report.curves import read_curves
from stereo_core.spec import spec_from_dict
from stereo_core.training.callbacks import StatusLines
from stereo_core.training.checkpoints import AtomicCheckpointIO


@pytest.fixture(scope="module")
def every_three_steps(train, tmp_path_factory):
    """(folder, paths of each epoch's images in their order) of a run of two epochs of four steps. A kill in an earlier
    write has left a part of a file there."""
    folder, order = tmp_path_factory.mktemp("three"), {0: [], 1: []}
    (folder / ".model_epoch_000_step_00003.abc.pth").touch()
    look = lambda self, trainer, module, batch, index: order[trainer.current_epoch].extend(batch["path"])  # noqa: E731
    keys = {"checkpoint_interval": 3, "checkpoint_interval_unit": "step", "num_epochs": 2, "validation_interval": 2}
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(StatusLines, "on_train_batch_start", look, raising=False)
        assert train(folder, batch_size=1, **keys)[0] == 0
    return folder, order


def test_a_checkpoint_every_three_steps_and_at_the_end(every_three_steps):
    assert checkpoints(every_three_steps[0]) == [
        "model_epoch_000_step_00003.pth",
        "model_epoch_001_step_00006.pth",
        "model_epoch_001_step_00008.pth",
    ]


def test_each_epoch_has_an_order_of_its_own(every_three_steps):
    first, second = every_three_steps[1].values()
    assert len(set(first)) == 4 and sorted(first) == sorted(second) and first != second


def test_what_a_kill_in_a_write_has_left_is_swept_up(every_three_steps):
    assert not list(every_three_steps[0].glob(".model_epoch_*"))


@pytest.mark.slow
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
    assert last["status"] == "FAILURE" and "cannot write the" in last["message"] and "are intact" in last["message"]
    assert checkpoints(tmp_path) == [first.name] and first.read_bytes() == before
    assert os.readlink(tmp_path / "dn_model_latest.pth") == first.name
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


@pytest.mark.slow
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


def test_a_missing_choice_is_never_replaced(finished, tmp_path):
    """TAO's item 24: best or an epoch that is not there falls back to the latest."""
    wanted = finished[0] / "model_epoch_007_step_00016.pth"
    evaluate = {"checkpoint": str(wanted), "results_dir": str(tmp_path)}
    with pytest.raises(SpecError) as error:
        spec_from_dict("evaluate", {"model": MODEL, "evaluate": evaluate})
    names = ", ".join(checkpoints(finished[0]))
    assert f"evaluate.checkpoint: no such file: {wanted}; the folder holds {names}" in str(error.value)
