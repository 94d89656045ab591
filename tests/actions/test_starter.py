"""The network in the package: it finds disparities it was never shown, and learns a new style from a dozen scenes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from stereo_core.cli import main
from stereo_core.data.codecs import read_disparity
from stereo_core.data.images import read_image
from stereo_core.orchestration.graph import load_pipeline
from stereo_core.run.perform import perform
from stereo_core.spec import spec_from_dict

ROOT = Path(__file__).parents[2]


def listed(folder: Path, **scenes) -> dict:
    """Synthetic scenes as files; an entry of data_sources."""
    assert perform("synthesize", spec_from_dict("synthesize", {"results_dir": str(folder), **scenes})) == 0
    kinds = ("left/rgb", "right/rgb", "left/disparity")
    data = [f"scene_{number:04d}/dataset/data" for number in range(scenes["num_scenes"])]
    lines = [" ".join(f"{one}/{kind}/0000.png" for kind in kinds) for one in data]
    (folder / "list.txt").write_text("\n".join(lines) + "\n")
    return {"data_file": str(folder / "list.txt"), "dataset_name": "FSD"}


def evaluated(folder: Path, source: dict, checkpoint: str) -> float:
    """Its EPE in px, model.preset and model.max_disparity being left to the checkpoint."""
    dataset = {"max_disparity": 192, "test_dataset": {"data_sources": [source], "workers": 0}}
    tree = {"dataset": dataset, "evaluate": {"checkpoint": checkpoint, "results_dir": str(folder)}}
    outcomes = []
    assert perform("evaluate", spec_from_dict("evaluate", tree), on_outcome=outcomes.append) == 0
    return outcomes[0].kpi["epe"]


@pytest.mark.slow
def test_it_finds_the_disparities_of_scenes_it_never_saw(tmp_path):
    source = listed(tmp_path / "scenes", num_scenes=2, height=192, width=384, max_disparity=48, seed=70)
    epe = evaluated(tmp_path / "out", source, "starter")
    assert epe < 4  # random weights are some 40 px off


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_demos_dozen_scenes_teach_it_their_style(tmp_path):
    """Held-out scenes are better after the demo's own training than before, by more than noise."""
    demo = load_pipeline(ROOT / "pipelines" / "demo" / "compiled" / "demo.yaml")
    default = {name: parameter.default for name, parameter in demo.parameters.items()}
    scenes = {name: default[name] for name in ("height", "width", "max_disparity")}
    scenes["style"] = demo.tasks["synthesize-2"].parameters["style"].value
    shown = listed(tmp_path / "shown", num_scenes=12, seed=7, **scenes)
    others = listed(tmp_path / "others", num_scenes=6, seed=8, **scenes)
    spec = default["train_spec"]
    spec["dataset"]["train_dataset"]["data_sources"] = [shown]
    spec["train"] |= {"results_dir": str(tmp_path / "train"), "num_epochs": default["num_epochs"]}
    assert perform("train", spec_from_dict("train", spec)) == 0
    after = evaluated(tmp_path / "after", others, str(tmp_path / "train" / "dn_model_latest.pth"))
    assert after < 0.9 * evaluated(tmp_path / "before", others, "starter")


MIDDLEBURY, FLYING = "Middlebury/MiddEval3/trainingQ/Motorcycle", "SceneFlow/FlyingThings3D/frames_cleanpass/TRAIN"
PAIRS = [  # of each data set one; tests/data/test_rectification.py looks at the views of every pair
    ("Middlebury/2003/teddy/im2.png", "Middlebury/2003/teddy/im6.png"),
    (f"{MIDDLEBURY}/im0.png", f"{MIDDLEBURY}/im1.png"),
    ("ETH3D/two_view_training/playground_1l/im0.png", "ETH3D/two_view_training/playground_1l/im1.png"),
    ("KITTI_2015/training/image_2/000000_10.png", "KITTI_2015/training/image_3/000000_10.png"),
    (f"{FLYING}/A/0000/left/0006.png", f"{FLYING}/A/0000/right/0006.png"),
]


@pytest.mark.slow
@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: pair[0].replace("/", "-"))
def test_predict_takes_a_real_pair_without_options(shared, tmp_path, monkeypatch, pair):
    """Disparities of the pair's own size, spread over a range as scenes are, no doubt about the views, one page."""
    monkeypatch.chdir(tmp_path)
    left, right = (shared / "data" / image for image in pair)
    result = CliRunner().invoke(main, ["predict", str(left), str(right)])
    assert result.exit_code == 0, result.output
    (file,) = (tmp_path / "results" / "predict" / "disparity_pfm").iterdir()
    disparity_HW, _ = read_disparity(file)
    assert disparity_HW.shape == read_image(left).shape[:2]
    low, high = np.quantile(disparity_HW, (0.02, 0.98))
    assert 0 < low < high - 5 and "swapped" not in result.output
    assert 10_000 < (tmp_path / "results" / "predict" / "index.html").stat().st_size < 8_000_000
