"""Copies of many small tensors, such as a network's running statistics, updated in every step."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor


class Snapshot:
    """A copy of some tensors on their devices, made with one kernel per type: one per tensor would take longer than the
    copying itself.

    Args:
        tensors: they must stay the same objects and change only in place.
    """

    def __init__(self, tensors: Iterable[Tensor]) -> None:
        alike = defaultdict(list)
        for tensor in tensors:
            alike[tensor.device, tensor.dtype].append(tensor)
        self._live = list(alike.values())
        self._taken: list[list[Tensor]] = []

    @torch.no_grad()
    def take(self) -> None:
        """Save the current values of the tensors."""
        if not self._taken:
            self._taken = [[tensor.clone() for tensor in tensors] for tensors in self._live]
        for taken, tensors in zip(self._taken, self._live, strict=True):
            torch._foreach_copy_(taken, tensors)

    @torch.no_grad()
    def restore(self) -> None:
        """Restore the values that were saved last."""
        for taken, tensors in zip(self._taken, self._live, strict=True):
            torch._foreach_copy_(tensors, taken)
