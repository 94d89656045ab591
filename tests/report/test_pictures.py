"""Colours mean the same in every picture that is to be compared."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from stereo_core.report.pictures import (
    ERROR_SCALE_PX,
    STRIP,
    UNKNOWN,
    Scale,
    colour_disparity,
    error_map,
    labelled,
    panel,
    sample_panel,
    scale_of,
    stacked,
)


def turbo(level: int) -> list[int]:
    """RGB of one level of OpenCV's map."""
    return cv2.applyColorMap(np.full((1, 1), level, np.uint8), cv2.COLORMAP_TURBO)[0, 0, ::-1].tolist()


def test_disparity_scale_is_fixed():
    picture = colour_disparity(np.array([[32.0, 64.0, 100.0]], np.float32), Scale(64))
    assert picture[0].tolist() == [turbo(128), turbo(255), turbo(255)]


def test_a_scale_may_start_above_0():
    picture = colour_disparity(np.array([[0.0, 16.0, 32.0, 48.0, 64.0]], np.float32), Scale(64, 32))
    assert picture[0].tolist() == [list(UNKNOWN), turbo(0), turbo(0), turbo(128), turbo(255)]


def test_unknown_has_a_colour_that_no_value_has():
    picture = colour_disparity(np.array([[0.0, -1.0, np.nan, np.inf]], np.float32), Scale(64))
    assert (picture == UNKNOWN).all()
    assert list(UNKNOWN) not in [turbo(level) for level in range(256)]


def test_error_map():
    gt = np.full((1, 4), 20.0, np.float32)
    prediction = gt + np.array([[0.0, -4.0, 50.0, 3.0]], np.float32)
    picture = error_map(prediction, gt, np.array([[True, True, True, False]]), maximum=8)
    assert picture[0].tolist() == [turbo(0), turbo(128), turbo(255), list(UNKNOWN)]


@pytest.mark.parametrize(
    ("low", "high", "scale"),
    [
        (1, 3, Scale(8)),
        (1, 9, Scale(12)),
        (5, 60, Scale(64)),
        (5, 90, Scale(96)),
        (3, 120, Scale(128)),
        (40, 60, Scale(64, 32)),
        (30, 31, Scale(32, 16)),
    ],
)
def test_a_scale_fits_its_disparities_and_is_round(low, high, scale):
    values = np.linspace(low, high, 1000)
    values[:4] = 0.0, -3.0, np.nan, np.inf
    values[4:8] = 500.0  # a few outliers do not count
    assert scale_of(values) == scale


def test_ground_truth_makes_the_scale_in_train_and_evaluate():
    """So a prediction that is far off has one colour in both; without ground truth the prediction must serve."""
    truth, prediction = np.full((4, 4), 20.0), np.full((4, 4), 100.0)
    assert scale_of(truth, prediction) == Scale(24, 12)
    assert scale_of(np.zeros((4, 4)), prediction) == scale_of(None, prediction) == Scale(128, 64)
    assert scale_of(None, np.zeros((4, 4))).end > 0


def cells(picture, height, width):
    """The pictures of a panel in a row, without titles, scales and enlargement."""
    whole = picture[STRIP:-STRIP:2, ::2]
    assert whole.shape == (height, 4 * width, 3)
    return np.split(whole, 4, axis=1)


def test_panel_shares_one_scale():
    """Equal disparities have equal colours in ground truth and prediction, though the prediction's range is larger."""
    gt = np.array([[10.0, 20.0], [40.0, 5.0]], np.float32)
    prediction = np.array([[10.0, 20.0], [200.0, 5.0]], np.float32)
    left = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    picture = panel(left, prediction, gt, np.array([[True, False], [True, True]]))
    image, truth, predicted, error = cells(picture, 2, 2)
    assert (image == left).all()
    assert truth[0, 0].tolist() == predicted[0, 0].tolist() == turbo(round(255 * 10 / 48))
    assert truth[0, 1].tolist() == error[0, 1].tolist() == list(UNKNOWN)
    assert predicted[0, 1].tolist() == turbo(round(255 * 20 / 48))
    assert predicted[1, 0].tolist() == error[1, 0].tolist() == turbo(255)


def test_wide_panels_are_two_by_two():
    wide = np.full((100, 400), 5.0, np.float32)
    picture = panel(np.zeros((100, 400, 3), np.uint8), wide, wide, wide > 0)
    assert picture.shape == (2 * (100 + 2 * STRIP), 2 * 400, 3)


def test_titles_and_scales_stand_in_the_picture():
    """The scale's colours are those of the picture; a title and figures are written in dark on white."""
    picture = labelled(colour_disparity(np.full((64, 400), 8.0, np.float32), Scale(8)), "disparity", Scale(8))
    assert picture.shape == (64 + 2 * STRIP, 400, 3)
    assert picture[-STRIP, -1].tolist() == picture[STRIP, 0].tolist() == turbo(255)
    for strip in (picture[:STRIP], picture[-STRIP + 8 :]):
        assert strip.max() == 255 and strip.min() < 60
    assert (labelled(np.zeros((64, 400, 3), np.uint8), "left")[-STRIP:] == 255).all(), "an image has no scale"
    assert ERROR_SCALE_PX == 8


def test_pictures_of_other_widths_stand_below_each_other():
    picture = stacked([np.zeros((2, 3, 3), np.uint8), np.zeros((1, 5, 3), np.uint8)])
    assert picture.shape == (3, 5, 3) and (picture[:2, 3:] == 255).all() and not picture[2].any()


def test_sample_panel_draws_the_same_rows_in_both_images():
    left, right = np.full((16, 4, 3), 10, np.uint8), np.full((16, 4, 3), 20, np.uint8)
    disparity = np.full((16, 4), 12, np.float32)
    valid = np.ones((16, 4), bool)
    valid[:, 3] = False
    labelled_picture = sample_panel(left, right, disparity, valid)
    assert labelled_picture[:STRIP].min() < 60 and labelled_picture[-STRIP + 8 :].min() < 60, "titles, and a scale"
    picture = np.hstack(cells(labelled_picture, 16, 4))
    yellow = [(picture[:, column] == (255, 255, 0)).all(1).nonzero()[0].tolist() for column in range(8)]
    assert yellow == [[2, 4, 6, 8, 10, 12, 14]] * 8
    assert picture[1, 0].tolist() == [10] * 3 and picture[1, 4].tolist() == [20] * 3
    assert picture[0, 8].tolist() == turbo(255) and picture[0, 11].tolist() == list(UNKNOWN)
    assert picture[0, 12].tolist() == [255] * 3 and picture[0, 15].tolist() == [0] * 3
    assert (left == 10).all()  # the sample itself stays as it is
