"""Copies of many small tensors, such as a network's running statistics, made anew in every step."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor


class Snapshot:
    """The values of some tensors at a moment, on their devices; one kernel a type, where one a tensor takes longer than
    all that they copy.

    Args:
        tensors: they change in place, and stay the same objects.
    """

    def __init__(self, tensors: Iterable[Tensor]) -> None:
        alike = defaultdict(list)
        for tensor in tensors:
            alike[tensor.device, tensor.dtype].append(tensor)
        self._live = list(alike.values())
        self._taken: list[list[Tensor]] = []

    @torch.no_grad()
    def take(self) -> None:
        """Keep the values that the tensors have now."""
        if not self._taken:
            self._taken = [[tensor.clone() for tensor in tensors] for tensors in self._live]
        for taken, tensors in zip(self._taken, self._live, strict=True):
            torch._foreach_copy_(taken, tensors)

    @torch.no_grad()
    def give_back(self) -> None:
        """Give the tensors the values that were kept last."""
        for taken, tensors in zip(self._taken, self._live, strict=True):
            torch._foreach_copy_(tensors, taken)
