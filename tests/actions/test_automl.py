"""A search from the command line: real trainings, killed and taken up again."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from training_runs import MODEL

from stereo_core.actions.automl import check_schedule, what_counts
from stereo_core.run.perform import perform
from stereo_core.spec import load_spec, spec_from_dict

PATTERNS = {
    "image_dir_pattern": ["left/rgb"],
    "right_dir_pattern": ["right/rgb"],
    "depth_dir_pattern": ["left/disparity"],
    "nocc_dir_pattern": ["left/nocc"],
} | dict.fromkeys(("image_extension", "depth_extension", "nocc_extension"), ".png")


@pytest.fixture(scope="module")
def lists(tmp_path_factory) -> Path:
    """train.txt and val.txt of ten synthetic scenes."""
    data, lists = tmp_path_factory.mktemp("data"), tmp_path_factory.mktemp("lists")
    scenes = {"results_dir": str(data), "num_scenes": 10, "height": 64, "width": 96, "max_disparity": 30}
    assert perform("synthesize", spec_from_dict("synthesize", scenes)) == 0
    tree = PATTERNS | {"data_root": str(data), "results_dir": str(lists), "split_ratio": 0.6}
    assert perform("convert", spec_from_dict("convert", tree)) == 0
    return lists


@pytest.fixture
def tree(lists, split, tmp_path) -> dict:
    """A spec whose learning rate is the default, which is low for so short a training."""
    dataset = {"max_disparity": 64, "val_dataset": split(lists / "val.txt", 4, "FSD")}
    dataset["train_dataset"] = split(lists / "train.txt", 2, "FSD") | {"augmentation": {"crop_size": [64, 96]}}
    search = {"algorithm": "bohb", "automl_max_concurrent": 2, "automl_max_epochs": 3}
    return {"results_dir": str(tmp_path), "dataset": dataset, "model": MODEL, "automl": search}


def depth_net(verb: str, tree: dict, *overrides: str) -> subprocess.Popen:
    """The command, in a process group of its own."""
    file = Path(tree["results_dir"]) / "user.yaml"
    file.write_text(yaml.safe_dump(tree))
    command = [sys.executable, "-m", "stereo_core.cli", verb, "-e", str(file), *overrides]
    with (file.parent / f"{verb}.log").open("ab") as log:
        return subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)


def ended(process: subprocess.Popen) -> int:
    return process.wait(timeout=400)


def wait_until(process: subprocess.Popen, holds) -> None:
    end = time.monotonic() + 300
    while not holds():
        assert process.poll() is None, "the search ended before"
        assert time.monotonic() < end
        time.sleep(0.05)


def lines(folder: Path) -> list[dict]:
    path = folder / "status.json"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def ended_trials(folder: Path) -> set[str]:
    """Names of the trials that the search knows to be done or stopped early."""
    messages = [line["message"] for line in lines(folder)]
    return {f"{int(text.split()[1]):03d}" for text in messages if " is done: " in text or " stopped early " in text}


def table(folder: Path) -> dict[int, dict[str, str]]:
    with (folder / "trials.csv").open(newline="") as file:
        return {int(row["trial"]): row for row in csv.DictReader(file)}


def pid_of(trial: Path) -> int:
    """The process that trains in a trial's folder."""
    for process in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            arguments = process.read_bytes().split(b"\0")
        except OSError:
            continue
        if str(trial / "spec.yaml").encode() in arguments:
            return int(process.parent.name)
    raise AssertionError(f"nobody trains in {trial}")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_eight_trials_beat_the_default_spec_though_all_is_killed_in_the_middle(tree, tmp_path):
    tree["automl"]["automl_max_recommendations"] = 8
    folder = tmp_path / "automl"
    trials = [folder / "trials" / f"{number:03d}" for number in range(8)]
    search = depth_net("automl", tree)

    def in_the_middle() -> bool:
        done = ended_trials(folder)
        under_way = [t for t in trials if (t / "dn_model_latest.pth").exists() and t.name not in done]
        return len(done) >= 3 and bool(under_way)

    wait_until(search, in_the_middle)
    os.killpg(search.pid, signal.SIGKILL)
    ended(search)
    before = {trial: (trial / "status.json").read_bytes() for trial in trials if trial.name in ended_trials(folder)}
    assert 3 <= len(before) < 8 and not (folder / "best_spec.yaml").exists()

    assert ended(depth_net("automl", tree)) == 0, (tmp_path / "automl.log").read_text()
    assert {trial: (trial / "status.json").read_bytes() for trial in before} == before, "what is done stays done"
    resumed = 0
    for trial in trials:
        for line in lines(trial):
            if line["message"].startswith("Resuming training from checkpoint: "):
                assert str(trial) in line["message"], "never another trial's checkpoint"
                resumed += 1
    assert resumed >= 1

    last = lines(folder)[-1]
    kpi, rows = last["kpi"], table(folder)
    assert last["status"] == "SUCCESS" and set(rows) == set(range(8))
    assert kpi["epe"] < kpi["baseline_epe"] - 1
    assert kpi["trials"] == 8 and kpi["trials_failed"] == 0
    done = {number: float(row["val/epe"]) for number, row in rows.items() if row["state"] == "done"}
    best = min(done, key=done.get)
    assert kpi["epe"] == done[best] and kpi["baseline_epe"] == done[0]

    assert load_spec("train", folder / "best_spec.yaml").train.optim.lr == float(rows[best]["train.optim.lr"])
    assert (folder / "dn_model_best.pth").resolve().parent == trials[best]
    evaluation = {"dataset": {"max_disparity": 64, "test_dataset": tree["dataset"]["val_dataset"]}}
    evaluation |= {"results_dir": str(tmp_path), "evaluate": {"checkpoint": str(folder / "dn_model_best.pth")}}
    assert perform("evaluate", spec_from_dict("evaluate", evaluation)) == 0
    measured = json.loads((tmp_path / "evaluate" / "results.json").read_text())["epe"]
    assert measured == pytest.approx(kpi["epe"], rel=1e-4)
    page = (folder / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 3 and f"the best is trial {best}" in page

    plain = tree | {"train": {"num_epochs": 3}}
    assert ended(depth_net("train", plain)) == 0
    assert lines(tmp_path / "train")[-1]["kpi"]["epe"] >= kpi["baseline_epe"] - 1e-6, "trial 0 is the spec as it is"


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_trial_that_dies_fails_alone_and_a_stopped_search_goes_on(tree, tmp_path):
    tree["automl"] |= {"automl_max_recommendations": 3, "automl_max_epochs": 4, "algorithm": "bayesian"}
    folder = tmp_path / "automl"
    trials = [folder / "trials" / f"{number:03d}" for number in range(3)]
    search = depth_net("automl", tree)
    wait_until(search, lambda: any(line["message"] == "Starting Training Loop." for line in lines(trials[1])))
    os.kill(pid_of(trials[1]), signal.SIGKILL)
    wait_until(search, lambda: any(line["message"] == "Starting Training Loop." for line in lines(trials[2])))
    search.terminate()
    assert ended(search) == 143
    assert lines(trials[2])[-1]["message"].startswith("User/System interruption"), "it was told, and had its time"
    assert (trials[2] / "dn_model_latest.pth").exists()
    with pytest.raises(AssertionError, match="nobody trains"):
        pid_of(trials[2])

    assert ended(depth_net("automl", tree)) == 0, (tmp_path / "automl.log").read_text()
    rows = table(folder)
    assert [rows[number]["state"] for number in range(3)] == ["done", "failed", "done"]
    assert rows[1]["reason"].startswith("killed by SIGKILL")
    assert any(line["message"].startswith("Resuming training from checkpoint") for line in lines(trials[2]))

    changed = depth_net("automl", tree, "automl.automl_max_epochs=5")
    assert ended(changed) == 2
    assert "holds a search with automl.automl_max_epochs 4" in (tmp_path / "automl.log").read_text()


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_search_on_data_that_can_not_be_read_ends_with_the_first_trial_s_reason(tree, tmp_path):
    tree["automl"] |= {"automl_max_recommendations": 12, "automl_max_concurrent": 1}
    (tmp_path / "gone.txt").write_text("left.png right.png gt.png\n")
    tree["dataset"]["train_dataset"]["data_sources"][0]["data_file"] = str(tmp_path / "gone.txt")
    assert ended(depth_net("automl", tree)) == 2
    log = (tmp_path / "automl.log").read_text()
    assert "trial 0 (" in log and "left.png" in log.partition("trial 0 (")[2] and "Traceback" not in log
    assert [trial.name for trial in (tmp_path / "automl" / "trials").iterdir()] == ["000"]


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_search_whose_trials_all_fail_exits_1(tree, tmp_path):
    tree["automl"] |= {"automl_max_recommendations": 2, "automl_max_epochs": 40}
    search = depth_net("automl", tree)
    for number in range(2):
        trial = tmp_path / "automl" / "trials" / f"{number:03d}"
        wait_until(search, lambda trial=trial: any(x["message"] == "Starting Training Loop." for x in lines(trial)))
        os.kill(pid_of(trial), signal.SIGKILL)
    assert ended(search) == 1
    last = lines(tmp_path / "automl")[-1]
    assert last["status"] == "FAILURE" and "none of 2 trials finished: killed by SIGKILL" in last["message"]
    assert not (tmp_path / "automl" / "best_spec.yaml").exists()


def test_policy_off_is_plain_training(tree, tmp_path, caplog):
    tree["automl"] = {"automl_policy": "off"}
    tree["train"] = {"num_epochs": 1}
    made = {}
    with caplog.at_level("INFO"):
        assert perform("automl", spec_from_dict("automl", tree), on_outcome=lambda o: made.update(o.artifacts)) == 0
    assert "automl_policy is off: training without a search" in caplog.text
    folder = tmp_path / "automl"
    assert made["checkpoint"].parent == folder and not (folder / "trials").exists()
    assert made["best_spec"] == folder / "best_spec.yaml"
    assert load_spec("train", made["best_spec"]).train.num_epochs == 1


@pytest.mark.parametrize("policy", ["on", "auto"])
def test_a_decay_that_no_trial_reaches_ends_the_search_before_it_begins(tree, tmp_path, policy):
    """Six pairs in batches of two for three epochs, two batches a step: six steps. TAO's milestone is step 1000."""
    tree["automl"] |= {"automl_hyperparameters": ["train.optim.lr_decay"], "automl_policy": policy}
    tree["train"] = {"accumulate": 2}
    assert perform("automl", spec_from_dict("automl", tree)) == 2
    message = lines(tmp_path / "automl")[-1]["message"]
    assert (
        "train.optim.lr_decay has no effect: the learning rate decays at step 1000, but a trial has 6 steps" in message
    )
    assert not (tmp_path / "automl" / "trials").exists()


@pytest.mark.parametrize(("warm_up", "told"), [(9, True), (8, False)])
def test_a_warm_up_that_takes_a_whole_trial_draws_a_warning(tree, caplog, warm_up, told):
    """Six pairs in batches of two for the search's three epochs, whatever train.num_epochs is."""
    tree["train"] = {"num_epochs": 100, "optim": {"warmup_steps": warm_up}}
    check_schedule(spec_from_dict("automl", tree))
    assert ("train.optim.warmup_steps: the warm-up takes 9 steps, but the run has only 9" in caplog.text) == told


def test_a_search_goes_on_only_with_the_data_it_began_with(tree, lists, tmp_path):
    """Trials on other pairs would be ranked with those before; the annotation files keep their names."""
    own = tmp_path / "train.txt"
    own.write_text((lists / "train.txt").read_text())
    tree["dataset"]["train_dataset"]["data_sources"][0]["data_file"] = str(own)
    before = what_counts(spec_from_dict("automl", tree))
    assert what_counts(spec_from_dict("automl", tree)) == before
    own.write_text("\n".join(own.read_text().splitlines()[:4]))
    after = what_counts(spec_from_dict("automl", tree))
    differing = [key for key in before["contents"] if before["contents"][key] != after["contents"][key]]
    assert differing == ["dataset.train_dataset.data_sources[0].data_file"]
