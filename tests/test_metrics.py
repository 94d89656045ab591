"""What the metrics mean, and that no batching, order or number of ranks changes them."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from stereo_core.metrics import METRICS, StereoMetrics, disparity_metrics


def ten_line_script(prediction, gt, valid, max_disparity):
    """The definitions of INTERFACES, written once more in NumPy."""
    ok = valid & (gt > 0) & (gt < max_disparity)
    error = np.abs(prediction[ok].astype(np.float64) - gt[ok].astype(np.float64))
    return {
        "epe": error.mean(),
        "bp1": (error > 1).mean(),
        "bp2": (error > 2).mean(),
        "bp3": (error > 3).mean(),
        "d1": ((error > 3) & (error / gt[ok] > 0.05)).mean(),
        "rmse": np.sqrt((error**2).mean()),
    }


def images(count=7):
    """Maps of different sizes and shares of valid pixels."""
    rng = np.random.default_rng(5)
    for index in range(count):
        shape = (20 + 3 * index, 31 + 5 * index)
        gt = rng.uniform(-5, 130, shape).astype(np.float32)
        prediction = (gt + rng.normal(0, 3, shape)).astype(np.float32)
        yield prediction, gt, rng.random(shape) < (index + 1) / (count + 1)


def test_hand_computed():
    #                        exact  off by 1.5  3.5 of 100  3.5 of 10  masked  gt 0  gt at the limit
    gt = np.array([[10.0, 20.0, 100.0, 10.0, 10.0, 0.0, 128.0]])
    prediction = np.array([[10.0, 21.5, 96.5, 13.5, 90.0, 50.0, 1.0]])
    valid = np.array([[True, True, True, True, False, True, True]])
    row = disparity_metrics(prediction, gt, valid, 128)
    assert row == {
        "epe": pytest.approx(8.5 / 4),
        "bp1": 0.75,
        "bp2": 0.5,
        "bp3": 0.5,
        "d1": 0.25,  # 3.5 px of 100 px are below 5 %
        "rmse": pytest.approx(math.sqrt((1.5**2 + 2 * 3.5**2) / 4)),
        "pixels": 4,
    }


def test_thresholds_are_exclusive():
    gt = torch.full((1, 4), 20.0)
    row = disparity_metrics(gt + torch.tensor([0.0, 1.0, 2.0, 3.0]), gt, torch.ones(1, 4, dtype=torch.bool), 64)
    assert [row[name] for name in ("bp1", "bp2", "bp3", "d1")] == [0.5, 0.25, 0.0, 0.0]


def test_equals_the_script():
    for prediction, gt, valid in images():
        row = disparity_metrics(prediction, gt, valid, 100)
        expected = ten_line_script(prediction, gt, valid, 100)
        assert {name: row[name] for name in METRICS} == pytest.approx(expected, rel=1e-12)


def test_sums_are_float64():
    gt = np.full((2000, 2000), 50.0, np.float32)
    row = disparity_metrics(gt + np.float32(0.1), gt, np.ones(gt.shape, bool), 100)
    assert row["epe"] == pytest.approx(float(np.float32(50.1)) - 50, rel=1e-9)


@pytest.mark.parametrize("broken", [np.nan, np.inf])
def test_a_broken_prediction_does_not_hide(broken):
    gt = np.full((4, 4), 10.0)
    prediction = gt.copy()
    prediction[1, 2] = broken
    row = disparity_metrics(prediction, gt, np.ones(gt.shape, bool), 64)
    assert all(math.isnan(row[name]) for name in METRICS) and row["pixels"] == 16
    masked = disparity_metrics(prediction, gt, np.isfinite(prediction), 64)
    assert masked["epe"] == 0


def rows():
    return [disparity_metrics(*image, 100) for image in images()]


def test_macro_and_pixel_means():
    metrics = StereoMetrics()
    metrics.update(rows())
    result = metrics.compute()
    each = [ten_line_script(*image, 100) for image in images()]
    for name in METRICS:
        assert result[name] == pytest.approx(np.mean([row[name] for row in each]), rel=1e-12)
    # All pixels of all images as one long image.
    together = [np.concatenate([image[part].ravel() for image in images()]) for part in range(3)]
    for name, value in ten_line_script(*together, 100).items():
        assert result[f"{name}_pixel"] == pytest.approx(value, rel=1e-12)
    assert result["images"] == 7 and result["empty"] == 0
    assert result["pixels"] == sum(row["pixels"] for row in rows())


@pytest.mark.parametrize("cuts", [[7], [1] * 7, [3, 4], [2, 2, 2, 1]])
def test_batches_and_order_do_not_matter(cuts):
    whole, parts = StereoMetrics(), StereoMetrics()
    whole.update(rows())
    backwards = rows()[::-1]
    for size in cuts:
        parts.update([backwards.pop() for _ in range(size)] if size > 1 else [backwards.pop(0)])
    assert parts.compute() == pytest.approx(whole.compute(), rel=1e-14)


def test_pixels_of_a_large_data_set_are_counted_exactly():
    """Float32 has no 2**24 + 1."""
    row = disparity_metrics(np.ones((1, 1)), np.ones((1, 1)), np.ones((1, 1), bool), 64)
    metrics = StereoMetrics()
    metrics.update([row | {"pixels": 2**24}, row])
    assert metrics.compute()["pixels"] == 2**24 + 1


def test_images_without_a_valid_pixel_count_nowhere():
    metrics = StereoMetrics()
    metrics.update(rows())
    before = metrics.compute()
    nothing = disparity_metrics(np.ones((2, 2)), np.ones((2, 2)), np.zeros((2, 2), bool), 64)
    assert nothing["pixels"] == 0 and math.isnan(nothing["epe"])
    metrics.update([nothing])
    after = metrics.compute()
    assert after.pop("empty") == before.pop("empty") + 1
    assert after == before
    in_between = StereoMetrics()
    in_between.update([nothing, *rows(), nothing])
    result = in_between.compute()
    assert result.pop("empty") == 2 and result == before
