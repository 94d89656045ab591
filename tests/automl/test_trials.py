"""What a trial is given, and how it is read."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from stereo_core.automl.search import Search, alone, slots
from stereo_core.automl.study import SearchStudy
from stereo_core.automl.trials import Slot, StatusReader, TrialProcess, best_of, train_tree, trial_folder, trial_tree
from stereo_core.errors import ModelError, SpecError
from stereo_core.run.status import StatusLog
from stereo_core.spec import spec_from_dict
from stereo_core.spec.automl import AutoML
from stereo_core.spec.search_space import Dimension


@pytest.fixture
def spec(tmp_path):
    for name in ("train.txt", "val.txt"):
        (tmp_path / name).touch()
    sources = {name: {"data_sources": [{"data_file": str(tmp_path / f"{name}.txt")}]} for name in ("train", "val")}
    tree = {
        "results_dir": str(tmp_path),
        "encryption_key": "hidden",
        "dataset": {f"{name}_dataset": source for name, source in sources.items()},
        "train": {"num_epochs": 100, "checkpoint_interval": 50, "gpu_ids": [2, 3], "optim": {"lr": 1e-3}},
        "automl": {"automl_max_epochs": 9},
    }
    return spec_from_dict("automl", tree)


def test_a_trial_trains_the_search_s_epochs_in_its_own_folder_and_goes_on_from_its_own_checkpoint(spec, tmp_path):
    tree = trial_tree(spec, tmp_path, 7, {"train.optim.weight_decay": 2e-5, "model.corr_radius": 5})
    train = spec_from_dict("train", tree).train  # it is accepted
    assert train.results_dir == str(tmp_path / "trials" / "007")
    assert (train.num_epochs, train.checkpoint_interval, train.gpu_ids) == (9, 9, [0])
    assert train.resume_training_checkpoint_path == "auto"
    assert (train.optim.lr, train.optim.weight_decay) == (1e-3, 2e-5)
    assert tree["model"] == {"corr_radius": 5}
    assert "hidden" not in json.dumps(tree)


def test_the_best_spec_keeps_the_user_s_own_epochs(spec):
    tree = train_tree(spec, {"train.optim.lr": 5e-3})
    assert spec_from_dict("train", tree).train.num_epochs == 100
    assert tree["train"]["optim"] == {"lr": 5e-3} and "automl" not in tree
    assert spec.train.optim.lr == 1e-3


def test_a_gpu_for_each_trial_or_a_share_of_the_threads():
    names = [slot.gpu for slot in slots(AutoML(), (0, 2), {"CUDA_VISIBLE_DEVICES": "GPU-a,GPU-b,GPU-c"})]
    assert names == ["GPU-a", "GPU-c"], "ids count among the visible ones"
    assert [slot.gpu for slot in slots(AutoML(automl_max_concurrent=3), range(8), {})] == ["0", "1", "2"]
    assert slots(AutoML(automl_max_concurrent=2), (), {"OMP_NUM_THREADS": "8"}) == [Slot(None, 4)] * 2
    assert slots(AutoML(automl_max_concurrent=4), (), {"OMP_NUM_THREADS": "1"}) == [Slot(None, 1)] * 4
    assert slots(AutoML(automl_max_concurrent=2), (), {"OMP_NUM_THREADS": "8,2"}) == [Slot(None, 4)] * 2, "nested"
    assert len(slots(AutoML(automl_max_concurrent=2), (), {"OMP_NUM_THREADS": "all"})) == 2, "OpenMP ignores it too"


def test_a_trial_does_not_take_itself_for_one_of_several_nodes(monkeypatch):
    for name in ("WORLD_SIZE", "PET_NNODES", "MASTER_ADDR"):
        monkeypatch.setenv(name, "1")
    given = Slot("GPU-b", None).environment()
    assert given["CUDA_VISIBLE_DEVICES"] == "GPU-b" and given["PATH"] == os.environ["PATH"]
    assert not {"WORLD_SIZE", "PET_NNODES", "MASTER_ADDR"} & set(given)


def test_validations_are_read_as_they_are_written(tmp_path):
    status = StatusLog(tmp_path)
    reader = StatusReader(tmp_path / "status.json", "val/epe")

    def validated(epoch: int, epe: float) -> None:
        status.running("Eval metrics generated.", kpi={"epe": epe})
        status.running("Training loop in progress", epoch=epoch)

    status.running("Eval metrics generated before training.", kpi={"epe": 90.0})
    status.running("Training loop in progress", epoch=0)  # no validation after this epoch
    validated(1, 5.0)
    assert list(reader.validations()) == [(2, 5.0)]
    validated(2, float("nan"))
    validated(3, 4.0)
    line = (tmp_path / "status.json").read_bytes()
    (tmp_path / "status.json").write_bytes(line + b'{"status": "RUNN')
    assert list(reader.validations()) == [(4, 4.0)], "half a line waits for its end"
    (tmp_path / "status.json").write_bytes(line)
    status.failure("Parameter validation error: bad")
    assert list(reader.validations()) == [] and reader.failure == "Parameter validation error: bad"
    again = StatusReader(tmp_path / "status.json", "val/epe")
    assert list(again.validations()) == [(2, 5.0), (4, 4.0)]
    assert again.failure == "", "it was another process's"


def test_a_trial_without_a_finite_value_has_no_best(tmp_path):
    (tmp_path / "model.pth").write_bytes(b"x")
    (tmp_path / "dn_model_best.pth").symlink_to("model.pth")
    for metrics in ({"val/epe": None}, {}):
        note = {"kind": "checkpoint", "metrics": metrics}
        (tmp_path / "model.pth.json").write_text(json.dumps(note))
        with pytest.raises(ModelError, match="no checkpoint with a finite val/epe"):
            best_of(tmp_path, "val/epe")
    (tmp_path / "model.pth.json").write_text(json.dumps({"kind": "checkpoint", "metrics": {"val/epe": 2.5}}))
    assert best_of(tmp_path, "val/epe") == (tmp_path / "model.pth", {"val/epe": 2.5})


def test_the_best_of_a_trial_on_a_file_system_without_links_is_a_copy(tmp_path):
    """What its validation said stands beside the checkpoint, not beside the copy."""
    checkpoint = tmp_path / "model_epoch_000_step_00004.pth"
    checkpoint.write_bytes(b"x")
    shutil.copyfile(checkpoint, tmp_path / "dn_model_best.pth")
    (tmp_path / f"{checkpoint.name}.json").write_text(json.dumps({"kind": "checkpoint", "metrics": {"val/epe": 2.5}}))
    assert best_of(tmp_path, "val/epe") == (checkpoint, {"val/epe": 2.5})


def test_a_perfect_trial_is_no_failed_one(tmp_path):
    (tmp_path / "model.pth").write_bytes(b"x")
    (tmp_path / "dn_model_best.pth").symlink_to("model.pth")
    (tmp_path / "model.pth.json").write_text(json.dumps({"kind": "checkpoint", "metrics": {"val/bp3": 0.0}}))
    assert best_of(tmp_path, "val/bp3") == (tmp_path / "model.pth", {"val/bp3": 0.0})


def test_a_search_shares_out_the_cores_that_it_may_use(monkeypatch):
    """A container's, not the machine's."""
    monkeypatch.setattr("os.cpu_count", lambda: 64)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(6)), raising=False)
    assert slots(AutoML(automl_max_concurrent=2), (), {}) == [Slot(None, 3)] * 2


def test_a_search_waits_for_the_trials_of_the_one_before(tmp_path, monkeypatch):
    """A trial inherits the lock: it outlives the search that was killed."""
    monkeypatch.setattr("stereo_core.automl.search.POLL_SECONDS", 0.01)
    with alone(tmp_path) as lock:
        child = subprocess.Popen(["cat"], stdin=subprocess.PIPE, pass_fds=(lock,))  # until its input ends
    monkeypatch.setattr("stereo_core.automl.search.LOCK_SECONDS", 0.05)
    with pytest.raises(SpecError, match="another search, or one of its trials, is running"), alone(tmp_path):
        pass
    monkeypatch.setattr("stereo_core.automl.search.LOCK_SECONDS", 30)
    child.communicate()
    with alone(tmp_path):
        pass


DEAF = Path(__file__).parent / "deaf.py"


@pytest.mark.timeout(60)
def test_a_poor_trial_that_does_not_heed_its_end_is_killed_and_frees_its_slot(tmp_path, monkeypatch):
    monkeypatch.setattr("stereo_core.automl.search.GRACE_SECONDS", 0.3)
    monkeypatch.setattr("stereo_core.automl.search.POLL_SECONDS", 0.05)
    spec = SimpleNamespace(automl=AutoML(algorithm="asha", automl_max_recommendations=4))
    space = [Dimension("train.optim.lr", 1e-6, 1e-2, True, False, (), 1e-4)]
    study = SearchStudy(tmp_path, spec.automl, space, {})
    for number in range(4):
        study.values(study.ask())
        if number < 3:
            study.report(number, 1, float(number))
            study.complete(number, float(number))
    folder, slot = trial_folder(tmp_path, 3), Slot(None, 1)
    folder.mkdir(parents=True)
    status = StatusLog(folder)
    status.running("Eval metrics generated.", kpi={"epe": 9.0})
    status.running("Training loop in progress", epoch=0)
    said: list[str] = []
    with alone(tmp_path) as lock:
        search = Search(spec, study, tmp_path, [], lock, said.append)
        search.interrupted.clear()  # the fourth trial is under way
        trial = TrialProcess(3, folder, "val/epe", slot, lock)
        trial._status = StatusReader(folder / "status.json", "val/epe")
        trial.process = subprocess.Popen([sys.executable, DEAF], stdout=subprocess.PIPE)
        try:
            trial.process.stdout.readline()
            search.running.append(trial)
            search.run()
        finally:
            trial.process.kill()
            trial.process.communicate()
    assert trial.process.returncode == -signal.SIGKILL and search.free == [slot]
    assert said == ["Trial 3 is stopped early after 1 epoch: val/epe 9.0000 is poor"]
    assert study.trials()[3].state.name == "PRUNED"
