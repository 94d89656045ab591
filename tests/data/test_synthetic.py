"""Rich scenes: training on them, and every figure measured on them, rests on their disparity being exact."""

from __future__ import annotations

from dataclasses import replace
from itertools import islice

import numpy as np
import pytest
import torch

from stereo_core.data.synthetic.layout import KINDS, draw_layout
from stereo_core.data.synthetic.render import render
from stereo_core.data.synthetic.stream import Stream

CPU = torch.device("cpu")
STREAMS = [
    Stream(96, 160, (5, 40), seed=1),
    Stream(80, 300, (40, 190), seed=2),
    Stream(65, 97, (2, 12), seed=3),
    Stream(64, 700, (300, 400), seed=4),
]


def warp(right: np.ndarray, disparity: np.ndarray) -> np.ndarray:
    """The left view from the right one: linear interpolation at x - disparity."""
    height, width = disparity.shape
    columns = np.arange(width)
    out = np.empty(right.shape)
    for y in range(height):
        for channel in range(3):
            out[y, :, channel] = np.interp(columns - disparity[y].astype(np.float64), columns, right[y, :, channel])
    return out


@pytest.mark.parametrize("stream", STREAMS, ids=str)
def test_the_warped_right_image_is_the_left_one_at_visible_pixels(stream):
    shifted, shares = [], []
    for number in range(8):
        made = stream.scene(number)
        visible = made["visible"]
        error = np.abs(warp(made["right"], made["disparity"]) - made["left"])[visible]
        # half a level is the rounding of the left image, the rest that of float32 disparities
        assert error.max() <= 0.501
        wrong = np.abs(warp(made["right"], made["disparity"] + 0.5) - made["left"])[visible]
        shifted.append(np.quantile(wrong, 0.95))
        shares.append(visible.mean())
    assert np.median(shifted) > 2  # half a pixel off shows
    assert min(shares) > 0.3 and max(shares) < 1


@pytest.mark.parametrize("stream", STREAMS, ids=str)
def test_disparity_is_dense_sub_pixel_and_in_the_streams_range(stream):
    for number in range(8):
        disparity = stream.scene(number)["disparity"].astype(np.float64)
        assert disparity.min() > 0 and disparity.max() < stream.disparity[1]
        assert np.abs(disparity * 1000 - np.rint(disparity * 1000)).max() < 0.02  # float32 at 400 px
        if disparity.max() - disparity.min() > 2:
            assert len(np.unique(np.rint(disparity % 1 * 10))) == 11


def test_a_hidden_pixel_lies_behind_what_the_right_camera_sees_there():
    """Seen from the right, by the other view's disparity: a visible point is met again, a hidden one covered."""
    layouts = [draw_layout(96, 160, 40, np.random.default_rng(seed)) for seed in range(6)]
    made = render(layouts, 96, 160, CPU)
    for d, right_d, visible in zip(made.disparity_BHW, made.right_disparity_BHW, made.visible_BHW, strict=True):
        place = torch.arange(160) - d
        inside = (place >= 0) & (place <= 159)
        assert not visible[~inside].any()
        low, high = (right_d.gather(1, side.long().clamp(0, 159)) for side in (place.floor(), place.ceil()))
        met = ((low - d).abs() < 1) & ((high - d).abs() < 1)
        assert (met | ~visible).float().mean() > 0.995  # all but steep surfaces
        covered = torch.maximum(low, high) > d + 0.5
        hidden = inside & ~visible
        # The rest of the hidden pixels stand at an edge, one of the two right pixels beside them on another surface.
        assert hidden.any() and (covered[hidden].float().mean() > 0.3)
        assert not (covered & visible & ((low - high).abs() < 0.5)).any()


def test_nothing_is_seen_through_a_nearer_surface():
    """Each surface drawn alone, the nearest of them at each pixel is what the whole scene shows."""
    layout = draw_layout(48, 64, 30, np.random.default_rng(5))
    made = render([layout], 48, 64, CPU)
    alone = []
    for place in np.flatnonzero(layout.present):
        only = np.zeros(len(KINDS), bool)
        only[place] = True
        scene = render([replace(layout, present=only)], 48, 64, CPU)
        alone.append((scene.disparity_BHW[0], scene.right_disparity_BHW[0]))
    left, right = (torch.stack(list(maps)).amax(0) for maps in zip(*alone, strict=True))
    assert torch.equal(left, made.disparity_BHW[0])
    assert torch.equal(right, made.right_disparity_BHW[0])


def test_a_batch_holds_the_scenes_it_names():
    """One scene's windows, surfaces and paint leave the others of its batch alone."""
    stream = STREAMS[0]
    batch = stream.batch([3, 0, 7], CPU)
    for item, number in enumerate((3, 0, 7)):
        scene = stream.scene(number)
        assert np.abs(batch["disparity"][item, 0].numpy() - scene["disparity"]).max() < 0.0021
        differs = np.abs(batch["left"][item].permute(1, 2, 0).numpy() - scene["left"]) > 1
        assert differs.mean() < 0.002  # the last bits of sines, where threads part the pixels


@pytest.mark.parametrize("appearance", [0.0, 1.0])
def test_a_number_is_a_scene(appearance):
    stream = replace(STREAMS[0], appearance=appearance)
    one, same, next_one = stream.scene(5), stream.scene(5), stream.scene(6)
    for name in one:
        assert np.array_equal(one[name], same[name])
        assert not np.array_equal(one[name], next_one[name])
    assert not np.array_equal(one["left"], replace(stream, seed=9).scene(5)["left"])


def test_cameras_that_differ_change_the_images_alone():
    for number in range(6):
        plain, taken = STREAMS[0].scene(number), replace(STREAMS[0], appearance=1.0).scene(number)
        assert np.array_equal(plain["disparity"], taken["disparity"])
        assert np.array_equal(plain["visible"], taken["visible"])
        error = np.abs(warp(taken["right"], taken["disparity"]) - taken["left"])[taken["visible"]]
        assert error.mean() > 0.3


def test_a_stream_goes_on_where_it_was_left():
    stream = replace(STREAMS[2], appearance=1.0)
    whole = list(islice(stream.batches(2, CPU), 4))
    rest = list(islice(stream.batches(2, CPU, start=4), 2))
    for expected, had in zip(whole[2:], rest, strict=True):
        for name in expected:
            assert torch.equal(expected[name], had[name])


def test_all_of_them_occur():
    """Every outline and background, and scenes from nearly empty to crowded."""
    layouts = [draw_layout(96, 160, 40, np.random.default_rng(seed)) for seed in range(60)]
    present = np.stack([layout.present for layout in layouts])
    assert present[:, 1:].any(axis=0).all()
    counts = present.sum(axis=1)
    assert counts.min() < 8 and counts.max() > 25


@pytest.mark.gpu
def test_a_gpu_draws_the_same_scenes():
    stream = STREAMS[0]
    batch, beside = stream.batch(range(4), torch.device("cuda")), next(stream.batches(4, torch.device("cuda")))
    expected = stream.batch(range(4), CPU)
    for name in ("left", "right", "disparity"):
        torch.cuda.synchronize()
        assert torch.equal(batch[name], beside[name])
        assert ((batch[name].cpu() - expected[name]).abs() > 1).float().mean() < 0.002
