"""What the module itself refuses, and what it logs."""

from __future__ import annotations

from typing import get_args

import pytest
import torch
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
    with pytest.raises(DataError, match="no pixel of epoch 1"):
        fit([out_of_range(seed) for seed in range(2)])


def test_an_epoch_with_a_few_pixels_of_ground_truth_is_none(fit):
    batches = [out_of_range(seed) for seed in range(2)]
    batches[1]["disparity"][..., :8, :8] = 5
    fit(batches)


def epoch_loss(module) -> float:
    return module.trained_by.callback_metrics["train_loss_epoch"].item()


def test_a_batch_without_ground_truth_has_no_part_in_the_loss_of_its_epoch(fit):
    """It counted as a loss of 0, and halved the epoch's."""
    alone = epoch_loss(fit([make_batch(0)]))
    assert alone > 0 and epoch_loss(fit([make_batch(0), out_of_range(1)])) == alone


def gradient_norms(fit, batches: list, **keys) -> list[float]:
    """The gradients' norm at each optimizer step, before it is clipped."""
    norms = []

    def note(module) -> None:
        clip = module.configure_gradient_clipping

        def noted(optimizer, *arguments, **options) -> None:
            grads = [p.grad for p in module.parameters() if p.grad is not None]
            norms.append(float(torch.nn.utils.get_total_norm(grads)))
            clip(optimizer, *arguments, **options)

        module.configure_gradient_clipping = noted

    fit(batches, note, **keys)
    return norms


def test_the_last_step_of_an_epoch_is_no_smaller_for_having_fewer_batches(fit):
    """Lightning divides by train.accumulate however few batches are left: the step was a half or less of what it is."""
    [alone] = gradient_norms(fit, [make_batch(0)])
    assert gradient_norms(fit, [make_batch(0)], accumulate=4) == pytest.approx([alone], rel=1e-5)
    batches, slow = [make_batch(0)] * 3, {"optimizer": "SGD", "lr": 1e-6}
    last = gradient_norms(fit, batches, optim=slow)[2]
    assert gradient_norms(fit, batches, optim=slow, accumulate=2)[1] == pytest.approx(last, rel=0.1)  # was half of it


def test_a_source_whose_crops_teach_nothing_is_named_once(fit, caplog):
    batches = [make_batch(0), out_of_range(1), out_of_range(2)]
    for batch in batches[1:]:
        batch["source"] += 1
    fit(batches)
    [said] = [record.getMessage() for record in caplog.records if "do not train the network" in record.getMessage()]
    assert said.startswith("dataset.train_dataset.data_sources[1] (")
    assert "in epoch 1: 2 of 2. " in said, "as the log counts"
    assert "augmentation.hshift_prob takes up to 10 px off the disparities" in said


def test_a_sample_without_ground_truth_weighs_nothing_beside_one_with(fit):
    one, none = make_batch(0), out_of_range(1)
    both = {
        name: value + none[name] if name == "path" else torch.cat([value, none[name]]) for name, value in one.items()
    }
    alone, after = epoch_loss(fit([both])), make_batch(2)
    first = fit([both, after])
    assert first.trained_by.callback_metrics["train_loss_step"].item() == pytest.approx(
        2 * epoch_loss(first) - alone, rel=1e-5
    ), "two samples teach, so the epoch's loss is the mean of the two steps, not (2 * first + second) / 3"


def test_every_metric_can_be_monitored():
    known = {f"val/{name}{suffix}" for name in METRICS for suffix in ("", "_pixel")}
    assert set(get_args(Monitor)) == known | {"val_loss", "val/loss"}
