from __future__ import annotations

import numpy as np
import pytest

from stereo_core.data.synthetic import planes
from stereo_core.data.synthetic.planes import make_scene

SCENES = [(128, 160, 48, 0), (128, 160, 48, 7), (64, 97, 20, 3), (33, 40, 1, 4)]


def warp(right: np.ndarray, disparity: np.ndarray) -> np.ndarray:
    """The left view from the right one: linear interpolation at x - disparity."""
    height, width = disparity.shape
    out = np.empty(right.shape)
    for y in range(height):
        x = np.arange(width) - disparity[y].astype(np.float64)
        for channel in range(3):
            out[y, :, channel] = np.interp(x, np.arange(width), right[y, :, channel].astype(np.float64))
    return out


@pytest.mark.parametrize("scene", SCENES)
def test_the_warped_right_image_is_the_left_one_at_visible_pixels(scene):
    made = make_scene(*scene)
    visible = made["visible"]
    error = np.abs(warp(made["right"], made["disparity"]) - made["left"])[visible]
    # the right image is exact, the left one rounded to whole levels: half a level, and float32 disparities
    assert error.max() <= 0.501
    for offset in (-0.25, 0.25):
        shifted = np.abs(warp(made["right"], made["disparity"] + offset) - made["left"])[visible]
        assert shifted.mean() > 2 and np.quantile(shifted, 0.95) > 5
    assert 0.5 < visible.mean() < 1


@pytest.mark.parametrize("scene", SCENES)
def test_disparity_is_dense_sub_pixel_and_in_range(scene):
    disparity = make_scene(*scene)["disparity"].astype(np.float64)
    assert disparity.min() > 0 and disparity.max() < scene[2]
    assert np.abs(disparity * 1000 - np.rint(disparity * 1000)).max() < 0.005  # whole thousandths: RGB-coded exactly
    assert disparity.max() - disparity.min() > scene[2] / 3
    if scene[2] > 10:
        assert len(np.unique(np.rint(disparity % 1 * 20))) == 21  # all fractions of a pixel occur


def march(surfaces, right_x: float, y: float, depths: np.ndarray) -> int:
    """The surface that the right camera sees at (right_x, y): try every depth from near to far."""
    for index in range(0, len(depths), 256):
        d = depths[index : index + 256]
        hits = np.stack([s.covers(right_x + d, np.full(d.shape, y)) for s in surfaces])
        hits &= np.stack([np.abs(s.disparity(right_x + d, y) - d) <= 0.75 * (depths[0] - depths[1]) for s in surfaces])
        if hits.any():
            return int(np.argmax(hits[:, np.argmax(hits.any(axis=0))]))
    raise AssertionError("a ray that meets nothing")


def test_occlusion_agrees_with_a_brute_force_depth_search():
    height, width, max_disparity = 32, 40, 12
    step = 0.01
    depths = np.arange(max_disparity + 2, -2, -step)
    wrong = pixels = 0
    for seed in (1, 2):
        made = make_scene(height, width, max_disparity, seed)
        surfaces = planes._make_surfaces(height, width, max_disparity, np.random.default_rng(seed))
        for y in range(0, height, 4):
            right = [march(surfaces, x, y, depths) for x in range(width)]
            for x in range(width):
                d = float(made["disparity"][y, x])
                owner = int(np.argmin([abs(s.disparity(x, y) - d) if s.covers(x, y) else np.inf for s in surfaces]))
                low, high = int(np.floor(x - d)), int(np.ceil(x - d))
                expected = (
                    low >= 0
                    and high < width
                    and right[low] == right[high] == owner
                    and march(surfaces, x - d, y, depths) == owner
                )
                wrong += expected != made["visible"][y, x]
                pixels += 1
    # only where an edge falls within a step of a pixel's ray may the search itself be off
    assert wrong <= pixels * 2 * step / 10


def test_a_seed_is_a_scene():
    one, same, other = (make_scene(48, 64, 16, seed) for seed in (5, 5, 6))
    for name in one:
        assert np.array_equal(one[name], same[name])
    assert not np.array_equal(one["left"], other["left"])
    assert not np.array_equal(one["disparity"], other["disparity"])
