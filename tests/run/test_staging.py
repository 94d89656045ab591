"""The stage of a run on this machine: what is refused, what a killed run leaves; needs no server."""

from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import sys
from pathlib import Path

import pytest
from buckets import left_over

from stereo_core.errors import SpecError, UserError
from stereo_core.run.remote import kind_of
from stereo_core.run.staging import LOCKED, staged
from stereo_core.spec.experiment import results_dir, spec_class
from stereo_core.spec.loading import build
from stereo_core.spec.paths import walk
from stereo_core.verbs import VERBS

STAGE_HOLDER = Path(__file__).with_name("stage_holder.py")


@pytest.fixture
def begun(tmp_path, monkeypatch):
    """Begins runs in processes of their own, each with an input, a result and a link to one that is gone."""
    monkeypatch.setenv("STEREO_CACHE", str(tmp_path / "cache"))
    processes = []

    def begin() -> tuple[subprocess.Popen, Path]:
        command = [sys.executable, STAGE_HOLDER]
        processes.append(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True))
        return processes[-1], Path(processes[-1].stdout.readline().strip())

    yield begin
    for process in processes:
        process.kill()
        process.communicate()


def killed(process: subprocess.Popen) -> None:
    process.kill()
    process.wait()


def next_run() -> None:
    with staged("synthesize", build("synthesize", {"results_dir": "s3://b/x"})):
        pass


def test_the_inputs_of_a_killed_run_go_with_the_next_one(begun, tmp_path):
    run, folder = begun()
    killed(run)
    next_run()
    assert os.listdir(folder) == ["results"]
    assert folder.with_suffix(".lock") not in left_over(tmp_path), "nor is it locked any more"


def test_the_results_of_a_killed_run_go_after_a_week(begun, tmp_path):
    run, folder = begun()
    killed(run)
    for path in (folder, *folder.rglob("*")):
        os.utime(path, (0, 0), follow_symlinks=False)
    next_run()
    assert [path for path in left_over(tmp_path) if path.name.startswith(folder.name)] == []


def test_nothing_goes_of_a_run_that_goes_on(begun):
    _, folder = begun()
    for path in (folder, *folder.rglob("*")):
        os.utime(path, (0, 0), follow_symlinks=False)
    next_run()
    assert sorted(os.listdir(folder)) == ["inputs", "results"]


def test_no_descriptor_stays_open(begun):
    """Of the run's own lock, and of those that it looked at."""
    killed(begun()[0])
    next_run()
    before = os.listdir("/proc/self/fd")
    next_run()
    assert os.listdir("/proc/self/fd") == before


def training(folder: Path):
    return build("train", {"results_dir": str(folder)})


@pytest.mark.parametrize("verb", LOCKED)
def test_a_second_run_is_refused_while_the_first_lasts(verb, tmp_path):
    """Two evaluations at once left one's panels beside the other's figures."""
    spec = build(verb, {"results_dir": str(tmp_path)})
    folder = results_dir(spec, verb)
    folder.mkdir()
    with staged(verb, spec) as first:
        first.claim_results()
        with staged(verb, spec) as second, pytest.raises(SpecError, match=f"another run is writing to {folder}"):
            second.claim_results()
    with staged(verb, spec) as third:
        third.claim_results()
    assert list(folder.iterdir()) == []


def test_a_training_needs_a_file_system_with_locks(tmp_path, monkeypatch):
    def flock(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", flock)
    (tmp_path / "train").mkdir()
    with (
        staged("train", training(tmp_path)) as stage,
        pytest.raises(UserError, match=rf"{tmp_path}/train: this file system has no file locks"),
    ):
        stage.claim_results()


REFUSED = [
    ("synthesize", {"results_dir": "gs://bucket/x"}, "results_dir: gs://bucket/x: scheme not supported"),
    ("convert", {"results_dir": "x", "data_root": "s3://b/x"}, "data_root: s3://b/x: set relative_paths=true"),
    (
        "export",
        {"export": {"checkpoint": "s3://b", "onnx_file": "m.onnx"}},
        "checkpoint: s3://b: names a bucket, but no",
    ),
    ("train", {"results_dir": "s3://b/x", "train": {"num_nodes": 2}}, "on several nodes or with torchrun"),
    ("automl", {"results_dir": "s3://b/x"}, "a search needs a file system for its study"),
    (
        "gen_trt_engine",
        {"gen_trt_engine": {"timing_cache": "s3://b/x"}},
        "s3://b/x: the build updates this file",
    ),
]


@pytest.mark.parametrize("verb, spec, message", REFUSED)
def test_what_is_refused_by_name(verb, spec, message, tmp_path, monkeypatch):
    monkeypatch.setenv("STEREO_CACHE", str(tmp_path / "cache"))
    with pytest.raises(SpecError, match=message), staged(verb, build(verb, spec)):
        pytest.fail("it began")
    assert left_over(tmp_path) == []


@pytest.mark.parametrize(
    "environment", [{"WORLD_SIZE": "2"}, {"PET_NNODES": "2"}, {"PET_NNODES": "2:2"}, {"LOCAL_RANK": "0"}]
)
def test_nodes_and_processes_that_a_launcher_says_are_refused_too(environment, monkeypatch):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    spec = build("train", {"results_dir": "s3://b/x"})
    with pytest.raises(SpecError, match="on several nodes or with torchrun"), staged("train", spec):
        pytest.fail("it began")


def test_one_node_of_a_launcher_is_no_reason_to_refuse(tmp_path, monkeypatch):
    monkeypatch.setenv("STEREO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PET_NNODES", "1")
    with staged("train", build("train", {"results_dir": "s3://b/x"})) as stage:
        assert list(stage.results.values()) == ["s3://b/x"]


NO_FILES = {
    *("image_dir_pattern", "right_dir_pattern", "depth_dir_pattern", "nocc_dir_pattern", "nocc_mask_dir_name"),
    *("image_extension", "depth_extension", "nocc_extension", "encryption_key", "model_name", "tile_wtype"),
    *("automl_hyperparameters", "compute_capabilities", "layers_precision", "device", "module_name", "skip_names"),
    *("observer_or_fake_quant", "project", "entity", "name", "run_id", "group", "tags", "title", "names"),
    "uri",  # fetch_dataset and publish_model take objects themselves
}
"""Keys with a text that names no file."""


def test_every_key_that_names_files_takes_objects_or_refuses_them():
    """A key that nobody decided about would make a folder `s3:` in the working directory."""
    specs = {spec_class(verb) for verb in VERBS}
    texts = {
        path.replace("[]", "")
        for spec in specs
        for path, field in walk(spec)
        if "str" in str(field.annotation)
        and "Literal" not in str(field.annotation)
        and "dict" not in str(field.annotation)
    }
    assert len(texts) > 50
    assert {path for path in texts if kind_of(path) is None} == {
        path for path in texts if path.rpartition(".")[2] in NO_FILES
    }


def test_keys_of_other_verbs_are_left_alone(tmp_path, monkeypatch):
    monkeypatch.setenv("STEREO_CACHE", str(tmp_path / "cache"))
    spec = build("evaluate", {"results_dir": "x", "train": {"pretrained_model_path": "s3://b/x"}})
    with staged("evaluate", spec) as stage:
        assert stage.folder is None and stage.spec is spec


@pytest.mark.parametrize("policy", ["on", "off"])
def test_a_search_leaves_objects_to_its_trials(policy, tmp_path, monkeypatch):
    """Its best spec would name files that are gone with the run, and a search that was stopped could not go on."""
    monkeypatch.setenv("STEREO_CACHE", str(tmp_path / "cache"))
    sources = {"train_dataset": {"data_sources": [{"data_file": "s3://b/train.txt"}]}}
    train = {"pretrained_model_path": "s3://b/x.pth"}
    tree = {"dataset": sources, "train": train, "automl": {"results_dir": "x", "automl_policy": policy}}
    with staged("automl", build("automl", tree)) as stage:
        left = [] if policy == "on" else ["dataset.train_dataset.data_sources.data_file", "train.pretrained_model_path"]
        assert sorted(key.path for key in stage._to_fetch) == left
    tree["train"]["pretrained_model_path"] = "gs://b/x.pth"
    refused = pytest.raises(SpecError, match=r"train\.pretrained_model_path: gs://b/x\.pth: scheme")
    with refused, staged("automl", build("automl", tree)):
        pass
