"""Resizing keeps disparity true, and the walk over a data set loses nothing and hides nothing."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from stereo_core.actions.predict.predictor import Predictor, engine_device, padded, predictions, stretched
from stereo_core.data.synthetic.planes import make_scene
from stereo_core.overlap import WAITING
from stereo_core.spec.predict import Inference


class Oracle:
    """Returns the true disparity of whatever size it is asked for, in px of that size, as a perfect network would."""

    def __init__(self, disparity_HW):
        self.disparity_11HW = torch.from_numpy(disparity_HW)[None, None]
        self.sizes = []

    def __call__(self, left_B3HW, right_B3HW):
        assert left_B3HW.shape == right_B3HW.shape
        size = left_B3HW.shape[-2:]
        self.sizes.append(tuple(size))
        scaled = torch.nn.functional.interpolate(self.disparity_11HW, size, mode="bilinear")
        return scaled[:, 0] * (size[1] / self.disparity_11HW.shape[-1])


def plane(height, width):
    y, x = np.mgrid[:height, :width].astype(np.float32)
    return 10 + 0.05 * x + 0.02 * y


@pytest.mark.parametrize("size", [(64, 96), (32, 160), (200, 64), (96, 128)])
def test_stretch_rescales_the_disparity(size):
    """TAO's defect 8: a disparity is a distance along x and grows with the width alone."""
    truth = plane(96, 128)
    oracle = Oracle(truth)
    image = torch.zeros(1, 3, 96, 128)
    found = stretched(oracle, size)(image, image)
    assert oracle.sizes == [size] and found.shape == (1, 96, 128)
    inside = (slice(None), slice(4, -4), slice(4, -4))  # borders are extrapolated
    np.testing.assert_allclose(found.numpy()[inside], truth[None][inside], rtol=2e-3)


def test_stretch_hands_over_the_whole_image():
    scene = make_scene(64, 96, 20, seed=1)
    left, right = (torch.from_numpy(scene[side]).permute(2, 0, 1)[None].float() for side in ("left", "right"))
    seen = []
    stretched(lambda a, b: seen.append((a, b)) or a[:, 0], (32, 48))(left, right)
    for small, image in zip(seen[0], (left, right), strict=True):
        blocks = torch.nn.functional.avg_pool2d(image, 2)
        assert (small - blocks).abs().mean() < image.std() / 5  # the same picture at half the size, not a crop of it


@pytest.mark.parametrize(
    ("size", "asked"),
    [((128, 128), (128, 128)), ((64, 200), (101, 200)), ((64, 64), (101, 90)), ((102, 91), (102, 91))],
)
def test_pad_keeps_every_pixel(size, asked):
    """A predictor that returns the image itself gets it back unmoved; nothing is scaled."""
    image = torch.rand(2, 3, 101, 90)
    seen = []

    def first_channel(left, right):
        seen.append(tuple(left.shape[-2:]))
        return left[:, 0]

    found = padded(first_channel, size)(image, image)
    assert seen == [asked]
    assert torch.equal(found, image[:, 0])


def sample(index, height, width):
    image = torch.full((3, height, width), float(index))
    return {"left": image, "right": image, "index": index, "path": f"image{index}"}


def test_predictions_keep_the_order_of_mixed_sizes():
    sizes = [(4, 6), (5, 6), (4, 6), (3, 3), (5, 6)]
    batches = [[sample(i, *sizes[i]) for i in range(3)], [sample(i, *sizes[i]) for i in (3, 4)]]
    predictor = Predictor(lambda left, right: left[:, 0] + 1)
    found = list(predictions(predictor, batches, 2))
    assert [s["index"] for s, _ in found] == [0, 1, 2, 3, 4]
    for s, disparity_HW in found:
        assert disparity_HW.shape == sizes[s["index"]] and (disparity_HW == s["index"] + 1).all()


def test_predictions_read_few_batches_ahead():
    given = []

    def batches():
        for index in range(9):
            given.append(index)
            yield [sample(index, 2, 2)]

    for number, _ in enumerate(predictions(Predictor(lambda left, right: left[:, 0] + 1), batches(), 9)):
        assert len(given) <= number + 1 + WAITING
    assert given == list(range(9))


def test_a_prediction_that_is_not_finite_names_its_image():
    def broken(left, right):
        disparity = left[:, 0] + 1
        disparity[1, 0, 0] = torch.nan
        return disparity

    walk = predictions(Predictor(broken), [[sample(0, 2, 2), sample(1, 2, 2)]], 1)
    assert next(walk)[0]["index"] == 0
    with pytest.raises(FloatingPointError, match=r"image1: .* NaN or infinity"):
        next(walk)


@pytest.mark.parametrize(("gpu_here", "named"), [(True, "cuda:0"), (False, None)])
def test_a_gpu_that_is_named_is_insisted_on(monkeypatch, gpu_here, named):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu_here)

    def device(**keys):
        section = Inference(**keys)
        return engine_device(section, section.gpu_ids[0])

    assert (device(), device(gpu_ids=[0]), device(gpu_ids=[1])) == (None, named, "cuda:1")
