"""Pipelines of the library, run whole on tiny data: what their graphs promise comes out at their ends."""

import json
from pathlib import Path

import pytest
import torch
import yaml
from argo_simulator import Simulator
from narrow_network import NARROW

from stereo_core.models import create_model, save_checkpoint
from stereo_core.models.checkpoints import describe
from stereo_core.orchestration.argo import Repository, manifests
from stereo_core.orchestration.compile import compiled_path, pipeline_folders
from stereo_core.orchestration.graph import load_pipeline
from stereo_core.orchestration.local import LocalRun
from stereo_core.run.perform import perform
from stereo_core.spec import spec_from_dict

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

FOLDERS = {folder.name: folder for folder in pipeline_folders()}
PATTERNS = {
    "image_dir_pattern": ["left/rgb"],
    "right_dir_pattern": ["right/rgb"],
    "depth_dir_pattern": ["left/disparity"],
    "image_extension": ".png",
    "depth_extension": ".png",
}
LOADER = {"batch_size": 2, "workers": 0}
TRAIN = {
    "model": {"preset": "tiny", "train_iters": 2, "valid_iters": 2, "stereo_backbone": {"allow_random_backbone": True}},
    "dataset": {
        "max_disparity": 64,
        "train_dataset": {**LOADER, "augmentation": {"crop_size": [64, 96]}},
        "val_dataset": LOADER,
    },
    "train": {"optim": {"lr": 0.01}},
}
EVALUATE = {"dataset": {"max_disparity": 64, "test_dataset": LOADER}}
CONVERT = PATTERNS | {"split_ratio": 0.75}


@pytest.fixture(scope="module")
def scenes(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("scenes")
    spec = {"results_dir": str(folder), "num_scenes": 4, "height": 64, "width": 96, "max_disparity": 24}
    assert perform("synthesize", spec_from_dict("synthesize", spec)) == 0
    (folder / "status.json").unlink()
    return folder


@pytest.fixture(scope="module")
def untrained(tmp_path_factory) -> Path:
    """A checkpoint that knows nothing."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("model") / "untrained.pth"
    save_checkpoint(create_model(preset="tiny", train_iters=2, valid_iters=2), path)
    return path


def ran(name: str, arguments: dict, folder: Path, **options) -> LocalRun:
    run = LocalRun(load_pipeline(compiled_path(FOLDERS[name])), arguments, folder, parallel=2, **options)
    assert run.execute() == 0, {task: (state.state, state.message) for task, state in run.tasks.items()}
    return run


def test_a_suite_gives_a_table_of_all_its_data_sets_here_and_on_argo(scenes, untrained, tmp_path):
    data = [
        {"title": title, "uri": str(scenes), "dataset_name": "FSD", "convert_spec": PATTERNS | {"split_ratio": share}}
        for title, share in (("half", 0.5), ("all", 0.0))
    ]
    arguments = {"data_sets": data, "evaluate_spec": EVALUATE}
    here = ran("evaluate_suite", arguments | {"model_uri": str(untrained)}, tmp_path / "here")
    epe = [here.tasks[f"for-loop-2-{index}-evaluate"].parameters["epe"] for index in (0, 1)]
    assert epe[0] != epe[1], "two data sets"
    page = (here.folder / "tasks/report/report").read_text()
    assert all(title in page for title in ("half", "all")) and all(f"{value:.4g}" in page for value in epe)

    graph = load_pipeline(compiled_path(FOLDERS["evaluate_suite"]))
    documents = manifests(
        graph, arguments | {"model_uri": "s3://models/untrained.pth"}, Repository.of("s3://artifacts")
    )
    there = Simulator(documents, tmp_path / "argo", {"models": untrained.parent})
    there.run()
    theirs = [float(there.outputs[f"for-loop-2-{index}-evaluate"]["epe"]) for index in (0, 1)]
    assert theirs == pytest.approx(epe, rel=1e-6)


def test_an_engine_only_of_a_model_that_became_better(scenes, untrained, tmp_path):
    arguments = {"images_uri": str(scenes), "model_uri": str(untrained), "benchmarks": [], "dataset_name": "FSD"}
    arguments |= {"num_epochs": 2, "backend": "onnxruntime", "convert_spec": CONVERT}
    arguments |= {"train_spec": TRAIN, "evaluate_spec": EVALUATE}
    size = {"input_height": 64, "input_width": 96, "batch_size": 1, "valid_iters": 1}
    arguments["export_spec"] = {"export": size | {"on_cpu": True, "check": False}}
    better = ran("finetune_and_compare", arguments, tmp_path)
    before, after = (better.tasks[name].parameters["epe"] for name in ("evaluate", "evaluate-2"))
    assert after < before
    assert better.tasks["gen-trt-engine"].artifacts["engine"].metadata["kind"] == "engine"

    record = better.folder / "run.json"
    said = json.loads(record.read_text())
    said["tasks"]["evaluate-2"]["parameters"]["epe"] = before * 1.001  # had it become worse
    record.write_text(json.dumps(said))
    worse = ran("finetune_and_compare", arguments, better.folder, from_step="export")
    assert {name for name, task in worse.tasks.items() if task.state == "skipped"} == {"export", "gen-trt-engine"}


def test_the_best_of_a_search_is_trained_on(scenes, tmp_path):
    automl = TRAIN | {"automl": {"automl_max_concurrent": 1}}
    arguments = {"images_uri": str(scenes), "dataset_name": "FSD", "algorithm": "bayesian", "max_recommendations": 2}
    arguments |= {"max_epochs": 1, "num_epochs": 2, "convert_spec": CONVERT, "automl_spec": automl}
    run = ran("tune_and_train", arguments | {"evaluate_spec": EVALUATE}, tmp_path / "run")
    best = yaml.safe_load((run.folder / "tasks/automl/best_spec").read_text())["train"]["optim"]
    used = yaml.safe_load((run.folder / "tasks/train/results/experiment.yaml").read_text())["train"]["optim"]
    assert best and best == {key: used[key] for key in best}
    searched, trained = (run.tasks[name].artifacts["metrics"].metadata["epe"] for name in ("automl", "train"))
    measured = [run.tasks[name].parameters["epe"] for name in ("evaluate", "evaluate-2")]
    assert measured == pytest.approx([searched, trained], abs=1e-3)
    page = (run.folder / "tasks/report/report").read_text()
    assert "best trial" in page and "training" in page and all(f"{value:.4g}" in page for value in measured)


def test_another_network_by_its_spec_alone(scenes, tmp_path):
    fast = {"model_type": "FastFoundationStereo", "max_disparity": 64, "train_iters": 1, "valid_iters": 1} | NARROW
    automl = TRAIN | {"model": fast, "automl": {"automl_max_concurrent": 1}}
    arguments = {"images_uri": str(scenes), "dataset_name": "FSD", "algorithm": "bayesian", "max_recommendations": 1}
    arguments |= {"max_epochs": 1, "num_epochs": 1, "convert_spec": CONVERT, "automl_spec": automl}
    run = ran("tune_and_train", arguments | {"evaluate_spec": EVALUATE}, tmp_path / "run")
    (checkpoint,) = run.folder.glob("tasks/train/checkpoint/*.pth")
    assert describe(checkpoint)["network"] == "FastFoundationStereo"
    measured, expected = (run.tasks[name].artifacts["metrics"].metadata["epe"] for name in ("evaluate-2", "train"))
    assert measured == pytest.approx(expected, abs=1e-3)


def test_the_starter_is_trained_without_images_and_published(scenes, tmp_path):
    drawn = {"dataset_name": "Synthetic", "pairs_per_epoch": 4, "height": 64, "width": 96, "scene_disparity": [4, 24]}
    train = {split: TRAIN["dataset"][split] | {"data_sources": [drawn]} for split in ("train_dataset", "val_dataset")}
    small = {"preset": "small", "train_iters": 1, "valid_iters": 1}
    lists = tmp_path / "lists"
    convert = {"data_root": str(scenes), "results_dir": str(lists), "relative_paths": True, **PATTERNS}
    assert perform("convert", spec_from_dict("convert", convert)) == 0
    arguments = {"images_uri": str(scenes), "annotations_uri": str(lists), "publish_uri": str(tmp_path / "models")}
    arguments |= {"dataset_name": "FSD", "num_epochs": 1, "evaluate_spec": EVALUATE}
    arguments["train_spec"] = {"model": small, "dataset": train | {"max_disparity": 192}}
    run = ran("starter", arguments, tmp_path / "run")
    note = json.loads((tmp_path / "models" / "published.json").read_text())
    assert note["metrics"]["epe"] == pytest.approx(run.tasks["evaluate"].artifacts["metrics"].metadata["epe"])
    assert note["kind"] == "checkpoint"
