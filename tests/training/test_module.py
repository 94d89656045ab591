"""What the module itself refuses, and what it logs."""

from __future__ import annotations

from typing import get_args

import pytest
from batches import make_batch

from stereo_core.errors import DataError
from stereo_core.metrics import METRICS
from stereo_core.spec.train import Monitor


def out_of_range(seed: int) -> dict:
    """A batch of which no pixel counts: a wrong coding or mask, say; its loss is 0."""
    batch = make_batch(seed)
    batch["disparity"] += 64
    return batch


def test_an_epoch_without_ground_truth_is_an_error(fit):
    with pytest.raises(DataError, match="not one pixel of epoch 0"):
        fit([out_of_range(seed) for seed in range(2)])


def test_an_epoch_with_a_few_pixels_of_ground_truth_is_none(fit):
    batches = [out_of_range(seed) for seed in range(2)]
    batches[1]["disparity"][..., :8, :8] = 5
    fit(batches)


def test_every_metric_can_be_monitored():
    known = {f"val/{name}{suffix}" for name in METRICS for suffix in ("", "_pixel")}
    assert set(get_args(Monitor)) == known | {"val_loss", "val/loss"}
