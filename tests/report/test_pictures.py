"""Colours mean the same in every picture that is to be compared."""

from __future__ import annotations

import cv2
import numpy as np

from stereo_core.report.pictures import colour_disparity, disparity_range, error_map, panel, sample_panel


def turbo(level: int) -> list[int]:
    """RGB of one level of OpenCV's map."""
    return cv2.applyColorMap(np.full((1, 1), level, np.uint8), cv2.COLORMAP_TURBO)[0, 0, ::-1].tolist()


def test_disparity_scale_is_fixed():
    picture = colour_disparity(np.array([[32.0, 64.0, 100.0]], np.float32), 64)
    assert picture[0].tolist() == [turbo(128), turbo(255), turbo(255)]


def test_unknown_is_black():
    picture = colour_disparity(np.array([[0.0, -1.0, np.nan, np.inf]], np.float32), 64)
    assert not picture.any()


def test_error_map():
    gt = np.full((1, 4), 20.0, np.float32)
    prediction = gt + np.array([[0.0, -4.0, 50.0, 3.0]], np.float32)
    picture = error_map(prediction, gt, np.array([[True, True, True, False]]), maximum=8)
    assert picture[0].tolist() == [turbo(0), turbo(128), turbo(255), [0, 0, 0]]


def test_panel_shares_one_scale():
    """Equal disparities have equal colours in ground truth and prediction, though the prediction's range is larger."""
    gt = np.array([[10.0, 20.0, 40.0]], np.float32)
    prediction = np.array([[10.0, 20.0, 200.0]], np.float32)
    left = np.arange(9, dtype=np.uint8).reshape(1, 3, 3)
    picture = panel(left, prediction, gt, np.array([[True, False, True]]))
    assert picture.shape == (1, 12, 3)
    assert (picture[:, :3] == left).all()
    assert picture[0, 3].tolist() == picture[0, 6].tolist() == turbo(64)
    assert picture[0, 4].tolist() == [0, 0, 0]  # no ground truth there
    assert picture[0, 7].tolist() == turbo(128)
    assert picture[0, 8].tolist() == turbo(255)


def test_range_without_ground_truth():
    assert disparity_range(np.array([[np.nan, 3.5, np.inf]])) == 3.5
    assert disparity_range(np.zeros((2, 2))) == 1
    picture = panel(np.zeros((1, 2, 3), np.uint8), np.array([[5.0, 10.0]]), np.zeros((1, 2)), np.zeros((1, 2), bool))
    assert picture[0, 5].tolist() == turbo(255)


def test_panel_with_a_scale_of_its_own():
    gt = np.array([[10.0, 40.0]], np.float32)
    picture = panel(np.zeros((1, 2, 3), np.uint8), gt, gt, np.ones((1, 2), bool), maximum=80)
    assert picture[0, 3].tolist() == picture[0, 5].tolist() == turbo(128)


def test_sample_panel_draws_the_same_rows_in_both_images():
    left, right = np.full((16, 4, 3), 10, np.uint8), np.full((16, 4, 3), 20, np.uint8)
    disparity = np.full((16, 4), 32, np.float32)
    valid = np.ones((16, 4), bool)
    valid[:, 3] = False
    picture = sample_panel(left, right, disparity, valid, 64)
    yellow = [(picture[:, column] == (255, 255, 0)).all(1).nonzero()[0].tolist() for column in range(8)]
    assert yellow == [[2, 4, 6, 8, 10, 12, 14]] * 8
    assert picture[1, 0].tolist() == [10] * 3 and picture[1, 4].tolist() == [20] * 3
    assert picture[0, 8].tolist() == turbo(128) and picture[0, 11].tolist() == [0] * 3
    assert picture[0, 12].tolist() == [255] * 3 and picture[0, 15].tolist() == [0] * 3
    assert (left == 10).all()  # the sample itself stays as it is
