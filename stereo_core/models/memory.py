"""Bytes that the operations of a network hold: counted as they run, or foretold on tensors without contents."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
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
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    weights = [mode.from_tensor(tensor) for tensor in (*network.parameters(), *network.buffers())]
    with mode, torch.device(weights[0].device), torch.no_grad(), LiveBytes() as live:
        for tensor in weights:
            live.ignore(tensor)
        network(*(torch.empty(batch, 3, *size) for _ in range(2)), iters=1)
    return live.peak


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of all tensors that operations make, as long as they live.

    Attributes:
        peak: the most that lived at once.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.known: weakref.WeakSet[Any] = weakref.WeakSet()  # storages: views share one

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
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
