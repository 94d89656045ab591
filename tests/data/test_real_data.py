"""The real pairs of ../shared/data, through convert and the data set; the figures are those of its README."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from samples import make_spec

from stereo_core.actions.convert import run
from stereo_core.data.augmentation import seen_from_right
from stereo_core.data.codecs import read_disparity
from stereo_core.data.datasets import build_dataset
from stereo_core.data.images import read_mask
from stereo_core.spec import spec_from_dict


def converted(root: Path, results: Path, name: str, **patterns):
    """The data set of everything that convert finds below `root`."""
    results.mkdir()
    run(spec_from_dict("convert", {"data_root": str(root), "results_dir": str(results), **patterns}), None)
    return build_dataset(make_spec("test", [{"data_file": str(results / "test.txt"), "dataset_name": name}]), "test")


def figures(item) -> tuple[int, float, float]:
    """(valid pixels in percent, smallest, largest disparity)."""
    disparity = item["disparity"][item["valid"]]
    return round(100 * float(item["valid"].float().mean())), float(disparity.min()), float(disparity.max())


def test_kitti_2015(shared, tmp_path):
    dataset = converted(
        shared / "data/KITTI_2015/training",
        tmp_path / "lists",
        "Kitti",
        image_dir_pattern=["image_2"],
        right_dir_pattern=["image_3"],
        depth_dir_pattern=["disp_occ_0"],
        image_extension="_10.png",
        depth_extension="_10.png",
    )
    assert [item["rel"].rpartition("/")[2] for item in dataset] == ["000000_10", "000046_10"]
    results = [figures(item) for item in dataset]
    assert [valid for valid, *_ in results] == [19, 12]
    assert min(low for _, low, _ in results) == pytest.approx(4.6, abs=0.05)
    assert max(high for *_, high in results) == pytest.approx(65.7, abs=0.05)
    assert dataset[0]["left"].shape == (3, 375, 1242)


def test_kitti_2012(shared, tmp_path):
    [item] = converted(
        shared / "data/KITTI_2012/training",
        tmp_path / "lists",
        "Kitti",
        image_dir_pattern=["colored_0"],
        right_dir_pattern=["colored_1"],
        depth_dir_pattern=["disp_occ"],
        image_extension=".png",
    )
    assert figures(item) == (36, pytest.approx(4.4, abs=0.05), pytest.approx(69.8, abs=0.05))


def test_middlebury_with_its_mask(shared, tmp_path):
    root = shared / "data/Middlebury/MiddEval3"
    [item] = converted(
        root,
        tmp_path / "lists",
        "Middlebury",
        image_dir_pattern=["im0"],
        right_dir_pattern=["im1"],
        depth_dir_pattern=["disp0GT"],
        nocc_dir_pattern=["mask0nocc"],
        image_extension=".png",
        depth_extension=".pfm",
        nocc_extension=".png",
    )
    motorcycle = root / "trainingQ/Motorcycle"
    disparity, known = read_disparity(motorcycle / "disp0GT.pfm")
    assert round(100 * known.mean()) == 98
    assert (disparity[known].min(), disparity.max()) == (pytest.approx(9.2, abs=0.05), pytest.approx(62.9, abs=0.05))
    assert np.array_equal(item["valid"][0].numpy(), known & read_mask(motorcycle / "mask0nocc.png"))
    assert 0.8 < float(item["valid"].float().mean()) < known.mean()


def test_ground_truth_of_a_horizontal_flip_is_that_of_the_right_view(shared):
    """Motorcycle comes with measured disparities of both views; TAO's flip would take the left ones, 41 % wrong."""
    motorcycle = shared / "data/Middlebury/MiddEval3/trainingQ/Motorcycle"
    left, right = (read_disparity(motorcycle / f"disp{view}GT.pfm")[0] for view in (0, 1))
    warped = seen_from_right(left)
    both = (warped > 0) & (right > 0)
    error = np.abs(warped - right)[both]
    assert both.mean() > 0.84
    assert np.median(error) < 0.02 and np.mean(error > 1) < 0.015


def test_eth3d_in_its_two_trees(shared, tmp_path):
    [item] = converted(
        shared / "data/ETH3D",
        tmp_path / "lists",
        "Eth3d",
        image_dir_pattern=["im0", "two_view_training"],
        right_dir_pattern=["im1"],
        depth_dir_pattern=["disp0GT", "two_view_training_gt"],
        image_extension=".png",
        depth_extension=".pfm",
    )
    assert item["left"].shape == (3, 490, 941)
    assert figures(item) == (50, pytest.approx(2.1, abs=0.05), pytest.approx(20, abs=0.05))


def test_flying_things(shared, tmp_path):
    dataset = converted(
        shared / "data/SceneFlow/FlyingThings3D",
        tmp_path / "lists",
        "GenericDataset",
        image_dir_pattern=["frames_cleanpass", "/left/"],
        right_dir_pattern=["frames_cleanpass", "/right/"],
        depth_dir_pattern=["disparity"],
        image_extension=".png",
        depth_extension=".pfm",
    )
    results = [figures(item) for item in dataset]
    assert results == [
        (100, pytest.approx(1.2, abs=0.05), pytest.approx(152, abs=0.5)),
        (100, pytest.approx(1.25, abs=0.005), pytest.approx(94.9, abs=0.05)),
    ]


@pytest.mark.parametrize(("scene", "valid", "low", "high"), [("teddy", 98, 12.5, 52.75), ("cones", 97, 5.5, 55)])
def test_middlebury_2003_is_grey_times_four(shared, scene, valid, low, high):
    path = shared / f"data/Middlebury/2003/{scene}/disp2.png"
    disparity, known = read_disparity(path, scale=4, dataset_name="Middlebury")
    assert (round(100 * known.mean()), disparity[known].min(), disparity.max()) == (valid, low, high)
