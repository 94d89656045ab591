"""`model.infer`: arrays and tensors as an engine takes them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from stereo_core.models import create_model
from stereo_core.models.infer import infer


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return create_model(preset="tiny", valid_iters=2)


@pytest.fixture(scope="module")
def pair():
    return tuple(np.random.default_rng(1).integers(0, 256, (2, 2, 40, 70, 3)).astype(np.uint8))


def test_every_form_of_a_pair_gives_the_same(model, pair):
    left, right = pair
    both = model.infer(left, right)
    assert both.shape == (2, 40, 70) and both.dtype == np.float32
    tensors = [torch.from_numpy(x).permute(0, 3, 1, 2) for x in pair]
    with torch.no_grad():
        forward = model.eval()(*(x.float() for x in tensors))[:, 0].numpy()
    np.testing.assert_allclose(both, forward, atol=1e-4)
    one = model.infer(left[0], right[0])
    assert one.shape == (40, 70)
    np.testing.assert_allclose(one, both[0], atol=1e-3)
    given_as_float = model.infer(left.astype(np.float64), right.astype(np.float32))
    np.testing.assert_allclose(given_as_float, both, atol=1e-4)
    from_tensors = model.infer(*tensors)
    assert isinstance(from_tensors, torch.Tensor) and not from_tensors.is_inference()
    np.testing.assert_allclose(from_tensors.numpy(), both, atol=1e-4)


def test_grey_is_equal_channels(model, pair):
    left, right = (x[0, ..., 0] for x in pair)
    rgb = model.infer(*(np.repeat(x[..., None], 3, axis=-1) for x in (left, right)))
    np.testing.assert_array_equal(model.infer(left, right), rgb)
    tensors = (torch.from_numpy(x)[None, None] for x in (left, right))
    np.testing.assert_allclose(model.infer(*tensors)[0].numpy(), rgb, atol=1e-4)


@pytest.mark.parametrize("training", [True, False])
def test_the_mode_stays(model, pair, training):
    model.train(training)
    model.infer(pair[0][0], pair[1][0])
    assert model.training == training


def test_other_images_are_refused(model, pair):
    left, right = (x[0] for x in pair)
    for wrong in ((left, right[:-1]), (left[..., :2], right[..., :2]), (left.astype(int), right.astype(int)),
                  (left.tolist(), right.tolist()), (left[:0], right[:0]),
                  (torch.zeros(3, 40, 70), torch.zeros(3, 40, 70))):  # fmt: skip
        with pytest.raises(ValueError, match=r"images must be|same size"):
            model.infer(*wrong)


def test_tensors_in_0_to_1_are_refused():
    """A common mistake: the network would see black images."""
    images = torch.rand(1, 3, 32, 32)
    with pytest.raises(ValueError, match=r"largest value of left is .*multiply by 255"):
        infer(lambda left, right: left[:, 0], "cpu", images, images)
