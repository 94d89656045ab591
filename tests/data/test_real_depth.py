"""Metric depth with every calibration of ../shared/data, against figures worked out by hand."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from stereo_core.data.calibration import read_calibration
from stereo_core.data.codecs import read_disparity
from stereo_core.data.depth import depth_from_disparity, write_depth_png, write_point_cloud

MOTORCYCLE = "Middlebury/MiddEval3/trainingQ/Motorcycle"
PLAYGROUND = "ETH3D/two_view_training/playground_1l"


@pytest.mark.parametrize(
    ("file", "size", "disparity", "metres", "point"),
    [
        # 999.421 px * 0.193001 m = 192.889252 px m; (40 + 32.778) px; pixel (394.182, 352.932): 100 px from the centre
        (f"{MOTORCYCLE}/calib.txt", (497, 741), 40.0, 2.650379, (0.265191, 0.265191)),
        # 542.019 px * 0.0595549 m = 32.279887 px m; 10 px, no doffs
        (f"{PLAYGROUND}/calib.txt", (490, 941), 10.0, 3.227989, (0.595549, 0.595549)),
        # 754.668091 px * 0.063 m = 47.544090 px m; 30 px
        ("NoGT/FoundationStereo/K.txt", (540, 960), 30.0, 1.584803, (0.21, 0.21)),
    ],
)
def test_depth_is_what_a_hand_calculation_gives(shared, tmp_path, file, size, disparity, metres, point):
    """Of a plane that faces the camera; and where a pixel 100 px right of the centre and below it lies in space."""
    camera = read_calibration(shared / "data" / file).of_size(*size)
    disparity_HW = np.full(size, disparity, np.float32)
    depth_HW = depth_from_disparity(disparity_HW, camera.focal, camera.baseline, camera.doffs)
    np.testing.assert_allclose(depth_HW, metres, rtol=1e-6)
    assert write_depth_png(tmp_path / "depth.png", depth_HW) == 0
    assert (cv2.imread(str(tmp_path / "depth.png"), cv2.IMREAD_UNCHANGED) == round(1000 * metres)).all()
    write_point_cloud(tmp_path / "cloud.ply", depth_HW, np.zeros((*size, 3), np.uint8), camera)
    body = (tmp_path / "cloud.ply").read_bytes().partition(b"end_header\n")[2]
    points_HW = np.frombuffer(body, np.dtype([("xyz", "<f4", 3), ("rgb", "u1", 3)]))["xyz"].reshape(*size, 3)
    row, column = round(camera.cy) + 100, round(camera.cx) + 100
    beside = (column - camera.cx - 100, row - camera.cy - 100)  # of a whole pixel
    expected = [at + off * metres / camera.focal for at, off in zip(point, beside, strict=True)]
    np.testing.assert_allclose(points_HW[row, column], [*expected, metres], rtol=1e-5)


@pytest.mark.parametrize(
    ("ground_truth", "file", "nearest", "farthest"),
    [
        # 192.889252 / (62.9 + 32.778) and / (9.2 + 32.778), the README's range of disparities
        (f"{MOTORCYCLE}/disp0GT.pfm", f"{MOTORCYCLE}/calib.txt", 2.016, 4.595),
        # 32.279887 / 20 and / 2.1
        ("ETH3D/two_view_training_gt/playground_1l/disp0GT.pfm", f"{PLAYGROUND}/calib.txt", 1.614, 15.37),
    ],
)
def test_ground_truth_in_metres(shared, ground_truth, file, nearest, farthest):
    disparity_HW, _ = read_disparity(shared / "data" / ground_truth)
    camera = read_calibration(shared / "data" / file).of_size(*disparity_HW.shape)
    depth_HW = depth_from_disparity(disparity_HW, camera.focal, camera.baseline, camera.doffs)
    known = depth_HW[depth_HW > 0]
    assert known.min() == pytest.approx(nearest, rel=0.01) and known.max() == pytest.approx(farthest, rel=0.03)
    assert (known.size == (np.isfinite(disparity_HW) & (disparity_HW > 0)).sum()) and known.size > 200_000
