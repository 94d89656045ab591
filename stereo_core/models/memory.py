"""Bytes that the operations of a network hold: counted as they run, or foretold on tensors without contents."""

from __future__ import annotations

import copy
import weakref

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeCopyMode, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


def pass_bytes(network: nn.Module, size: tuple[int, int], batch: int) -> int:
    """The most bytes that one pass without gradients holds beside the weights, its images included.

    A pass of one iteration on tensors that have shapes and no contents: later iterations hold no more than the first.
    Not counted: what libraries take beside tensors, such as cuDNN's scratch memory.

    Args:
        network: in eval mode, on the device that is meant; it stays as it is.
        size: height and width in px of the images.
        batch: pairs.
    """
    device = next(network.parameters()).device
    mode, network = without_contents(network, str(device))
    with mode, torch.device(device), torch.no_grad(), LiveBytes() as live:
        for tensor in (*network.parameters(), *network.buffers()):
            live.ignore(tensor)
        network(*(torch.empty(batch, 3, *size) for _ in range(2)), iters=1)
    return live.peak


def without_contents(network: nn.Module, device: str) -> tuple[FakeTensorMode, nn.Module]:
    """A copy of a network for `device` whose tensors have shapes and no contents, and the mode in which it runs."""
    mode = FakeTensorMode()
    with FakeCopyMode(mode):
        network = copy.deepcopy(network)
    with mode:
        _move(network, device)
    return mode, network


def _move(network: nn.Module, device: str) -> None:
    """`network.to(device)`, which torch refuses for tensors without contents."""
    for module in network.modules():
        for name, value in module._parameters.items():
            if value is not None:
                module._parameters[name] = nn.Parameter(value.detach().to(device), value.requires_grad)
        for name, value in module._buffers.items():
            if value is not None:
                module._buffers[name] = value.to(device)


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of all tensors that operations make, as long as they live.

    Attributes:
        peak: the most that lived at once.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.known: weakref.WeakSet = weakref.WeakSet()  # storages: views share one

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        results = operation(*args, **(kwargs or {}))
        for result in tree_leaves(results):
            if isinstance(result, Tensor):
                self.add(result)
        return results

    def ignore(self, tensor: Tensor) -> None:
        self.known.add(tensor.untyped_storage())

    def add(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage in self.known:
            return
        self.known.add(storage)
        size = storage.nbytes()
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._remove, size)

    def _remove(self, size: int) -> None:
        self.now -= size
