"""Conformance: the demo does the whole job, and gives the same by the local engine, kfp's own and as an Argo Workflow.

kfp.local runs container components in Docker only; two of its private checks are lifted so that their commands run as
plain processes. Where an upgrade takes these hooks away, the test says so.
"""

import json
import os
import sys
from pathlib import Path

import pytest
from argo_simulator import Simulator
from kfp import compiler, components, dsl, local
from kfp.local.subprocess_task_handler import SubprocessTaskHandler
from stereo_components import convert, synthesize

from stereo_core.files import sha256_of
from stereo_core.orchestration.argo import Repository, manifests
from stereo_core.orchestration.compile import compiled_path, pipeline_folders
from stereo_core.orchestration.graph import load_pipeline
from stereo_core.orchestration.local import LocalRun

SPEC = {
    "image_dir_pattern": ["left/rgb"],
    "right_dir_pattern": ["right/rgb"],
    "depth_dir_pattern": ["left/disparity"],
    "image_extension": ".png",
    "depth_extension": ".png",
    "split_ratio": 0.5,
}
DEMO = next(compiled_path(folder) for folder in pipeline_folders() if folder.name == "demo")
LOADER = {"batch_size": 2, "workers": 0}
TRAINING = {"train_dataset": LOADER | {"augmentation": {"crop_size": [64, 96]}}, "val_dataset": LOADER}
SMALL = {  # a quarter of the demo's images, half of its iterations
    "rich_scenes": 1,
    "num_scenes": 4,
    "height": 96,
    "width": 160,
    "num_epochs": 1,
    "train_spec": {"model": {"train_iters": 2}, "dataset": {"max_disparity": 96, **TRAINING},
                   "train": {"pretrained_model_path": "starter"}},
    "export_spec": {"export": {"input_height": 96, "input_width": 160, "batch_size": 1, "on_cpu": True}},
}  # fmt: skip


@pytest.fixture(scope="module")
def ours(tmp_path_factory) -> LocalRun:
    """The demo, run by the local engine."""
    run = LocalRun(load_pipeline(DEMO), SMALL, tmp_path_factory.mktemp("demo") / "run")
    assert run.execute() == 0, {name: task.message for name, task in run.tasks.items()}
    return run


@pytest.fixture
def kfp_root(tmp_path, monkeypatch):
    """kfp.local set up to run container components as processes of this environment; where it puts artifacts."""
    for hook in ("validate_not_container_component", "validate_image"):
        assert hasattr(SubprocessTaskHandler, hook), f"kfp.local no longer has {hook}: find the new hook"
        monkeypatch.setattr(SubprocessTaskHandler, hook, lambda self, *args: None)
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    local.init(local.SubprocessRunner(use_venv=False), pipeline_root=str(tmp_path / "kfp"), raise_on_error=True)
    return tmp_path / "kfp"


def artifact(root: Path, task: str, port: str) -> Path:
    (found,) = root.glob(f"*/{task}/{port}")
    return found


def test_data_steps_give_the_same_under_both_engines(kfp_root, tmp_path):
    @dsl.pipeline(name="data")
    def data(scenes: int = 2, spec: dict = SPEC):
        images = synthesize(num_scenes=scenes, height=64, width=96, max_disparity=16)
        convert(images=images.outputs["images"], spec=spec)

    path = tmp_path / "data.yaml"
    compiler.Compiler().compile(data, str(path))
    components.load_component_from_file(str(path))(scenes=3)
    ours = LocalRun(load_pipeline(path), {"scenes": 3}, tmp_path / "ours")
    assert ours.execute() == 0
    for task, port in (("synthesize", "images"), ("convert", "annotations")):
        assert sha256_of(artifact(kfp_root, task, port)) == ours.tasks[task].artifacts[port].sha256
    lines = (artifact(kfp_root, "convert", "annotations") / "val.txt").read_text().splitlines()
    assert len(lines) == 2 and len(lines[0].split()) == 3


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_demo_trains_exports_and_measures(ours):
    """Metrics of checkpoint and engine agree, every artifact is of the kind its port promises, nothing runs twice."""
    for task in ours.tasks.values():
        for port, made in task.artifacts.items():
            assert made.metadata["kind"] == port and made.bytes > 0
    train = ours.tasks["train"].artifacts["metrics"].metadata
    assert train["initial_epe"] > 0 and train["epe"] > 0
    checkpoint, engine = (ours.tasks[name].artifacts["metrics"].metadata for name in ("evaluate-3", "trt-evaluate"))
    assert abs(checkpoint["epe"] - engine["epe"]) < 0.01
    assert ours.tasks["gen-trt-engine"].artifacts["engine"].metadata["format"] == "ort"
    maps = list((ours.folder / "tasks/trt-inference/disparity/disparity_png16").rglob("*.png"))
    lists = (ours.folder / "tasks/convert-2/annotations/val.txt").read_text().splitlines()
    assert len(maps) == len(lists) > 0
    again = LocalRun(load_pipeline(DEMO), SMALL, ours.folder)
    assert again.execute() == 0
    assert {task.state for task in again.tasks.values()} == {"reused"}


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_demo_gives_the_same_by_kfp(kfp_root, ours):
    components.load_component_from_file(str(DEMO))(**SMALL)
    for task in ("evaluate", "evaluate-3", "trt-evaluate"):
        theirs = json.loads(artifact(kfp_root, task, "metrics").read_text())
        for name in ("epe", "d1", "rmse"):
            assert theirs[name] == pytest.approx(ours.tasks[task].artifacts["metrics"].metadata[name], abs=1e-4)
    for task, run in ours.tasks.items():
        for port, made in run.artifacts.items():
            assert artifact(kfp_root, task, port).exists(), f"{task}/{port} ({made.path})"


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_demo_gives_the_same_as_an_argo_workflow(ours, tmp_path):
    repository = Repository.of("s3://artifacts/stereo", "http://minio:9000", "minio-keys")
    theirs = Simulator(manifests(load_pipeline(DEMO), SMALL, repository), tmp_path, {})
    theirs.run()
    for task, run in ours.tasks.items():
        said = json.loads(theirs.outputs[task]["executor-output"])["artifacts"]
        for port, made in run.artifacts.items():
            metadata = said[port]["artifacts"][0]["metadata"]
            assert metadata["kind"] == made.metadata["kind"], f"{task} {port}"
            assert metadata["spec_sha256"] == made.metadata["spec_sha256"], f"{task} {port}"
            if port in ("images", "annotations", "onnx", "engine"):
                assert metadata["sha256"] == made.metadata["sha256"], f"{task} {port}"
            for key in ("epe", "rmse", "bp1", "d1", "train_loss"):
                if key in made.metadata:
                    assert metadata[key] == pytest.approx(made.metadata[key], rel=1e-6), f"{task} {key}"
