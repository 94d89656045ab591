"""The estimate of a step's memory against steps that are really made, and of a checkpoint against a real one."""

from __future__ import annotations

import pytest
import torch

from stereo_core.models import create_model
from stereo_core.spec.train import Train
from stereo_core.training.losses import stereo_loss
from stereo_core.training.memory import checkpoint_bytes, step_memory

SIZE = (64, 96)


def saved_bytes(network, batch: int) -> int:
    """Bytes that a real forward pass keeps for its backward pass, weights left out."""
    storages = {}

    def keep(tensor):
        storages[tensor.untyped_storage().data_ptr()] = (tensor.untyped_storage().nbytes(), tensor)
        return tensor

    weights = {t.untyped_storage().data_ptr() for t in (*network.parameters(), *network.buffers())}
    images = torch.rand(2, batch, 3, *SIZE) * 255
    gt = torch.full((batch, 1, *SIZE), 5.0)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        init, disparities = network.train()(*images)
        stereo_loss(init, disparities, gt, gt > 0, network.config.max_disparity)
    return sum(size for pointer, (size, _) in storages.items() if pointer not in weights)


@pytest.mark.slow
def test_activations_are_what_a_real_step_keeps_and_little_more():
    """At the peak there is also what is at work at that moment, and the images."""
    network = create_model(preset="tiny", train_iters=1)
    estimate = step_memory(network, Train(), SIZE, batch=1)
    saved = saved_bytes(network, batch=1)
    assert saved < estimate.activations < 1.25 * saved


def test_parts_that_follow_from_the_weights():
    network = create_model(preset="tiny", train_iters=1)
    trained = sum(p.numel() for p in network.parameters() if p.requires_grad) * 4
    one = step_memory(network, Train(), SIZE, batch=1)
    assert (one.gradients, one.optimizer, one.averages) == (trained, 2 * trained, 0)
    assert one.total == one.weights + 3 * trained + one.activations
    assert all(p.grad is None for p in network.parameters()) and not network.recompute


@pytest.mark.slow
def test_bf16_and_activation_checkpointing_take_less():
    network = create_model(preset="tiny")
    full, half, recomputed = (
        step_memory(network, Train(precision=precision, activation_checkpoint=recompute), (128, 160), 2).activations
        for precision, recompute in (("fp32", False), ("bf16", False), ("fp32", True))
    )
    assert 0.5 * full < half < 0.75 * full and recomputed < 0.6 * full


def test_a_checkpoint_has_the_size_that_was_said(tmp_path):
    network = create_model(preset="tiny", train_iters=1)
    settings = Train(ema_decay=0.9)
    optimizer = torch.optim.AdamW([p for p in network.parameters() if p.requires_grad])
    for parameter in network.parameters():
        parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
    optimizer.step()
    averages = [p.detach().clone() for p in network.parameters() if p.requires_grad]
    averages += [b.clone() for b in network.buffers() if b.is_floating_point()]
    torch.save([network.state_dict(), optimizer.state_dict(), averages], tmp_path / "x.pth")
    assert checkpoint_bytes(network, settings) == pytest.approx((tmp_path / "x.pth").stat().st_size, rel=0.05)


@pytest.mark.gpu
@pytest.mark.parametrize(("precision", "recompute"), [("fp32", False), ("bf16", False), ("bf16", True)])
def test_the_estimate_for_a_gpu_is_what_its_allocator_counts(precision, recompute):
    """Within a tenth: cuDNN's scratch memory is not in the estimate, and not every temporary of a fused kernel is."""
    size, batch = (320, 736), 1
    network = create_model(encoder="vits").train()
    settings = Train(precision=precision, activation_checkpoint=recompute, compile="off")
    estimate = step_memory(network, settings, size, batch, device="cuda")
    network.recompute = recompute
    before = torch.cuda.memory_allocated()
    network.cuda()
    optimizer = torch.optim.AdamW([p for p in network.parameters() if p.requires_grad])
    images = torch.rand(2, batch, 3, *size, device="cuda") * 255
    gt = torch.full((batch, 1, *size), 5.0, device="cuda")
    for _ in range(2):  # the optimizer's state is there from the second step on
        torch.cuda.reset_peak_memory_stats()
        with torch.autocast("cuda", torch.bfloat16, enabled=precision == "bf16"):
            init, disparities = network(*images)
            loss = stereo_loss(init, disparities, gt, gt > 0, network.config.max_disparity)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    measured = torch.cuda.max_memory_allocated() - before
    print(f"{precision}, recompute {recompute}: {estimate.total / 2**30:.2f} GiB said, {measured / 2**30:.2f} measured")
    assert estimate.total == pytest.approx(measured, rel=0.1)
