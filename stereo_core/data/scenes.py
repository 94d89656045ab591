"""The data source `Synthetic`: scenes drawn on demand instead of files."""

from __future__ import annotations

from typing import Any

import numpy as np

from stereo_core.data.annotations import Sample
from stereo_core.data.augmentation import Pair
from stereo_core.data.synthetic import scene_maker

APPEARANCE = 1.0  # the two cameras differ, as real ones do


def scene_samples(source: Any, place: int = 0) -> list[Sample]:
    """An epoch's scenes as samples, without a list file; `place` is the position of the source in the spec."""
    names = (f"synthetic_{place}/{number:06d}" for number in range(source.pairs_per_epoch))
    return [Sample(name, name, name, None, source.dataset_name, number) for number, name in enumerate(names)]


class Scenes:
    """An endless sequence of scenes, `pairs_per_epoch` in each epoch.

    Args:
        source: a data source; its style, height, width and scene_disparity define what is drawn.
        seed: the numbers that identify a sequence: the run's seed, the split, the position in the list.
    """

    def __init__(self, source: Any, seed: tuple[int, ...]) -> None:
        self.pairs_per_epoch = source.pairs_per_epoch
        own = int(np.random.SeedSequence(seed).generate_state(1)[0])
        disparity = tuple(source.scene_disparity)
        self._scene = scene_maker(source.style, source.height, source.width, disparity, own, APPEARANCE)

    def pair(self, number: int, epoch: int) -> Pair:
        """Scene `number` of an epoch; epochs share no scenes."""
        scene = self._scene(epoch * self.pairs_per_epoch + number)
        return Pair(scene["left"], scene["right"], scene["disparity"])
