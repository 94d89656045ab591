"""What a few pairs of a source tell before any work: views and ground truth that cannot be right."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from samples import make_spec

from stereo_core.data.annotations import write_annotations
from stereo_core.data.augmentation import Pair
from stereo_core.data.codecs import read_disparity, write_disparity_png16
from stereo_core.data.datasets import build_dataset, spread
from stereo_core.data.doubts import Doubts, look
from stereo_core.data.images import read_image, write_png

SHIFT = 9  # px; the disparity of every pair
SPLITS = ("train", "val", "test", "infer")


def textured(seed: int) -> np.ndarray:
    noise = np.random.default_rng(seed).integers(0, 256, (96, 160, 3)).astype(np.uint8)
    return cv2.GaussianBlur(noise, (5, 5), 0)


@pytest.fixture
def warned(tmp_path, caplog):
    """(split, right image of a left one and its number, keys of the source) -> warnings about a list of three pairs."""

    def listed(split, right=lambda left, number: np.roll(left, -SHIFT, axis=1), **source) -> list[str]:
        rows = []
        for number in range(3):
            paths = [str(tmp_path / f"{name}{number}.png") for name in ("left", "right", "disparity")]
            left = textured(number)
            write_png(paths[0], left)
            write_png(paths[1], right(left, number))
            write_disparity_png16(paths[2], np.full(left.shape[:2], SHIFT))
            rows.append(paths)
        write_annotations(tmp_path / "list.txt", rows)
        source = {"data_file": str(tmp_path / "list.txt"), "dataset_name": "Kitti"} | source
        build_dataset(make_spec(split, [source]), split)
        return [record.getMessage() for record in caplog.records]

    return listed


@pytest.mark.parametrize("split", SPLITS)
def test_a_source_that_looks_right_is_not_doubted(warned, split):
    assert warned(split) == []


@pytest.mark.parametrize("split", SPLITS)
def test_swapped_views_draw_one_warning_a_source(warned, split):
    """They were trained on and evaluated without a word."""
    [text] = warned(split, lambda left, number: np.roll(left, SHIFT, axis=1))
    assert text.startswith(f"dataset.{split}_dataset.data_sources[0]: ")
    assert "list.txt:1 (3 of 3 pairs looked at): " in text and text.endswith("are the views swapped?")


def test_one_pair_of_equal_views_is_named_with_its_line(warned):
    [text] = warned("infer", lambda left, number: left if number == 1 else np.roll(left, -SHIFT, axis=1))
    assert "list.txt:2 (1 of 3 pairs looked at): both views are the same image" in text


@pytest.mark.parametrize(("shifted", "told"), [(1, 0), (2, 1)])
def test_shifted_rows_of_most_pairs_draw_a_warning(warned, shifted, told):
    """One in eighty synthetic scenes looks so by chance."""
    found = warned("infer", lambda left, number: np.roll(left, (5 * (number < shifted), -SHIFT), axis=(0, 1)))
    assert ["(2 of 3 pairs looked at): patches" in text and "5.0 px lower" in text for text in found] == [True] * told


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_ground_truth_below_a_pixel_everywhere_is_doubted_with_the_number(warned, split):
    """Disparities that someone had divided by the width trained a network to predict 0."""
    [text] = warned(split, disparity_scale=256 * 160)
    assert "largest ground-truth disparity is 0.056 px in 3 pairs (from " in text
    assert text.endswith("list.txt:1); is disparity_scale right?")


def test_ground_truth_wider_than_the_images_is_doubted(warned):
    [text] = warned("test", disparity_scale=8)
    assert "largest ground-truth disparity is 288 px in 3 pairs (from " in text
    assert "list.txt:1), more than the images are wide; is disparity_scale right?" in text


def test_inference_reads_no_ground_truth(warned):
    assert warned("infer", disparity_scale=256 * 160) == []


def test_samples_are_spread_from_the_first_to_the_last():
    assert [spread(range(n), 3) for n in (0, 1, 2, 3, 8)] == [[], [0], [0, 1], [0, 1, 2], [0, 3, 7]]


@pytest.mark.parametrize(("scale", "times"), [(200, "1.28"), (128, "2.00"), (512, "0.50")])
def test_ground_truth_of_another_scale_than_the_views_is_doubted(warned, scale, times):
    """ApolloScape stores 200 a px, and half-size images come with full-size disparities: EPE was off without a word."""
    [text] = warned("test", disparity_scale=scale)
    assert f"the ground-truth disparities are {times} times those of" in text and "list.txt:1) (median)" in text


@pytest.mark.parametrize(("disparity", "fits_right"), [("disp2.png", False), ("disp6.png", True)])
def test_ground_truth_of_the_right_view_is_doubted(shared, disparity, fits_right):
    """Middlebury's folders hold both; the right one's gave bad figures without a word."""
    folder = shared / "data/Middlebury/2003/cones"
    gt, _ = read_disparity(folder / disparity, scale=4)
    seen = look("cones", Pair(read_image(folder / "im2.png"), read_image(folder / "im6.png"), gt))
    told = list(Doubts([seen]).of_ground_truth())
    assert len(told) == fits_right and all("fits the pixels of the right image" in text for text in told), told
