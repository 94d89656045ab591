"""A pair keeps left(x) = right(x - disparity) whatever happens to it, and every key of `augmentation` has its effect.

Synthetic scenes satisfy the equation to half a grey level where both cameras see a pixel (`make_scene`); only such
pixels are given as ground truth. What resamples is allowed more, because the textures have noise of the size of a
pixel, which an image interpolated twice blurs. A wrong disparity costs ten times as much: 18 grey levels and more.
"""

from __future__ import annotations

import colorsys
from dataclasses import replace

import cv2
import numpy as np
import pytest
from samples import PLAIN

from stereo_core.data.augmentation import (
    Pair,
    augment,
    change_brightness,
    change_contrast,
    change_gamma,
    change_hue,
    change_saturation,
    cut,
    erase,
    flip_horizontally,
    flip_vertically,
    jitter_colours,
    pad,
    recoloured,
    resize,
    seen_from_right,
    shift,
    window_place,
    window_size,
)
from stereo_core.data.synthetic.planes import make_scene
from stereo_core.spec.dataset import Augmentation

EXACT = 0.5  # grey levels: the rounding of the left image
RESAMPLED = 3.0  # measured 1.5 to 2.8; disparities mixed across edges give 3.3 and more, unscaled ones 18 and more
SWAPPED = 6.0  # measured 4.5 to 4.7: here it is the image with the noise that is interpolated between its pixels


def scene(seed: int = 0, height: int = 128, width: int = 208, max_disparity: float = 32.0) -> Pair:
    """A pair with ground truth where both cameras see."""
    made = make_scene(height, width, max_disparity, seed)
    return Pair(made["left"], made["right"], np.where(made["visible"], made["disparity"], np.float32(0)))


def flat(disparity: np.ndarray) -> Pair:
    black = np.zeros((*disparity.shape, 3), np.uint8)
    return Pair(black, black, disparity.astype(np.float32))


def warping_error(pair: Pair) -> np.ndarray:
    """|left(x) - right(x - d)|, grey levels, of the known pixels that fall into the right image."""
    x, y = np.meshgrid(*(np.arange(side, dtype=np.float32) for side in pair.disparity.shape[::-1]))
    right_x = x - pair.disparity
    known = (pair.disparity > 0) & (right_x >= 1) & (right_x <= x.shape[1] - 2)
    warped = cv2.remap(np.ascontiguousarray(pair.right, np.float32), right_x, y, cv2.INTER_LINEAR)
    assert known.mean() > 0.2
    return np.abs(warped - pair.left).mean(axis=-1)[known]


def settings(**changes) -> Augmentation:
    return Augmentation(**{"crop_size": [96, 160], **PLAIN, **changes})


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


# -- geometry ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
def test_a_vertical_flip(seed):
    pair = scene(seed)
    flipped = flip_vertically(pair)
    assert warping_error(flipped).max() < 2 * EXACT
    assert np.array_equal(flipped.left[0], pair.left[-1])
    assert warping_error(replace(flipped, disparity=pair.disparity)).mean() > 18


@pytest.mark.parametrize("seed", range(3))
def test_a_horizontal_flip_swaps_the_views_and_brings_the_ground_truth_along(seed):
    pair = scene(seed)
    flipped = flip_horizontally(pair)
    assert np.array_equal(flipped.left, pair.right[:, ::-1]) and np.array_equal(flipped.right, pair.left[:, ::-1])
    assert warping_error(flipped).mean() < SWAPPED
    assert (flipped.disparity > 0).sum() > 0.9 * (pair.disparity > 0).sum()
    assert warping_error(Pair(pair.left[:, ::-1], pair.right[:, ::-1], pair.disparity[:, ::-1])).mean() > 18
    assert warping_error(replace(flipped, disparity=pair.disparity[:, ::-1])).mean() > 2 * SWAPPED


@pytest.mark.parametrize(("slope", "tilt"), [(0.0, 0.0), (0.3, 0.1), (-0.4, -0.1), (0.02, 0.3)])
def test_a_plane_seen_from_the_right_is_exact(slope, tilt):
    y, x = np.mgrid[:30, :100]
    warped = seen_from_right((30.3 + slope * (x - 50) + tilt * y).astype(np.float32))
    # x - d(x, y) = u solved for d
    expected = (30.3 - slope * 50 + slope * x + tilt * y) / (1 - slope)
    known = warped > 0
    assert np.abs(warped - expected)[known].max() < 1e-3
    left_x = x + expected
    assert known[(left_x > 0.01) & (left_x < 98.99)].all()  # but for the rounding of float32 at both ends
    assert not known[(left_x < -0.01) | (left_x > 99.01)].any()


def test_the_nearest_surface_is_seen_from_the_right_and_holes_stay_unknown():
    disparity = np.full((1, 40), 4.0, np.float32)
    disparity[0, 20:30] = 9.0
    warped = seen_from_right(disparity)[0]
    assert (warped[11:21] == 9).all()  # it hides the background's 16 to 19, seen at 12 to 15
    assert (warped[:11] == 4).all() and (warped[26:36] == 4).all()
    assert (warped[21:26] == 0).all()  # only the right camera sees this: the object hid it from the left one
    assert (warped[36:] == 0).all()


def test_sparse_ground_truth_goes_to_the_nearest_pixel_of_the_right_view():
    disparity = np.zeros((2, 40), np.float32)
    disparity[0, 20], disparity[0, 22], disparity[1, 3] = 6.4, 30.0, 2.6
    warped = seen_from_right(disparity)
    assert warped[0, 14] == np.float32(6.4) and warped[1, 0] == np.float32(2.6)
    assert np.count_nonzero(warped) == 2  # 22 - 30 lies outside


def test_flipping_twice_gives_the_pair_back():
    pair = scene(1)
    twice = flip_horizontally(flip_horizontally(pair))
    assert np.array_equal(twice.left, pair.left)
    both = twice.valid & pair.valid
    assert both.sum() > 0.95 * pair.valid.sum()
    assert np.abs(twice.disparity - pair.disparity)[both].mean() < 1e-3


@pytest.mark.parametrize("by", [-7, 5])
def test_a_shift_moves_all_disparities(by):
    pair = scene(2)
    moved = shift(pair, by)
    assert warping_error(moved).max() < 2 * EXACT
    assert np.array_equal(moved.valid, pair.valid & (pair.disparity + by > 0)) and (moved.disparity >= 0).all()
    assert np.allclose(moved.disparity[moved.valid], pair.disparity[moved.valid] + by)
    assert (moved.valid != pair.valid).any() == (by < 0)
    assert warping_error(replace(moved, disparity=pair.disparity)).mean() > 18


@pytest.mark.parametrize("size", [(128, 260), (192, 312), (100, 160), (160, 160), (90, 240), (256, 416)])
def test_resizing_moves_pixels_and_disparities(size):
    pair = scene(1)
    resized = resize(pair, size)
    assert resized.left.shape == resized.right.shape == (*size, 3) and resized.disparity.shape == size
    assert resized.disparity.dtype == np.float32
    assert warping_error(resized).mean() < RESAMPLED
    if size[1] != 208:
        unscaled = replace(resized, disparity=resized.disparity * np.float32(208 / size[1]))
        assert warping_error(unscaled).mean() > 3 * warping_error(resized).mean()


@pytest.mark.parametrize("size", [(45, 130), (23, 70)])
def test_resized_planes_are_exact_and_edges_and_holes_mix_nothing(size):
    y, x = np.mgrid[:30, :100]
    plane = 20 + 0.2 * x + 0.1 * y
    resized = resize(flat(plane), size).disparity
    v, u = np.mgrid[: size[0], : size[1]]
    expected = 20 + 0.2 * ((u + 0.5) * 100 / size[1] - 0.5) + 0.1 * ((v + 0.5) * 30 / size[0] - 0.5)
    assert np.abs(resized * 100 / size[1] - expected)[2:-2, 2:-2].max() < 1e-4
    surfaces, sparse, near_zero = np.where(x < 40, 8.0, 20.0), np.where(x < 40, 8.0, 20.0), np.full(x.shape, 0.5)
    sparse[rng().random(x.shape) < 0.7] = 0  # as from a laser scanner
    near_zero[:, 40:60] = 0
    for disparity, values in ((surfaces, [8, 20]), (sparse, [0, 8, 20]), (near_zero, [0, 0.5])):
        resized = resize(flat(disparity), size).disparity
        assert np.array_equal(np.unique(np.round(resized * (100 / size[1]), 4)), values)
        assert np.mean(resized > 0) == pytest.approx(np.mean(disparity > 0), abs=0.04)


def drawn_sizes(count: int = 400, image=(1000, 1000), **changes) -> np.ndarray:
    generator, chosen = rng(), settings(crop_size=[400, 400], spatial_aug_prob=1.0, **changes)
    return np.array([window_size(image, (400, 400), chosen, generator) for _ in range(count)])


def test_scale_and_stretch_follow_their_keys():
    scale = 400 / drawn_sizes(min_scale=-0.5, max_scale=1.0, stretch_prob=0.0)
    assert np.allclose(scale[:, 0], scale[:, 1], rtol=0.01)
    assert scale.min() == pytest.approx(2**-0.5, rel=0.03) and scale.max() == pytest.approx(2, rel=0.03)
    stretch = np.log2(400 / drawn_sizes(min_scale=0.0, max_scale=0.0, stretch_prob=0.5, max_stretch=0.6))
    assert np.abs(stretch).max() == pytest.approx(0.6, abs=0.02)
    assert np.mean((stretch == 0).all(axis=1)) == pytest.approx(0.5, abs=0.08)
    assert abs(np.corrcoef(stretch.T)[0, 1]) < 0.2
    generator, chosen = rng(), settings(spatial_aug_prob=0.3, min_scale=0.1, max_scale=0.2)
    scaled = [window_size((999, 999), (400, 400), chosen, generator) != (400, 400) for _ in range(400)]
    assert np.mean(scaled) == pytest.approx(0.3, abs=0.08)


def test_a_small_image_is_enlarged_to_what_the_crop_needs_with_the_stretch_that_was_drawn():
    keys = {"min_scale": -1.0, "max_scale": -0.5, "stretch_prob": 1.0, "max_stretch": 0.3}
    small, large = (drawn_sizes(image=image, **keys) for image in ((100, 220), (3000, 3000)))
    assert ((small == (100, 220)).any(axis=1) & (small <= (100, 220)).all(axis=1)).all()
    assert np.allclose(small[:, 0] / small[:, 1], large[:, 0] / large[:, 1], rtol=0.02)


def test_a_small_image_is_padded_where_it_may_not_be_enlarged():
    pair = scene(0, 64, 128)
    padded = augment(pair, settings(crop_size=[90, 150]), 416, rng())
    assert padded.left.shape == (96, 160, 3)
    assert np.array_equal(padded.left[:64, :128], pair.left)
    assert np.array_equal(padded.disparity[:64, :128], pair.disparity)
    assert not padded.disparity[64:].any() and not padded.disparity[:, 128:].any()
    assert (padded.right[64:, :128] == pair.right[63]).all()


def test_vertical_jitter_moves_the_right_view_by_up_to_two_rows():
    pair, offsets = scene(0), set()
    for seed in range(40):
        size = (96, 208)
        crop = augment(pair, settings(crop_size=size, yjitter_prob=1.0), 416, rng(seed))
        [top] = [top for top in range(33) if np.array_equal(crop.left[:, :208], pair.left[top : top + 96])]
        rows = np.arange(top, top + 96)
        [offset] = [
            down
            for down in range(-5, 6)
            if np.array_equal(crop.right[:, :208], pair.right[np.clip(rows + down, 0, 127)])
        ]
        assert np.array_equal(crop.disparity[:, :208], pair.disparity[top : top + 96])
        offsets.add(offset)
    assert offsets == {-2, -1, 0, 1, 2}
    enlarged = settings(
        crop_size=[96, 160], yjitter_prob=1.0, spatial_aug_prob=1.0, min_scale=0.9, max_scale=0.9, stretch_prob=0.0
    )
    moved = [augmented_offset(pair, enlarged, seed) for seed in range(5)]
    assert {abs(offset) for offset in moved} <= {0.0, 2**0.9} and len(set(moved)) > 1


def augmented_offset(pair: Pair, chosen: Augmentation, seed: int) -> float:
    """By how many rows of the crop the right view lies too high: whole rows of the file, tried one after the other."""
    crop = augment(pair, chosen, 416, rng(seed))
    errors = {}
    for down in range(-3, 4):
        offset = down * 2**0.9
        moved = cv2.warpAffine(crop.right, np.array([[1, 0, 0], [0, 1, offset]]), crop.right.shape[1::-1])
        errors[offset] = warping_error(replace(crop, right=moved)).mean()
    return min(errors, key=errors.get)


# -- the crop's place -------------------------------------------------------------------------------------------------


def test_a_crop_with_too_little_ground_truth_is_tried_again():
    counts = np.zeros((100, 400), bool)
    counts[:, 300:] = True
    shares = []
    for seed in range(50):
        top, left = window_place(counts, (50, 100), 0.6, rng(seed))
        shares.append(counts[top : top + 50, left : left + 100].mean())
    assert min(shares) >= 0.6 and np.std(shares) > 0.05  # the first that passes, not always the best
    free = [window_place(counts, (50, 100), 0.0, rng(seed))[1] for seed in range(200)]
    assert np.mean(free) == pytest.approx(150, abs=20)


def test_the_best_place_is_taken_where_none_has_enough():
    counts = np.zeros((100, 400), bool)
    counts[40:60, 200:240] = True
    for seed in range(20):
        top, left = window_place(counts, (50, 100), 0.9, rng(seed))
        assert counts[top : top + 50, left : left + 100].mean() > 0.8 * 20 * 40 / 5000


def test_disparities_beyond_the_limit_are_no_ground_truth_for_the_crop():
    disparity = np.where(np.arange(400) < 200, 10.0, 300.0) * np.ones((64, 1))
    chosen = settings(crop_size=[64, 96], crop_min_valid_disp_ratio=0.9)

    def near_share(limit: int) -> list[float]:
        return [np.mean(augment(flat(disparity), chosen, limit, rng(seed)).disparity > 100) for seed in range(30)]

    assert max(near_share(200)) <= 0.1
    assert max(near_share(416)) == 1.0


# -- colours ----------------------------------------------------------------------------------------------------------


def colours(seed: int = 0) -> np.ndarray:
    return rng(seed).integers(0, 256, (40, 50, 3), dtype=np.uint8)


def test_the_four_changes_of_colour_and_gamma():
    image = colours()
    levels = image.astype(float)
    grey = levels @ [0.299, 0.587, 0.114]

    def close(changed: np.ndarray, expected: np.ndarray) -> bool:
        return np.abs(changed - np.clip(expected, 0, 255)).max() <= 1.0

    assert close(change_brightness(image, 1.3), 1.3 * levels)
    assert close(change_contrast(image, 0.4), 0.4 * levels + 0.6 * grey.mean())
    assert close(change_saturation(image, 1.4), 1.4 * levels - 0.4 * grey[..., None])
    assert close(change_saturation(image, 0.0), np.repeat(grey[..., None], 3, axis=-1))
    assert close(change_gamma(image, 0.8, 1.1), 1.1 * 255 * (levels / 255) ** 0.8)
    for turns in (-5 / 180, 0.4):
        pixels = [colorsys.rgb_to_hsv(*pixel) for pixel in (levels / 255).reshape(-1, 3)]
        turned = np.array([colorsys.hsv_to_rgb((h + turns) % 1, s, v) for h, s, v in pixels])
        assert close(change_hue(image, turns), 255 * turned.reshape(levels.shape))


def test_nothing_changes_at_neutral_settings():
    assert np.array_equal(recoloured(colours(), settings(), rng()), colours())


def test_different_jitter_of_the_views_has_the_configured_strength():
    """TAO draws it from fixed ranges whatever the spec says."""
    grey = np.full((8, 8, 3), 100, np.uint8)
    pair = Pair(grey, grey, np.zeros((8, 8), np.float32))
    for strength in (0.1, 0.5):
        chosen = settings(color_aug_prob=1.0, color_aug_brightness=strength)
        made = [jitter_colours(pair, chosen, rng(seed)) for seed in range(200)]
        left, right = (np.array([int(getattr(one, side)[0, 0, 0]) for one in made]) for side in ("left", "right"))
        for side in (left, right):
            assert side.min() == pytest.approx(100 - 100 * strength, abs=4)
            assert side.max() == pytest.approx(100 + 100 * strength, abs=4)
        assert np.mean(left == right) < 0.2


def contrast(image: np.ndarray) -> float:
    """The distance of two greys, 80 and 120 before."""
    return float(image[0, 0, 0]) - float(image[0, -1, 0])


def saturation(image: np.ndarray) -> float:
    """The distance of the channels, 80 and 120 before."""
    return float(image[0, 0, 0]) - float(image[0, 0, 1])


@pytest.mark.parametrize(
    ("measure", "key", "low", "high"),
    [
        (contrast, {"color_aug_contrast": 0.1}, 0.9, 1.1),
        (contrast, {"color_aug_contrast": 0.9}, 0.1, 1.9),
        (saturation, {"color_aug_saturation": [0.9, 1.1]}, 0.9, 1.1),
        (saturation, {"color_aug_saturation": [0.1, 1.9]}, 0.1, 1.9),
    ],
)
def test_different_jitter_has_the_configured_contrast_and_saturation(measure, key, low, high):
    """TAO's item 16: it draws them from 0.4 and from [0.6, 1.4] whatever the spec says."""
    image = np.full((8, 8, 3), 80, np.uint8)
    image[:, :4] = 120 if measure is contrast else (120, 80, 80)
    if measure is saturation:
        image[:, 4:] = image[0, 0]
    pair = Pair(image, image, np.zeros((8, 8), np.float32))
    made = [jitter_colours(pair, settings(color_aug_prob=1.0, **key), rng(seed)) for seed in range(200)]
    for side in ("left", "right"):
        factors = [measure(getattr(one, side)) / 40 for one in made]
        assert min(factors) == pytest.approx(low, abs=0.06) and max(factors) == pytest.approx(high, abs=0.06)


@pytest.mark.parametrize(
    "keys",
    [
        {"color_aug_brightness": 0.4},
        {"color_aug_contrast": 0.4},
        {"color_aug_saturation": [0.0, 1.4]},
        {"color_aug_hue_range": [-0.1, 0.1]},
        {"gamma": [0.8, 1.2, 1.0, 1.0]},
        {"gamma": [1.0, 1.0, 0.8, 1.2]},
    ],
)
def test_equal_jitter_keeps_the_views_alike_and_different_jitter_does_not(keys):
    pair = Pair(colours(), colours(), np.zeros((40, 50), np.float32))
    for probability, alike in ((0.0, True), (1.0, False)):
        changed = jitter_colours(pair, settings(color_aug_prob=probability, **keys), rng(3))
        assert not np.array_equal(changed.left, pair.left)
        assert np.array_equal(changed.left, changed.right) == alike
    many = [jitter_colours(pair, settings(color_aug_prob=0.2, **keys), rng(seed)) for seed in range(150)]
    assert np.mean([not np.array_equal(one.left, one.right) for one in many]) == pytest.approx(0.2, abs=0.1)


def test_the_order_of_the_changes_varies():
    chosen = settings(color_aug_saturation=[0.5, 0.5], color_aug_hue_range=[0.3, 0.3])  # nothing else is random
    saturation_first = change_hue(change_saturation(colours(), 0.5), 0.3)
    hue_first = change_saturation(change_hue(colours(), 0.3), 0.5)
    made = {recoloured(colours(), chosen, rng(seed)).tobytes() for seed in range(20)}
    assert made == {saturation_first.tobytes(), hue_first.tobytes()} and len(made) == 2


def test_the_eraser_fills_rectangles_of_the_right_view_with_its_mean_colour():
    pair = scene(0, 160, 256)
    counts = set()
    for seed in range(20):
        erased = erase(pair, rng(seed))
        assert erased.left is pair.left and erased.disparity is pair.disparity
        changed = (erased.right != pair.right).any(axis=-1)
        mean = np.rint(pair.right.reshape(-1, 3).mean(axis=0))
        assert (np.abs(erased.right[changed].astype(float) - mean) <= 1).all()
        pieces, _, stats, _ = cv2.connectedComponentsWithStats(cv2.dilate(changed.astype(np.uint8), np.ones((3, 3))))
        counts.add(pieces - 1)
        for left, top, width, height, _ in stats[1:]:
            inside = left > 1 and top > 1 and left + width < 255 and top + height < 159
            assert not (inside and pieces == 3) or (50 <= width - 2 <= 99 and 50 <= height - 2 <= 99)
    assert counts == {1, 2}
    assert warping_error(pair).max() < 2 * EXACT  # the given pair is as it was


@pytest.mark.parametrize(
    "keys",
    [
        {},
        {"color_aug_contrast": 0.3},
        {"color_aug_saturation": [0.5, 1.2]},
        {"color_aug_hue_range": [0.1, 0.15]},
        {"gamma": [0.7, 0.8, 0.9, 1.0]},
        {"color_aug_brightness": 0.3, "color_aug_contrast": 0.3, "gamma": [0.9, 1.1, 1.0, 1.0]},
    ],
)
def test_equal_colours_keep_the_equation(keys):
    """What changes both views alike changes what one pixel shows in both alike, and leaves the ground truth."""
    pair = scene(0)
    for seed in range(3):
        changed = jitter_colours(pair, settings(color_aug_prob=0.0, **keys), rng(seed))
        assert np.array_equal(changed.left, pair.left) == (not keys) and changed.disparity is pair.disparity
        assert warping_error(changed).mean() < RESAMPLED
        assert warping_error(replace(changed, right=pair.right)).mean() > RESAMPLED or not keys
        assert warping_error(replace(changed, disparity=pair.disparity + np.float32(2) * pair.valid)).mean() > SWAPPED


def test_the_eraser_keeps_the_equation_outside_of_its_rectangles():
    pair = scene(0, 160, 256)
    for seed in range(5):
        erased = erase(pair, rng(seed))
        gone = cv2.dilate((erased.right != pair.right).any(axis=-1).astype(np.uint8), np.ones((5, 5), np.uint8))
        y, x = np.mgrid[:160, :256]
        column = np.clip(np.rint(x - pair.disparity).astype(int), 0, 255)
        seen = pair.valid & (gone[y, column] == 0)
        assert pair.valid.sum() > seen.sum() > 0.2 * seen.size
        assert warping_error(replace(erased, disparity=np.where(seen, pair.disparity, np.float32(0)))).max() < 2 * EXACT
        hidden = np.where(pair.valid & ~seen, pair.disparity, np.float32(0))
        assert np.abs(erased.left.astype(float) - erased.right[y, column])[hidden > 0].mean() > 18


def test_vertical_jitter_undone_keeps_the_equation():
    """The right view of the crop, moved back by the rows it was moved, matches the left one again."""
    pair, found = scene(0), []
    for seed in range(6):
        crop = augment(pair, settings(crop_size=[96, 160], yjitter_prob=1.0), 416, rng(seed))
        errors = {down: warping_error(rows_moved(crop, -down)).max() for down in range(-2, 3)}
        found.append(min(errors, key=errors.get))
        assert errors[found[-1]] < 2 * EXACT
        assert found[-1] == 0 or warping_error(crop).mean() > SWAPPED
    assert len(set(found)) > 2


def rows_moved(crop: Pair, down: int) -> Pair:
    """The right view moved by whole rows; rows that come from outside of the crop have no ground truth."""
    rows = np.arange(len(crop.right)) + down
    inside = (rows >= 0) & (rows < len(crop.right))
    right = crop.right[np.clip(rows, 0, len(crop.right) - 1)]
    return Pair(crop.left, right, np.where(inside[:, None], crop.disparity, np.float32(0)))


# -- the whole --------------------------------------------------------------------------------------------------------

ALL = {
    "do_flip": True,
    "hshift_prob": 0.5,
    "spatial_aug_prob": 1.0,
    "stretch_prob": 0.8,
    "h_flip_prob": 0.5,
    "v_flip_prob": 0.5,
    "crop_min_valid_disp_ratio": 0.5,
}


def test_all_geometry_together_keeps_the_equation():
    pairs = [scene(seed, 192, 320) for seed in range(3)]
    made = [augment(pairs[seed % 3], settings(**ALL), 416, rng(seed)) for seed in range(30)]
    assert all(one.left.shape == (96, 160, 3) and one.disparity.dtype == np.float32 for one in made)
    assert max(warping_error(one).mean() for one in made) < SWAPPED
    shifted = [replace(one, disparity=one.disparity + np.float32(2) * one.valid) for one in made]
    assert min(warping_error(one).mean() for one in shifted) > SWAPPED


@pytest.mark.parametrize(
    "key",
    [
        "h_flip_prob",
        "v_flip_prob",
        "hshift_prob",
        "yjitter_prob",
        "color_aug_prob",
        "eraser_aug_prob",
        "spatial_aug_prob",
    ],
)
def test_a_probability_is_that_of_its_change(key):
    """With it at 0 the pair is the bare crop, at 1 it is not, at 0.5 it is about half of the times."""
    pair = scene(0, 128, 192)
    others = {"do_flip": True, "h_flip_prob": 0.0, "v_flip_prob": 0.0, "crop_size": [128, 192], "min_scale": 0.3}
    strength = {"color_aug_brightness": 0.4} if key == "color_aug_prob" else {}

    def unchanged(probability: float, seed: int) -> bool:
        made = augment(pair, settings(**{**others, **strength, key: probability}), 416, rng(seed))
        if key == "color_aug_prob":  # here the change is that the views differ
            means = [np.mean(view, dtype=float) for view in (made.left, made.right, pair.left, pair.right)]
            return abs(means[0] / means[2] - means[1] / means[3]) < 0.01
        return np.array_equal(made.left, pair.left) and np.array_equal(made.right, pair.right)

    assert all(unchanged(0.0, seed) for seed in range(10))
    assert np.mean([unchanged(1.0, seed) for seed in range(40)]) < 0.35  # an offset of 0 rows or px changes nothing
    assert 0.3 < np.mean([unchanged(0.5, seed) for seed in range(60)]) < 0.8


def test_flips_need_their_switch():
    pair = scene(0, 64, 96)
    chosen = settings(crop_size=[64, 96], h_flip_prob=1.0, v_flip_prob=1.0)
    assert np.array_equal(augment(pair, chosen, 416, rng()).left, pair.left)


def test_equal_generators_give_equal_pairs():
    pair = scene(0, 192, 320)
    chosen = Augmentation(crop_size=[96, 160], do_flip=True)
    first, again, other = (augment(pair, chosen, 416, rng(seed)) for seed in (5, 5, 6))
    for name in ("left", "right", "disparity"):
        assert np.array_equal(getattr(first, name), getattr(again, name))
    assert not np.array_equal(first.left, other.left)


def test_the_padding_of_a_window_is_invalid():
    pair = scene(0, 64, 96)
    window = cut(pair, 20, 30, (70, 80))
    assert np.array_equal(window.left[:44, :66], pair.left[20:, 30:])
    assert (window.right[44:, :66] == pair.right[63, 30:]).all()
    assert not window.disparity[44:].any() and not window.disparity[:, 66:].any()
    assert pad(pair, (64, 96)) is pair
