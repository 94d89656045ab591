"""Rates and momentum of the two groups of weights."""

from __future__ import annotations

import pytest
import torch
from batches import copied, make_batch

from stereo_core.spec.train import Train
from stereo_core.training.optimizers import optimizer_of
from stereo_core.training.schedules import one_cycle_momentum


@pytest.mark.parametrize("optimizer", ["AdamW", "SGD"])
def test_one_cycle_sets_the_momentum(fit, optimizer):
    """As torch's does by default: of SGD its momentum, of AdamW the first beta."""
    seen = []

    def watch(module):
        def look(*_):
            group = module.optimizers().param_groups[1]
            seen.append(group["betas"][0] if optimizer == "AdamW" else group["momentum"])

        module.on_train_batch_end = look

    optim = {"optimizer": optimizer, "lr_scheduler": "OneCycleLR"}
    fit([make_batch(seed) for seed in range(4)], watch, optim=optim)
    assert seen == [one_cycle_momentum(step, 4) for step in range(4)] and len(set(seen)) == 3


def test_the_backbone_has_a_rate_of_its_own(fit):
    """Factor 0: EdgeNeXt and its side of the ViT stay, everything else moves."""
    before = {}
    module = fit(
        [make_batch(0)],
        lambda m: before.update(copied(m)),
        backbone_lr_factor=0.0,
        optim={"optimizer": "SGD", "lr": 1e-2},
    )
    moved = {name for name, value in module.state_dict().items() if not torch.equal(value, before[name])}
    moved &= {name for name, _ in module.named_parameters()}
    assert moved and not [name for name in moved if name.startswith("model.feature.")]
    groups = module.trained_by.optimizers[0].param_groups
    assert [group["lr"] for group in groups] == [1e-2, 0]
    in_groups = sum(len(group["params"]) for group in groups)
    assert in_groups == sum(p.requires_grad for p in module.parameters())


def test_a_saved_state_does_not_say_how_this_run_computes():
    """A GPU's checkpoint goes on on a CPU, and an old one on a GPU with the faster kernels."""

    def stepped(fused):
        weight = torch.nn.Parameter(torch.ones(3))
        optimizer = optimizer_of([("model.weight", weight)], Train())
        for group in optimizer.param_groups:
            group["fused"] = fused
        weight.grad = torch.ones(3)
        optimizer.step()
        return optimizer

    for mine, saved in ((None, True), (True, None)):
        optimizer = stepped(mine)
        optimizer.load_state_dict(stepped(saved).state_dict())
        assert [group["fused"] for group in optimizer.param_groups] == [mine, mine]
        optimizer.step()
        (state,) = optimizer.state.values()
        assert state["step"] == 2


@pytest.mark.gpu
@pytest.mark.parametrize(("precision", "fused"), [("bf16", True), ("fp32", True), ("fp16", None)])
def test_a_gpu_steps_in_one_kernel_but_where_gradients_are_scaled(precision, fused):
    weight = torch.nn.Parameter(torch.ones(3, device="cuda"))
    groups = optimizer_of([("model.weight", weight)], Train(precision=precision)).param_groups
    assert [group["fused"] for group in groups] == [fused, fused]
