"""What is there for speed alone: nothing else may come of it."""

from __future__ import annotations

import pytest
import torch

from stereo_core.models import channels_last, create_model
from stereo_core.models.foundation_stereo.aggregation import PatchConv3d
from stereo_core.models.foundation_stereo.cost_volume import SlicedConv3d


def outcome(layout: bool) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    model = create_model(preset="tiny", train_iters=2).double().train()
    if layout:
        channels_last(model)
        assert model.corr_stem[0].weight.is_contiguous(memory_format=torch.channels_last_3d)
        assert model.proj_cmb.weight.is_contiguous(memory_format=torch.channels_last)
    left, right = torch.rand(2, 1, 3, 64, 96).double() * 255
    torch.manual_seed(1)
    start, disparities = model(left, right)
    (start.mean() + disparities[-1].abs().mean()).backward()
    gradients = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
    return disparities[-1].detach(), torch.cat(gradients)


def test_channels_last_changes_neither_disparity_nor_gradients():
    for got, expected in zip(outcome(True), outcome(False), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-8, atol=1e-9)


@pytest.mark.slow
def test_checkpoints_go_either_way():
    model, other = create_model(preset="tiny"), channels_last(create_model(preset="tiny"))
    other.load_state_dict(model.state_dict())
    assert other.corr_stem[1].conv.weight.is_contiguous(memory_format=torch.channels_last_3d)
    for name, value in other.state_dict().items():
        assert torch.equal(value, model.state_dict()[name]), name


def test_the_sliced_convolution_is_the_convolution_in_three_dimensions():
    torch.manual_seed(0)
    conv = SlicedConv3d(3, 1, 7, padding=3).double()
    volume = torch.rand(2, 3, 5, 6, 7).double()
    torch.testing.assert_close(conv(volume), torch.nn.Conv3d.forward(conv, volume), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("padding, size", [(0, (8, 12, 17)), ((1, 1, 0), (8, 10, 16))])
def test_the_sum_over_patches_is_the_convolution_with_its_gradients(padding, size):
    torch.manual_seed(0)
    conv = PatchConv3d(6, 6, 4, 4, padding, groups=6).double()
    results = []
    for way in (conv.by_patches, conv.forward):
        volume = torch.rand(2, 6, *size, generator=torch.Generator().manual_seed(1)).double().requires_grad_()
        y = way(volume)
        results.append((y, *torch.autograd.grad(y.square().sum(), (volume, conv.weight, conv.bias))))
    torch.testing.assert_close(*results, rtol=1e-12, atol=1e-12)
