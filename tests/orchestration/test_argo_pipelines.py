"""The pipelines of the library on Argo, by its controller's rules: once, again, in another bucket, without a cache."""

import sys
from pathlib import Path

import pytest
from argo_cluster import FULL, Cluster
from argo_simulator import Failed, Simulator

from stereo_core.orchestration.argo import Repository, manifests
from stereo_core.orchestration.compile import compiled_path, pipeline_folders
from stereo_core.orchestration.graph import load_pipeline

FOLDERS = {folder.name: folder for folder in pipeline_folders()}


@pytest.fixture
def run(tmp_path):
    """Run a pipeline once more, its steps done by a stand-in; returns the run."""
    launcher = tmp_path / "bin/depth_net-launch"
    launcher.parent.mkdir()
    stand_in = Path(__file__).with_name("stand_in_launcher.py").read_text()
    launcher.write_text(f"#!{sys.executable} -I\n{stand_in}")
    launcher.chmod(0o755)
    (tmp_path / "given").mkdir()
    (tmp_path / "given/thing").write_text("x")
    standing = Cluster(tmp_path, commands=launcher.parent)
    numbers = iter(range(99))

    def execute(name: str, bucket: str = "artifacts", cluster: Cluster = standing, cache: bool = True) -> Simulator:
        graph = load_pipeline(compiled_path(FOLDERS[name]))
        wanted = {p.name: "s3://given/thing" for p in graph.parameters.values() if p.required}
        documents = manifests(graph, wanted, Repository.of(f"s3://{bucket}/stereo"), cache=cache)
        made = Simulator(documents, tmp_path / f"run{next(numbers)}", {"given": tmp_path / "given"}, cluster=cluster)
        made.run()
        return made

    execute.cluster = standing
    return execute


def memoized(run: Simulator) -> set[str]:
    templates = {name for name, own in run.library.items() if any("memoize" in t for t in own.values())}
    tasks = [task for template in run.spec["templates"] for task in template["dag"]["tasks"]]
    return {task["name"] for task in tasks if task["templateRef"]["name"] in templates}


# how many steps a second run may find in the cache; the others always run, or are given something without a digest
CACHED = {
    "demo": 11,
    "evaluate_suite": 1,
    "export_and_build": 4,
    "finetune_and_compare": 7,
    "nightly_regression": 0,
    "quantize_and_compare": 4,
    "starter": 1,
    "train_to_engine": 2,
    "tune_and_train": 1,
}


@pytest.mark.slow
@pytest.mark.parametrize("name", FOLDERS)
def test_a_second_run_takes_every_memoized_step_from_the_cache(run, name):
    first, second = run(name), run(name)
    assert first.hits == [] and len(memoized(first)) == CACHED[name]
    assert set(second.hits) == memoized(second) and set(second.pods) == set(first.pods) - memoized(first)
    assert second.states == first.states and set(first.states.values()) == {"Succeeded"}
    for place, made in first.stored.items():
        if place.startswith("tasks.final-status.") or place.endswith(".main-logs"):
            continue  # of the one run
        assert second.stored[place].read_text() == made.read_text(), place
    elsewhere = run(name, bucket="another")
    assert elsewhere.hits == [] and elsewhere.pods == first.pods, "nothing that lies in the first bucket"


def test_without_the_cache_nothing_needs_rights_or_room(run):
    cluster = Cluster(run.cluster.folder, rights=set(), commands=run.cluster.commands)
    with pytest.raises(Failed, match=r"configmaps .* is forbidden"):
        run("demo", cluster=cluster)
    for _ in range(2):
        done = run("demo", cluster=cluster, cache=False)
        assert done.hits == [] and len(done.pods) == 13 and cluster.maps == {}


def test_a_full_cache_spoils_one_step_alone(run):
    run.cluster.maps["train-to-engine-export-cache"] = {"old": "x" * FULL}
    with pytest.raises(Failed, match=r"Too long: may not be more than 1048576 bytes"):
        run("train_to_engine")


def test_a_config_map_has_room_for_hundreds_of_runs(run):
    run("demo")
    largest = max(len(entry) for entries in run.cluster.maps.values() for entry in entries.values())
    assert FULL / largest > 500
