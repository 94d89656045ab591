"""Conformance: the compiled steps run under kfp's own local engine too, and give what ours gives.

kfp.local runs container components in Docker only; two of its private checks are lifted so that their commands run as
plain processes. Where an upgrade takes these hooks away, the test says so.
"""

import json
import os
import sys
from pathlib import Path

import pytest
from kfp import compiler, components, dsl, local
from kfp.local.subprocess_task_handler import SubprocessTaskHandler
from stereo_components import convert, synthesize

from stereo_core.files import sha256_of
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
TINY = {"num_scenes": 4, "num_epochs": 1}


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
def test_whole_pipeline_gives_the_same_under_both_engines(kfp_root, tmp_path):
    (demo,) = (folder for folder in pipeline_folders() if folder.name == "demo")
    components.load_component_from_file(str(compiled_path(demo)))(**TINY)
    ours = LocalRun(load_pipeline(compiled_path(demo)), TINY, tmp_path / "ours", parallel=1)
    assert ours.execute() == 0
    for task in ("evaluate", "trt-evaluate"):
        theirs = json.loads(artifact(kfp_root, task, "metrics").read_text())
        for name in ("epe", "d1", "rmse"):
            assert theirs[name] == pytest.approx(ours.tasks[task].artifacts["metrics"].metadata[name], abs=1e-4)
    for task, run in ours.tasks.items():
        for port, made in run.artifacts.items():
            assert artifact(kfp_root, task, port).exists(), f"{task}/{port} ({made.path})"
