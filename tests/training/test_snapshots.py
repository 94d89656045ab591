"""Copies of a network's running statistics, and that a training step waits for its device but once."""

from __future__ import annotations

import pytest
import torch
from batches import make_batch
from torch.utils._python_dispatch import TorchDispatchMode

from stereo_core.training.snapshots import Snapshot


def test_what_was_taken_last_is_given_back_whatever_its_type():
    tensors = [torch.tensor([1.0, 2.0]), torch.tensor(3), torch.ones(2, 2), torch.tensor(4.0, dtype=torch.float64)]
    snapshot = Snapshot(tensors)
    for _ in range(2):
        for tensor in tensors:
            tensor.add_(1)
        snapshot.take()
    for tensor in tensors:
        tensor.zero_()
    snapshot.restore()
    expected = [[3.0, 4.0], 5, [[3.0, 3.0], [3.0, 3.0]], 6.0]
    assert [tensor.tolist() for tensor in tensors] == expected


def test_of_nothing_there_is_nothing_to_take():
    snapshot = Snapshot(())
    snapshot.take()
    snapshot.restore()


class Waits(TorchDispatchMode):
    """Counts the values that are asked for on the host: with a GPU each is a wait."""

    count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += function is torch.ops.aten._local_scalar_dense.default
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize(("nonfinite", "asked"), [("skip", [1, 2, 3, 4]), ("fail", [0, 1, 2, 3])])
def test_a_step_asks_for_one_value(fit, nonfinite, asked):
    """Whether it is finite; the next step does, where nothing depends on it before. With SGD, since AdamW keeps its
    counters where they are asked for on a CPU."""
    after, waits = [], Waits()

    def watch(module):
        module.on_train_batch_end = lambda *_: after.append(waits.count)

    with waits:
        keys = {"ema_decay": 0.5, "nonfinite": nonfinite, "optim": {"optimizer": "SGD"}}
        fit([make_batch(seed) for seed in range(4)], watch, **keys)
    assert [count - after[0] + asked[0] for count in after] == asked
