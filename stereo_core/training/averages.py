"""Moving averages of a network's weights."""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import Tensor, nn

from stereo_core.models.files import AVERAGES

LOG = logging.getLogger(__name__)


class Averages:
    """Exponential averages of trained weights and running statistics: `decay * average + (1 - decay) * value` per step.

    Args:
        model: the network.
        decay: `train.ema_decay`; None: no averages.

    Attributes:
        values: the averages by the network's names; empty without a decay and before `start`.
    """

    def __init__(self, model: nn.Module, decay: float | None) -> None:
        self.model, self.decay = model, decay
        self.values: dict[str, Tensor] = {}
        self.live: list[Tensor] = []  # the network's own tensors, in the same order

    def start(self, device: torch.device) -> None:
        """Start from the network's values, unless a resumed run has loaded its averages."""
        if self.decay is not None and not self.values:
            self.values = {name: value.detach().clone() for name, value in self._averaged()}
        self.values = {name: value.to(device) for name, value in self.values.items()}
        self.live = [value for _, value in self._averaged()] if self.values else []

    @torch.no_grad()
    def update(self) -> None:
        """Update the averages with the network's values after a step."""
        if self.live:
            torch._foreach_lerp_(list(self.values.values()), self.live, 1 - self.decay)

    def save(self, checkpoint: dict[str, Any]) -> None:
        if not self.values:
            return
        average = {id(value): self.values[name] for name, value in self._averaged()}
        both = (self.model.named_parameters, self.model.named_buffers)
        names = [pair for named in both for pair in named(remove_duplicate=False)]  # a shared weight has two names
        checkpoint[AVERAGES] = {f"model.{name}": average[id(v)] for name, v in names if id(v) in average}

    def load(self, checkpoint: dict[str, Any]) -> None:
        saved = checkpoint.get(AVERAGES)
        if saved and self.decay is None:
            LOG.warning(
                "train.ema_decay is no longer set: the averages in the checkpoint are dropped, and the run goes on "
                "with the weights of its last step; set it as before to keep them"
            )
        elif saved:
            self.values = {name: saved[f"model.{name}"] for name, _ in self._averaged()}

    def _averaged(self) -> list[tuple[str, Tensor]]:
        trained = [(name, p) for name, p in self.model.named_parameters() if p.requires_grad]
        return trained + [(name, b) for name, b in self.model.named_buffers() if b.is_floating_point()]
