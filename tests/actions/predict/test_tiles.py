"""A tiled prediction has no seams: every pixel comes from a tile that can see its match."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from stereo_core.actions.predict.tiles import tiled
from stereo_core.data.synthetic.planes import make_scene
from stereo_core.errors import SpecError


class Sighted:
    """Exact where the match lies inside the tile, nonsense where it does not, as no network could do better.

    The images it is given carry the truth: channel 0 the disparity, channel 1 the column in the whole image.
    """

    def __init__(self):
        self.sizes = []

    def __call__(self, left_B3HW, right_B3HW):
        assert torch.equal(left_B3HW[:, 1:], right_B3HW[:, 1:])  # one place in both images
        self.sizes.append(tuple(left_B3HW.shape[-2:]))
        disparity, column = left_B3HW[:, 0], left_B3HW[:, 1]
        first = column[..., :1]
        seen = (column - disparity >= first) | (first == 0)
        return torch.where(seen, disparity, torch.full_like(disparity, 1e4))


def image(height, width, most, seed=0):
    scene = make_scene(height, width, most, seed)
    column, row = np.meshgrid(np.arange(width), np.arange(height))
    return torch.from_numpy(np.stack([scene["disparity"], column, row]).astype(np.float32))[None]


@pytest.mark.parametrize(
    ("size", "tile", "overlap", "most", "tiles"),
    [
        ((64, 200), (64, 96), (0, 40), 35, 3),
        ((64, 97), (64, 96), (0, 40), 35, 2),
        ((150, 300), (64, 96), (16, 48), 42, 18),
        ((100, 260), (64, 96), (32, 72), 60, 24),  # several tiles lie over each other
        ((65, 90), (64, 96), (16, 16), 60, 2),  # narrower than a tile: all columns have their match
    ],
)
def test_no_seam_where_the_overlap_is_wide_enough(size, tile, overlap, most, tiles):
    whole = image(*size, most)
    predict = Sighted()
    found = tiled(predict, tile, overlap)(whole, whole)
    assert len(predict.sizes) == tiles
    assert set(predict.sizes) == {(min(size[0], tile[0]), min(size[1], tile[1]))}
    torch.testing.assert_close(found, whole[:, 0], rtol=1e-6, atol=0)


def test_an_image_that_fits_is_predicted_whole():
    whole = image(60, 90, 80)
    predict = Sighted()
    assert torch.equal(tiled(predict, (64, 96), (16, 16))(whole, whole), whole[:, 0])
    assert predict.sizes == [(60, 90)]


def test_tiles_that_differ_fade_into_each_other():
    """Each tile is off by its own amount: from row to row and column to column the step stays small."""
    calls = iter(range(4))
    black = torch.zeros(1, 3, 96, 128)
    found = tiled(lambda left, _: left[:, 0] + next(calls), (64, 96), (32, 64))(black, black)[0]
    assert (found[0, 0], found[0, -1], found[-1, 0], found[-1, -1]) == (0, 1, 2, 3)
    rows, columns = found.diff(dim=0), found.diff(dim=1)
    assert rows.min() >= 0 and columns.min() >= 0 and rows.max() < 0.15 and columns.max() < 0.3


def test_batches_are_kept_apart():
    whole = torch.cat([image(64, 150, 30, seed=seed) for seed in (1, 2)])
    found = tiled(Sighted(), (64, 96), (0, 40))(whole, whole)
    torch.testing.assert_close(found, whole[:, 0], rtol=1e-6, atol=0)


@pytest.mark.parametrize("overlap", [(64, 16), (16, 96), (16, 200)])
def test_tiles_that_are_all_overlap_are_refused(overlap):
    with pytest.raises(SpecError, match="tile_overlap"):
        tiled(Sighted(), (64, 96), overlap)
