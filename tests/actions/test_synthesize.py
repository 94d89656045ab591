from __future__ import annotations

import numpy as np
import pytest

from stereo_core.actions import convert, synthesize
from stereo_core.data.calibration import read_calibration
from stereo_core.data.codecs import read_disparity
from stereo_core.data.datasets import build_dataset
from stereo_core.files import sha256_of
from stereo_core.spec import ExperimentSpec, spec_from_dict


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("synthetic")
    outcome = synthesize.run(spec(folder), None)
    assert outcome.artifacts == {"images": folder} and f" px in {folder}, " in outcome.message
    return folder


def spec(folder, **keys):
    tree = {"results_dir": str(folder), "num_scenes": 3, "height": 64, "width": 96, "max_disparity": 24}
    return spec_from_dict("synthesize", tree | keys)


@pytest.fixture(scope="module")
def dataset(images, tmp_path_factory):
    """The scenes as convert and the data set see them."""
    lists = tmp_path_factory.mktemp("lists")
    patterns = {
        "image_dir_pattern": ["left/rgb"],
        "right_dir_pattern": ["right/rgb"],
        "depth_dir_pattern": ["left/disparity"],
        "nocc_dir_pattern": ["left/nocc"],
        "image_extension": ".png",
    }
    convert.run(spec_from_dict("convert", {"data_root": str(images), "results_dir": str(lists), **patterns}), None)
    source = {"data_file": str(lists / "test.txt"), "dataset_name": "FSD", "data_root": str(images)}
    tree = {"dataset": {"test_dataset": {"data_sources": [source]}}}
    return build_dataset(ExperimentSpec.model_validate(tree), "test")


def test_the_files_are_as_exact_as_the_scene(dataset):
    """Warping the right image by the disparity *file* gives the left one wherever the mask *file* says visible."""
    assert len(dataset) == 3
    for item in dataset:
        left, right = item["left"].numpy(), item["right"].numpy()
        disparity, visible = item["disparity"][0].numpy().astype(np.float64), item["valid"][0].numpy()
        columns = np.arange(96)
        warped = np.stack(
            [[np.interp(columns - disparity[y], columns, plane[y]) for y in range(64)] for plane in right]
        )
        assert np.abs(warped - left)[:, visible].max() <= 0.501
        assert 0.5 < visible.mean() < 1
        assert disparity.max() < 24


def test_disparity_is_known_where_the_mask_is_zero(images, dataset):
    for item, scene in zip(dataset, sorted(images.iterdir()), strict=True):
        disparity, known = read_disparity(scene / "dataset/data/left/disparity/0000.png", dataset_name="FSD")
        assert known.all()
        assert np.array_equal(disparity[item["valid"][0]], item["disparity"][0].numpy()[item["valid"][0]])


def test_calibration(images):
    calibration = read_calibration(images / "scene_0002/dataset/data/K.txt")
    assert (calibration.focal, calibration.cx, calibration.cy) == (96.0, 47.5, 31.5)
    assert calibration.baseline == 0.1


@pytest.mark.parametrize("style", ["rich", "planes"])
def test_style(style, tmp_path):
    synthesize.run(spec(tmp_path, style=style, num_scenes=1), None)
    disparity, known = read_disparity(tmp_path / "scene_0000/dataset/data/left/disparity/0000.png", dataset_name="FSD")
    assert known.all() and disparity.max() < 24


def test_appearance_is_the_cameras_alone(images, tmp_path):
    synthesize.run(spec(tmp_path, appearance=1.0, num_scenes=1), None)
    for name, same in {"left/disparity": True, "left/nocc": True, "left/rgb": False, "right/rgb": False}.items():
        path = f"scene_0000/dataset/data/{name}/0000.png"
        assert (sha256_of(tmp_path / path) == sha256_of(images / path)) == same


def test_scenes_differ_and_follow_the_seed(images, tmp_path):
    lefts = [sha256_of(path) for path in images.glob("*/dataset/data/left/rgb/0000.png")]
    assert len(set(lefts)) == 3
    synthesize.run(spec(tmp_path / "same"), None)
    assert sha256_of(tmp_path / "same") == sha256_of(images)
    synthesize.run(spec(tmp_path / "other", seed=1), None)
    assert sha256_of(tmp_path / "other") != sha256_of(images)
