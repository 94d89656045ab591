"""The data source `Synthetic`: scenes drawn when they are asked for, in the place of files."""

from __future__ import annotations

from typing import Any

import numpy as np

from stereo_core.data.annotations import Sample
from stereo_core.data.augmentation import Pair
from stereo_core.data.synthetic import scene_maker

APPEARANCE = 1.0  # the two cameras differ, as real ones do


def scene_samples(source: Any, place: int = 0) -> list[Sample]:
    """An epoch's scenes as lines of a list that is nowhere written; `place` is the source's among the others."""
    names = (f"synthetic_{place}/{number:06d}" for number in range(source.pairs_per_epoch))
    return [Sample(name, name, name, None, source.dataset_name, number) for number, name in enumerate(names)]


class Scenes:
    """An endless sequence of scenes, `pairs_per_epoch` of them an epoch.

    Args:
        source: a data source; its style, height, width and scene_disparity say what is drawn.
        seed: numbers that are equal for equal sequences alone: of the run, of the split, of the place in the list.
    """

    def __init__(self, source: Any, seed: tuple[int, ...]) -> None:
        self.pairs_per_epoch = source.pairs_per_epoch
        own = int(np.random.SeedSequence(seed).generate_state(1)[0])
        disparity = tuple(source.scene_disparity)
        self._scene = scene_maker(source.style, source.height, source.width, disparity, own, APPEARANCE)

    def pair(self, number: int, epoch: int) -> Pair:
        """Scene `number` of an epoch; no epoch has one of another's."""
        scene = self._scene(epoch * self.pairs_per_epoch + number)
        return Pair(scene["left"], scene["right"], scene["disparity"])
