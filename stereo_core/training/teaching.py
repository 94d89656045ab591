"""Count the valid ground truth in an epoch's crops per data source, and warn about sources with empty crops."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from stereo_core.data.augmentation import MAX_SHIFT
from stereo_core.data.datasets import name_of
from stereo_core.errors import DataError
from stereo_core.training.distribution import summed
from stereo_core.training.validation import WRONG_CODING

LOG = logging.getLogger(__name__)

_OR_SHIFT = (
    f"; augmentation.hshift_prob takes up to {MAX_SHIFT} px off the disparities of a crop, and those not above 0 are "
    "lost: set it to 0 for disparities as small as that"
)


class GroundTruthCounts:
    """Counts of one epoch, over all ranks.

    Args:
        sources: the data sources; a sample's `source` is the index.
        max_disparity: px, exclusive.
        shifted: whether `hshift_prob` is above 0.
    """

    def __init__(self, sources: Sequence[Any], max_disparity: float, device: torch.device, shifted: bool) -> None:
        self.names = [name_of("train", place, source) for place, source in enumerate(sources)]
        self.max_disparity = max_disparity
        self.mend = f"{WRONG_CODING}{_OR_SHIFT * shifted}"
        self.crops, self.empty = torch.zeros(2, len(sources), dtype=torch.int64, device=device)

    def add(self, batch: dict[str, Any]) -> Tensor:
        """Count a batch; return how many of its samples have a valid pixel."""
        counts_B1HW = batch["valid"] & (batch["disparity"].abs() < self.max_disparity)
        teaches_B = counts_B1HW.flatten(1).any(1)
        self.crops.index_add_(0, batch["source"], torch.ones_like(batch["source"]))
        self.empty.index_add_(0, batch["source"], (~teaches_B).long())
        return teaches_B.sum()

    def check(self, epoch: int, warned: set[str], aloud: bool) -> None:
        """Warn about sources with crops without valid ground truth, each once per run.

        Args:
            warned: sources with an earlier warning; new ones are added.
            aloud: whether this rank logs for all.

        Raises:
            DataError: no crop of the epoch has valid ground truth.
        """
        crops, empty = summed(torch.stack([self.crops, self.empty])).tolist()
        if sum(crops) == sum(empty):
            raise DataError(
                f"dataset.train_dataset: no pixel of epoch {epoch + 1} has valid ground truth (visible in the mask, "
                f"0 < disparity < dataset.max_disparity), so nothing was learnt; {self.mend}"
            )
        for name, count, without in zip(self.names, crops, empty, strict=True):
            if without and aloud and name not in warned:
                warned.add(name)
                LOG.warning("%s: crops without valid ground truth (visible in the mask, 0 < disparity < "
                            "dataset.max_disparity) in epoch %d: %d of %d. They do not train the network or count in "
                            "train_loss. If there should be none: %s",
                            name, epoch + 1, without, count, self.mend)  # fmt: skip
