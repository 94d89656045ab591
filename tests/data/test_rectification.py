"""Doubts about pairs: none on real and synthetic ones, one on each that is swapped, shifted or rotated."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from needs import lacking

from stereo_core.data.images import read_image
from stereo_core.data.rectification import doubts
from stereo_core.data.synthetic import scene_maker

DATA = Path(__file__).parents[3] / "shared" / "data"
REAL = (
    "Middlebury/2003/teddy/im2.png Middlebury/2003/teddy/im6.png",
    "Middlebury/2003/cones/im2.png Middlebury/2003/cones/im6.png",
    "Middlebury/MiddEval3/trainingQ/Motorcycle/im0.png Middlebury/MiddEval3/trainingQ/Motorcycle/im1.png",
    "ETH3D/two_view_training/playground_1l/im0.png ETH3D/two_view_training/playground_1l/im1.png",
    "KITTI_2012/training/colored_0/000000_10.png KITTI_2012/training/colored_1/000000_10.png",
    "KITTI_2015/training/image_2/000000_10.png KITTI_2015/training/image_3/000000_10.png",
    "KITTI_2015/training/image_2/000046_10.png KITTI_2015/training/image_3/000046_10.png",
    "SceneFlow/FlyingThings3D/frames_cleanpass/TRAIN/A/0000/left/0006.png "
    "SceneFlow/FlyingThings3D/frames_cleanpass/TRAIN/A/0000/right/0006.png",
    "SceneFlow/FlyingThings3D/frames_cleanpass/TRAIN/B/0749/left/0015.png "
    "SceneFlow/FlyingThings3D/frames_cleanpass/TRAIN/B/0749/right/0015.png",
    "NoGT/FoundationStereo/left.png NoGT/FoundationStereo/right.png",
)


def rotated(image: np.ndarray, degrees: float) -> np.ndarray:
    height, width = image.shape[:2]
    return cv2.warpAffine(image, cv2.getRotationMatrix2D((width / 2, height / 2), degrees, 1), (width, height))


@pytest.mark.parametrize("pair", REAL)
def test_real_pairs(pair):
    if not DATA.is_dir():
        lacking("data", f"{DATA} is missing")
    left, right = (read_image(DATA / name) for name in pair.split())
    assert doubts(left, right) == []
    assert "swapped" in doubts(right, left)[0]
    for rows in (2, 6, -8, 13):
        words = "lower" if rows > 0 else "higher"
        assert words in doubts(left, np.roll(right, rows, axis=0))[0]
    assert "rectify" in doubts(left, rotated(right, 1.0))[0]


@pytest.mark.parametrize("pair", [pair for pair in REAL if not pair.startswith("ETH3D")])
def test_small_real_pairs(pair):
    """160 px wide and as low as 48 px, as a thumbnail or a first try; ETH3D's disparities are then below 2 px."""
    if not DATA.is_dir():
        lacking("data", f"{DATA} is missing")
    left, right = (small(read_image(DATA / name)) for name in pair.split())
    assert doubts(left, right) == []
    assert "swapped" in doubts(right, left)[0]
    assert "lower" in doubts(left, np.roll(right, 2, axis=0))[0]


def small(image: np.ndarray) -> np.ndarray:
    scale = 160 / image.shape[1]
    return cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)


@pytest.mark.parametrize(("width", "height", "largest"), [(160, 128, 48), (320, 256, 48), (640, 480, 160)])
def test_rich_scenes(width, height, largest):
    """Sharp contours and few textures: many patches match in other rows. The last two show a grid, and only a bar."""
    scenes = [(seed, number) for seed in (1234, 12) for number in range(5)] + [(21, 5), (302, 10)]
    shifted = turned = 0
    for seed, number in scenes:
        scene = scene_maker("rich", height, width, (largest / 10, largest), seed)(number)
        left, right = scene["left"], scene["right"]
        assert doubts(left, right) == [], (seed, number)
        shifted += "rectify" in " ".join(doubts(left, np.roll(right, 3, axis=0)))
        degrees = max(1.0, 320 / width)  # 1 degree moves most rows of 160 px by less than 1 px
        turned += "rectify" in " ".join(doubts(left, rotated(right, degrees)))
    assert min(shifted, turned) >= 10, (shifted, turned)  # of 12; the grid and the bar may hide it


def textured(seed: int = 0) -> np.ndarray:
    noise = np.random.default_rng(seed).integers(0, 256, (120, 200, 3)).astype(np.uint8)
    return cv2.GaussianBlur(noise, (5, 5), 0)


@pytest.mark.parametrize(("right", "left"), [(0, 11), (3, 0)])
def test_order_and_rows_of_a_made_pair(right, left):
    """Content that moves right from left to right image is on the wrong side; rows that move are not rectified."""
    image = textured()
    found = doubts(image, np.roll(image, right - left, axis=1))
    assert ("swapped" in " ".join(found)) == (right > left)
    assert "4.0 px lower" in " ".join(doubts(image, np.roll(image, (4, -5), axis=(0, 1))))


def test_nothing_is_said_where_everything_matches():
    """A ramp is alike everywhere, vertical stripes repeat: most matches are chance."""
    ramp = np.repeat(np.linspace(0, 250, 40 * 70).reshape(40, 70, 1).astype(np.uint8), 3, axis=2)
    assert doubts(ramp, ramp // 2) == []
    stripes = np.tile(np.repeat(np.uint8([20, 220]), 4), (64, 12))[..., None].repeat(3, axis=2)
    assert doubts(stripes, np.roll(stripes, -3, axis=1)) == []


def test_nothing_is_said_where_nothing_matches():
    assert doubts(textured(0), textured(1)) == []
    assert doubts(textured(0)[:8, :8], textured(1)[:8, :8]) == []
    flat = np.full((60, 90, 3), 128, np.uint8)
    assert [text.split(":")[0] for text in doubts(flat, flat + 1)] == [
        f"the {side} image shows nothing" for side in ("left", "right")
    ]


def test_a_pair_of_few_rows_has_no_matches():
    """No patch fits in it, and at the search's scale it had no row."""
    left, right = np.random.default_rng(0).integers(0, 255, (2, 2, 900, 3), np.uint8)
    assert not list(doubts(left, right))


@pytest.mark.parametrize("dark", ["left", "right"])
def test_a_dark_camera_is_named(dark):
    """A lens cap or a broken cable: the network still finds some disparity everywhere."""
    values = np.random.default_rng(0)
    pair = {side: values.integers(0, 256, (64, 96, 3)).astype(np.uint8) for side in ("left", "right")}
    assert not [text for text in doubts(**{f"{side}_HW3": image for side, image in pair.items()}) if "shows" in text]
    pair[dark] = values.integers(0, 4, (64, 96, 3)).astype(np.uint8)
    (text,) = doubts(**{f"{side}_HW3": image for side, image in pair.items()})
    assert text.startswith(f"the {dark} image shows nothing")
