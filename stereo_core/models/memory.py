"""Memory of a network's operations: counted while they run, or predicted with tensors without data."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


def pass_bytes(network: nn.Module, size: tuple[int, int], batch: int) -> int:
    """Peak bytes of one pass without gradients, including its images but not the weights.

    It runs one iteration on tensors without data; later iterations need no more than the first. Memory that libraries
    allocate outside tensors, such as cuDNN's workspace, is not counted.

    Args:
        network: in eval mode, on the device in question; it is not changed.
        size: height and width of the images in px.
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
    """Counts the bytes of all live tensors that operations create.

    Attributes:
        peak: the maximum of live bytes.
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
