"""The loss is the documented formula, over the valid pixels only."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from stereo_core.training.losses import stereo_loss

MAX_DISPARITY = 50


def example(iters: int, seed: int = 0, dtype=torch.float64):
    """init (2, 1, 4, 6), disparities and gt (2, 1, 16, 24); some gt beyond the range, some masked."""
    generator = torch.Generator().manual_seed(seed)
    gt = torch.rand(2, 1, 16, 24, generator=generator, dtype=dtype) * 45
    gt[0, 0, :4, :8] = 51
    gt[1, 0, 8:, 20:] = -3
    valid = torch.rand(2, 1, 16, 24, generator=generator) < 0.7
    init = torch.rand(2, 1, 4, 6, generator=generator, dtype=dtype) * 12
    disparities = [torch.rand(2, 1, 16, 24, generator=generator, dtype=dtype) * 45 for _ in range(iters)]
    return init, disparities, gt, valid


def by_the_formula(init, disparities, gt, valid, gamma=0.9) -> float:
    """CONTRACT section 4, in NumPy, with the documented meaning of n = 1."""
    init, gt, valid = (x.numpy() for x in (init, gt, valid))
    keep = valid & (np.abs(gt) < MAX_DISPARITY)
    error = np.abs(init - gt[..., ::4, ::4] / 4)[keep[..., ::4, ::4]]
    loss = np.where(error < 1, 0.5 * error**2, error - 0.5).mean()
    n = len(disparities)
    weight = gamma ** (15 / (n - 1)) if n > 1 else 1
    for i, disparity in enumerate(disparities):
        loss += weight ** (n - 1 - i) * np.abs(disparity.numpy() - gt)[keep].mean()
    return loss


@pytest.mark.parametrize("iters", [1, 2, 5, 22])
def test_is_the_formula(iters):
    inputs = example(iters)
    assert stereo_loss(*inputs, MAX_DISPARITY).item() == pytest.approx(by_the_formula(*inputs), rel=1e-12)


@pytest.mark.parametrize("name", ["shared_train_vits_128x160_d128_it4", "shared_train_f64_vits_96x128_d128_it3"])
def test_weights_of_the_reference(shared, name):
    """The reference's own terms, weighted as here, give the reference's own loss."""
    info = json.loads(str(np.load(shared / "model" / "golden" / f"{name}.npz")["__meta__"]))["info"]
    target = torch.zeros(1, 1, 4, 4)
    disparities = [target + term for term in info["l1_terms"]]
    found = stereo_loss(torch.zeros(1, 1, 1, 1), disparities, target, target == 0, 1e6)
    assert found.item() + info["init_disp_loss"] == pytest.approx(info["loss"], rel=1e-6)


def test_one_iteration_trains_both_terms():
    """TAO's loss of one iteration leaves the L1 term out and has no gradient (defect 35)."""
    init, disparities, gt, valid = example(1)
    init.requires_grad_()
    disparities[0].requires_grad_()
    stereo_loss(init, disparities, gt, valid, MAX_DISPARITY).backward()
    keep = valid & (gt.abs() < MAX_DISPARITY)
    assert torch.allclose(disparities[0].grad.abs(), keep.double() / keep.sum())
    assert init.grad.abs().sum() > 0


def test_invalid_ground_truth_may_be_anything():
    init, disparities, gt, valid = example(3)
    disparities[0].requires_grad_()
    clean = stereo_loss(init, disparities, gt, valid, MAX_DISPARITY)
    for junk in (float("nan"), float("inf"), -1e30):
        dirty = torch.where(valid, gt, junk)
        loss = stereo_loss(init, disparities, dirty, valid, MAX_DISPARITY)
        loss.backward()
        assert loss.item() == clean.item()
        assert disparities[0].grad.isfinite().all()


def test_a_nan_marked_valid_is_left_out():
    init, disparities, gt, valid = example(2)
    holes, expected = gt.clone(), valid.clone()
    holes[0, 0, 5:9, 5:9] = float("nan")
    expected[0, 0, 5:9, 5:9] = False
    assert stereo_loss(init, disparities, holes, valid, MAX_DISPARITY) == stereo_loss(
        init, disparities, gt, expected, MAX_DISPARITY
    )


@pytest.mark.parametrize("edge", [MAX_DISPARITY, -MAX_DISPARITY])
def test_a_disparity_of_the_whole_range_is_left_out(edge):
    init, disparities, gt, valid = example(2)
    gt[0, 0, 5:9, 5:9] = edge
    expected = valid.clone()
    expected[0, 0, 5:9, 5:9] = False
    found, wanted = (stereo_loss(init, disparities, gt, mask, MAX_DISPARITY) for mask in (valid, expected))
    assert valid[0, 0, 5:9, 5:9].any() and found == wanted


def test_an_empty_mask_is_zero_with_zero_gradients():
    init, disparities, gt, valid = example(2)
    init.requires_grad_()
    disparities[1].requires_grad_()
    loss = stereo_loss(init, disparities, gt, torch.zeros_like(valid), MAX_DISPARITY)
    loss.backward()
    assert loss.item() == 0
    assert init.grad.abs().max() == 0 and disparities[1].grad.abs().max() == 0


def test_half_precision_is_summed_in_float32():
    """The sum over a crop overflows float16 at 65504."""
    gt = torch.zeros(1, 1, 256, 256)
    loss = stereo_loss(torch.ones(1, 1, 64, 64).half(), [gt.half() + 30], gt, gt == 0, MAX_DISPARITY)
    assert loss.dtype == torch.float32 and loss.item() == pytest.approx(30.5)


def test_shapes_that_do_not_fit_are_named():
    init, disparities, gt, valid = example(2)
    with pytest.raises(ValueError, match=r"\(2, 16, 24\)"):
        stereo_loss(init, disparities[:1], gt, valid[:, 0], MAX_DISPARITY)
    with pytest.raises(ValueError, match="at least one iteration"):
        stereo_loss(init, [], gt, valid, MAX_DISPARITY)
