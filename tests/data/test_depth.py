"""Depth and point clouds, against formulas written out by hand and files read back by hand."""

from __future__ import annotations

import resource

import cv2
import numpy as np
import pytest

from stereo_core.data.calibration import Calibration
from stereo_core.data.codecs import read_disparity
from stereo_core.data.depth import depth_from_disparity, seen_by_both, write_depth_png, write_point_cloud
from stereo_core.data.images import read_mask


def test_depth_of_a_known_camera():
    """Middlebury's Motorcycle at quarter size: z = baseline * f / (d + doffs)."""
    disparity = np.array([[40.0, 0.0, -3.0, np.nan, np.inf]], np.float32)
    depth = depth_from_disparity(disparity, focal=994.978, baseline=0.193001, doffs=32.778)
    assert depth.dtype == np.float32
    assert depth[0, 0] == pytest.approx(0.193001 * 994.978 / 72.778, rel=1e-6)
    assert depth[0, 1:].tolist() == [0, 0, 0, 0]


def test_points_behind_the_camera_have_no_depth():
    assert depth_from_disparity(np.array([[5.0]]), 100, 0.1, doffs=-6)[0, 0] == 0


def test_depth_png_is_millimetres(tmp_path):
    depth = np.array([[1.2344, 0.0, 65.535, 65.5361, 300.0, 0.0004]], np.float32)
    assert write_depth_png(tmp_path / "a b" / "d.png", depth) == 3
    stored = cv2.imread(str(tmp_path / "a b" / "d.png"), cv2.IMREAD_UNCHANGED)
    assert stored.dtype == np.uint16
    assert stored.tolist() == [[1234, 0, 65535, 0, 0, 0]]  # what does not fit is unknown, not near


def read_ply(path):
    header, _, body = path.read_bytes().partition(b"end_header\n")
    count = next(int(line.split()[2]) for line in header.splitlines() if line.startswith(b"element vertex"))
    assert b"format binary_little_endian 1.0" in header
    names = [line.split()[1:] for line in header.splitlines() if line.startswith(b"property")]
    assert names == [[b"float", b"x"], [b"float", b"y"], [b"float", b"z"]] + [
        [b"uchar", c] for c in (b"red", b"green", b"blue")
    ]
    assert len(body) == count * 15
    return np.frombuffer(body, np.dtype([("xyz", "<f4", 3), ("rgb", "u1", 3)]))


def test_point_cloud(tmp_path):
    depth = np.zeros((3, 4), np.float32)
    depth[1, 2], depth[2, 0] = 2.0, 5.0
    colour = np.arange(36, dtype=np.uint8).reshape(3, 4, 3)
    write_point_cloud(tmp_path / "c.ply", depth, colour, Calibration(10.0, 0.1, cx=1.5, cy=1.0, focal_y=20.0))
    points = read_ply(tmp_path / "c.ply")
    np.testing.assert_allclose(points["xyz"], [[0.1, 0.0, 2.0], [-0.75, 0.25, 5.0]], rtol=1e-6)
    assert points["rgb"].tolist() == [colour[1, 2].tolist(), colour[2, 0].tolist()]


def test_large_point_cloud_is_whole(tmp_path):
    depth = np.random.default_rng(0).uniform(1, 9, (540, 960)).astype(np.float32)
    write_point_cloud(
        tmp_path / "c.ply", depth, np.zeros((540, 960, 3), np.uint8), Calibration(500.0, 0.1).of_size(540, 960)
    )
    points = read_ply(tmp_path / "c.ply")
    assert len(points) == depth.size
    np.testing.assert_array_equal(points["xyz"][:, 2], depth.ravel())


def test_what_only_the_left_camera_sees():
    """A near bar hides as much of the wall as it is wide; the wall's first 2 px leave the right image."""
    disparity = np.full((3, 40), 2.0, np.float32)
    disparity[1, 20:24] = 8
    disparity[2, 5:8] = [np.nan, np.inf, 0]
    expected = np.ones((3, 40), bool)
    expected[:, :2] = expected[1, 14:18] = expected[2, 5:8] = False
    np.testing.assert_array_equal(seen_by_both(disparity), expected)


def test_what_only_the_left_camera_of_motorcycle_sees(shared):
    folder = shared / "data/Middlebury/MiddEval3/trainingQ/Motorcycle"
    disparity, known = read_disparity(folder / "disp0GT.pfm")
    visible = read_mask(folder / "mask0nocc.png")
    seen = seen_by_both(disparity)
    assert seen[known & visible].mean() > 0.99 and seen[known & ~visible].mean() < 0.1


def test_a_point_cloud_that_the_disk_cannot_hold_is_named(tmp_path):
    """NumPy's own writing would say `8100 requested and 1000 written`."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(OSError, match=r"File too large: '.*c\.ply'"):
            depth, colours = np.ones((20, 27), np.float32), np.zeros((20, 27, 3), np.uint8)
            write_point_cloud(tmp_path / "c.ply", depth, colours, Calibration(50.0, 0.1).of_size(20, 27))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not list(tmp_path.iterdir())
