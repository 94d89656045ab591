"""Activation checkpointing: the gradients stay, the memory goes. TAO's key does nothing (defect 17)."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.checkpoint import checkpoint

from stereo_core.models import create_model
from stereo_core.models.foundation_stereo.model import _contexts


def step(recompute: bool):
    """(gradients, state, bytes kept for the backward pass, generator state) of one training step."""
    torch.manual_seed(1)
    model = create_model(preset="tiny", train_iters=3).train()
    model.recompute = recompute
    left, right = (torch.rand(1, 3, 64, 96) * 255 for _ in range(2))
    kept = {}

    def keep(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    torch.manual_seed(2)  # dropout
    with saved_tensors_hooks(keep, lambda tensor: tensor):
        start, disparities = model(left, right)
    (start.mean() + sum(d.abs().mean() for d in disparities)).backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return gradients, model.state_dict(), sum(kept.values()), torch.get_rng_state()


def test_the_same_step_with_less_memory():
    gradients, state, kept, generator = step(False)
    others, other_state, less, other_generator = step(True)
    assert gradients.keys() == others.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(others[name], gradient, rtol=1e-6, atol=1e-7, msg=name)
    for name, value in state.items():  # batch normalisation has seen the batch once
        assert torch.equal(other_state[name], value), name
    assert torch.equal(generator, other_generator)
    assert less < 0.6 * kept


class GpuDropout(nn.Dropout):
    """Dropout by the operation that a GPU uses."""

    def forward(self, x):
        return torch.native_dropout(x, self.p, self.training)[0]


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_on_a_gpu_dropout_is_stored(precision):
    """Used twice, a layer finds its weight in autocast's cache, but not when it is computed again."""
    results = []
    for recompute in (False, True):
        torch.manual_seed(0)
        part = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), GpuDropout(0.5), nn.Linear(8, 8), GpuDropout(0.5))
        run = partial(checkpoint, use_reentrant=False, context_fn=partial(_contexts, part, True),
                      preserve_rng_state=False) if recompute else lambda part, x: part(x)  # fmt: skip
        x = torch.rand(16, 8, requires_grad=True)
        with torch.autocast("cpu", precision, enabled=precision != torch.float32):
            loss = run(part, run(part, x)).float().square().sum()
        before = torch.get_rng_state()
        loss.backward()
        assert torch.equal(torch.get_rng_state(), before)
        results.append((loss.detach(), x.grad, *(p.grad for p in part.parameters()), *part.buffers()))
    torch.testing.assert_close(*results, rtol=0, atol=0)
