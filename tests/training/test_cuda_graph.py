"""A training step's loss and gradients as one CUDA graph."""

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from stereo_core.models import create_model
from stereo_core.spec.train import Train
from stereo_core.training.cuda_graph import EAGER_STEPS, CapturedLoss, _Replay, captures
from stereo_core.training.losses import stereo_loss

SIZE = 64, 96


@pytest.mark.parametrize(
    ("keys", "gpu", "processes", "expected"),
    [
        ({}, True, 1, True),
        ({"compile": "on", "precision": "bf16"}, True, 1, True),
        ({}, False, 1, False),
        ({}, True, 2, False),
        ({"compile": "off"}, True, 1, False),
        ({"precision": "fp16"}, True, 1, False),
        ({"deterministic": True}, True, 1, False),
    ],
)
def test_when_steps_are_captured(keys, gpu, processes, expected):
    assert captures(Train(**keys), gpu, processes) == expected


def test_a_replay_gives_its_gradients_once_per_call():
    """Two batches a step, each divided by two: the gradients are added, and those of the graph stay as they are."""
    used, unused = torch.nn.Parameter(torch.ones(3)), torch.nn.Parameter(torch.ones(2))
    gradient = torch.zeros(3)
    captured = SimpleNamespace(results=(torch.tensor(5.0), torch.zeros(1), [gradient, None]))
    captured.replay = lambda: gradient.add_(1.0)
    for expected in (0.5, 1.5):
        loss = _Replay.apply(captured, used, unused)
        (loss / 2).backward()
        assert loss.item() == 5 and used.grad.tolist() == [expected] * 3 and unused.grad is None
    assert gradient.tolist() == [2.0] * 3


@pytest.mark.gpu
@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize(
    ("dtype", "limit", "gradient"),
    [
        (torch.float64, 1e-4, 1e-4),
        # the product's kernels; two eager runs, which add in any order, differ in the norm by up to 4 %
        (torch.float32, 2e-2, 0.2),
    ],
)
def test_captured_steps_equal_eager_ones(recompute, dtype, limit, gradient):
    """Loss, gradient, prediction and running statistics of six batches, dropout included. Each batch differs from the
    last by far more, so a step that used old inputs would be found."""
    eager, statistics = _run("cuda", captured=False, recompute=recompute, dtype=dtype)
    captured, other = _run("cuda", captured=True, recompute=recompute, dtype=dtype)
    print(*zip(eager, captured, strict=True), sep="\n")
    assert _smallest_change(eager) > gradient
    for column, rtol in enumerate((limit, gradient, limit)):
        np.testing.assert_allclose(captured[:, column], eager[:, column], rtol=rtol)
    for name, value in statistics.items():
        torch.testing.assert_close(other[name], value, rtol=limit, atol=limit * float(value.abs().max()), msg=name)


@pytest.mark.gpu
def test_after_a_failed_capture_weights_are_cast_again():
    """Autocast keeps a weight's cast for the whole step, also one that a capture recorded and nothing computed."""
    layer, x = torch.nn.Linear(8, 8).cuda(), torch.rand(4, 8, device="cuda")

    def loss_of(x):
        y = layer(x)
        if torch.cuda.is_current_stream_capturing():
            raise torch.OutOfMemoryError
        return y.float().square().mean(), y

    compute = CapturedLoss(loss_of, layer.parameters())
    for _ in range(EAGER_STEPS + 1):
        with torch.autocast("cuda", torch.bfloat16):
            loss, _ = compute(x)
        loss.backward()
    with torch.autocast("cuda", torch.bfloat16):
        expected, _ = loss_of(x)
    assert compute.replay is None and loss.item() == expected.item()


WAITS = """
import torch
from stereo_core.training.cuda_graph import CapturedLoss
weight = torch.nn.Parameter(torch.ones(2, device="cuda"))
compute = CapturedLoss(lambda x: ((x * weight).sum() * weight.sum().item(), x), [weight])
for _ in range(3):
    compute(torch.ones(2, device="cuda"))
"""


@pytest.mark.gpu
def test_a_step_that_cannot_be_captured_says_what_to_set():
    """In a process of its own, where nothing uses the GPU afterwards."""
    ended = subprocess.run([sys.executable, "-c", WAITS], capture_output=True, text=True)
    assert ended.returncode == 1 and "ExplainedError: train.compile: " in ended.stderr


def test_the_batches_of_that_test_differ():
    """So that it can fail."""
    assert _smallest_change(_run("cpu", captured=False, recompute=False)[0]) > 0.2


def _smallest_change(figures: np.ndarray) -> float:
    """Of a loss or a gradient's norm from one batch to the next, relative."""
    table = figures[:, :2]
    return float((np.abs(np.diff(table, axis=0)) / table[:-1]).min())


def _run(
    device: str, captured: bool, recompute: bool, dtype: torch.dtype = torch.float64
) -> tuple[np.ndarray, dict[str, torch.Tensor]]:
    """Per batch: loss, gradient's norm, mean prediction; and the running statistics at the end."""
    torch.manual_seed(0)
    network = create_model(preset="tiny", max_disparity=64, train_iters=3).to(device, dtype).train()
    network.recompute = recompute
    weights = [p for p in network.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(weights, 1e-5)

    def loss_of(left, right, gt, valid):
        init, disparities = network(left, right)
        return stereo_loss(init, disparities, gt, valid, 64), disparities[-1].detach()

    compute = CapturedLoss(loss_of, weights) if captured else loss_of
    figures = []
    for number in range(EAGER_STEPS + 4):
        torch.manual_seed(number)
        brightness, largest = ((255, 60), (90, 4))[number % 2]
        left, right = (torch.rand(2, 3, *SIZE, device=device, dtype=dtype) * brightness for _ in range(2))
        gt = torch.rand(2, 1, *SIZE, device=device, dtype=dtype) * largest
        loss, prediction = compute(left, right, gt, gt > 0.1)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        figures.append([loss.item(), norm.item(), prediction.mean().item()])
    assert not captured or compute.replay is not None
    return np.array(figures), {name: value.float() for name, value in network.named_buffers() if "running" in name}
