"""Whether what an earlier run made is taken over: by content, never by name or time."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from flow_steps import SPEC, data
from local_steps import saved, saved_states, states, write
from small_ir import DATASET, pipeline

from stereo_core import __version__, storage
from stereo_core.files import sha256_of
from stereo_core.orchestration.dag import Container
from stereo_core.orchestration.digests import Digests
from stereo_core.orchestration.graph import load_pipeline
from stereo_core.orchestration.local import LocalRun
from stereo_core.orchestration.local.reuse import is_outdated, is_unchanged, key_of, named_files, present_key
from stereo_core.orchestration.record import Made, Record, TaskRun

CONTAINER = Container("org/x:1", ("run",), ("--fast",), {"A": "1"})
MADE = Made(DATASET, "tasks/a/out", "c0ffee", 3, {"kind": "images"})


def test_paths_and_sizes_are_no_part_of_a_key():
    assert key_of(CONTAINER, {}, {"in": [MADE]}) == key_of(CONTAINER, {}, {"in": [replace(MADE, path="b", bytes=4)]})


@pytest.mark.parametrize(
    ("container", "parameters", "inputs"),
    [
        (replace(CONTAINER, image="org/x:2"), {"n": 1}, {"in": [MADE]}),
        (replace(CONTAINER, command=("walk",)), {"n": 1}, {"in": [MADE]}),
        (replace(CONTAINER, args=()), {"n": 1}, {"in": [MADE]}),
        (replace(CONTAINER, env={"A": "2"}), {"n": 1}, {"in": [MADE]}),
        (CONTAINER, {"n": 2}, {"in": [MADE]}),
        (CONTAINER, {"n": 1}, {"other": [MADE]}),
        (CONTAINER, {"n": 1}, {"in": [MADE, MADE]}),
        (CONTAINER, {"n": 1}, {"in": [replace(MADE, sha256="beef")]}),
        (CONTAINER, {"n": 1}, {"in": [replace(MADE, metadata={})]}),
    ],
)
def test_a_key_tells_all_that_outputs_depend_on(container, parameters, inputs):
    assert key_of(container, parameters, inputs) != key_of(CONTAINER, {"n": 1}, {"in": [MADE]})


def test_files_that_a_spec_names_count_with_their_contents(tmp_path):
    """Else a training is reused although its annotation file or its pretrained weights have changed."""
    digests, lists, weights = Digests(tmp_path / "digests.json"), tmp_path / "train.txt", tmp_path / "x.pth"
    lists.write_text("a b c")
    weights.write_bytes(b"1")
    source = {"data_file": str(lists), "data_root": str(tmp_path)}
    train = {"pretrained_model_path": str(weights), "results_dir": str(tmp_path)}
    spec = {"train": train, "dataset": {"train_dataset": {"data_sources": [source]}}, "x_path": "gone"}
    parameters = {"spec": spec, "title": str(weights)}
    named = named_files(parameters, digests)
    assert named == {
        "spec.train.pretrained_model_path": sha256_of(weights),
        "spec.dataset.train_dataset.data_sources[0].data_file": sha256_of(lists),
    }
    before = key_of(CONTAINER, parameters, {}, named)
    lists.write_text("a b c\nd e f")
    assert key_of(CONTAINER, parameters, {}, named_files(parameters, digests)) != before


def test_objects_that_a_step_reads_count_with_their_versions(store, tmp_path):
    """Else a data set is not copied again after its source has changed, and a training keeps the old list."""
    fetch, lists = Container("org/x:1", ("depth_net-launch",), ("fetch_dataset", "{}")), tmp_path / "train.txt"
    digests, record = Digests(tmp_path / "digests.json"), Record(tmp_path, "test", {})
    source = {"data_sources": [{"data_file": "s3://bucket/kitti/train.txt"}]}
    reads = {"uri": "s3://bucket/kitti", "mode": "copy"}, {"spec": {"dataset": {"train_dataset": source}}}

    def keys() -> list[str]:
        storage.forget()
        return [present_key(fetch, one, {}, record, digests) for one in reads]

    lists.write_text("a b c")
    storage.upload(lists, "s3://bucket/kitti/train.txt")
    before = keys()
    assert keys() == before
    lists.write_text("a b d")
    storage.upload(lists, "s3://bucket/kitti/train.txt")
    assert not set(keys()) & set(before)
    record.runner = "podman"
    assert keys() == [key_of(fetch, one, {}) for one in reads], "its rights may be the container's alone"


@pytest.fixture
def made(tmp_path):
    """A task that made a file."""
    path = tmp_path / "tasks/a/out"
    path.parent.mkdir(parents=True)
    path.write_text("made")
    return TaskRun("succeeded", artifacts={"out": replace(MADE, sha256=sha256_of(path))})


def test_outputs_are_read_again(made, tmp_path):
    digests, file = Digests(tmp_path / "digests.json"), tmp_path / "tasks/a/out"
    assert is_unchanged(made, tmp_path, digests)
    file.write_text("mada")
    assert not is_unchanged(made, tmp_path, digests)
    file.unlink()
    assert not is_unchanged(made, tmp_path, digests)


def test_a_kept_task_is_outdated_when_its_key_is_another_one(compiled, tmp_path):
    digests = Digests(tmp_path / "digests.json")
    steps = {"a": write("a"), "b": write("b", "in")}
    task = load_pipeline(compiled(pipeline(steps, {"b": {"in": ("a", "out")}}))).tasks["b"]
    before = TaskRun("succeeded", artifacts={"out": MADE})
    record = Record(Path("run"), "test", {"a": before, "b": TaskRun("reused")})
    record.tasks["b"].key = key_of(task.component.executor, {}, {"in": [MADE]}, version=__version__)
    assert not is_outdated(task, record, digests)
    record.tasks["b"].key = key_of(task.component.executor, {}, {"in": [MADE]}, version="0.0.9")
    assert is_outdated(task, record, digests), "an earlier version of the library made it"
    record.runner = "podman"
    record.tasks["b"].key = key_of(task.component.executor, {}, {"in": [MADE]})
    assert not is_outdated(task, record, digests), "in a container the image is the version"
    before.artifacts["out"] = replace(MADE, sha256="beef")
    assert is_outdated(task, record, digests)
    record.tasks["b"].state = "failed"
    assert not is_outdated(task, record, digests), "what failed made nothing"


# ---- the real steps


@pytest.fixture(scope="module")
def finished(compiled_once, tmp_path_factory) -> Path:
    """The folder of a run that synthesized and converted a data set."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    assert LocalRun(load_pipeline(compiled_once(data)), {"spec": SPEC}, folder).execute() == 0
    return folder


@pytest.fixture
def again(finished, compiled_once, tmp_path):
    """Run it again, moved to another folder; returns the exit code and the run."""
    shutil.copytree(finished, tmp_path / "run")

    def execute(spec: dict, **options) -> tuple[int, LocalRun]:
        run = LocalRun(load_pipeline(compiled_once(data)), {"spec": spec}, tmp_path / "run", **options)
        return run.execute(), run

    return execute


def test_real_steps_are_on_record(finished):
    assert saved(finished)["state"] == "succeeded"
    assert saved_states(finished) == {"synthesize": "succeeded", "convert": "succeeded"}
    task = saved(finished)["tasks"]["convert"]
    assert task["exit_code"] == 0
    annotations = task["artifacts"]["annotations"]
    assert annotations["path"] == "tasks/convert/annotations", "relative, so that the folder can be moved"
    assert annotations["sha256"] == sha256_of(finished / annotations["path"])
    assert annotations["metadata"]["kind"] == "annotations"
    assert "PASS" in (finished / "tasks/convert/log.txt").read_text()
    lines = (finished / "tasks/convert/annotations/test.txt").read_text().splitlines()
    assert len(lines) == 2 and all(len(line.split()) == 2 for line in lines)


def test_nothing_runs_again_where_nothing_changed(finished, again):
    code, run = again(SPEC)
    assert code == 0 and set(states(run).values()) == {"reused"}
    assert saved(run.folder)["tasks"]["convert"]["artifacts"] == saved(finished)["tasks"]["convert"]["artifacts"]


def test_a_step_with_another_parameter_runs_again(again):
    code, run = again(SPEC | {"split_ratio": 0.5})
    assert code == 0 and states(run) == {"synthesize": "reused", "convert": "succeeded"}
    assert not (run.folder / "tasks/convert/annotations/test.txt").exists(), "nothing of the old result is left"


@pytest.mark.slow
def test_a_damaged_output_is_made_again(again, tmp_path):
    left = next((tmp_path / "run/tasks/synthesize/images").rglob("left/rgb/*.png"))
    left.write_bytes(left.read_bytes() + b"x")
    code, run = again(SPEC)
    assert code == 0 and states(run) == {"synthesize": "succeeded", "convert": "reused"}, "its content is the same"


@pytest.mark.slow
def test_a_fresh_run_takes_over_nothing(again):
    code, run = again(SPEC, fresh=True)
    assert code == 0 and set(states(run).values()) == {"succeeded"}


def test_a_step_that_refuses_its_input_says_why(again):
    code, run = again(SPEC | {"image_dir_pattern": ["nowhere"]})
    assert code == 2
    assert run.tasks["convert"].message.startswith("exit code 2: data error: ")
    assert "nowhere" in run.tasks["convert"].message
