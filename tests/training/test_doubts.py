"""What lets a training go and is hardly meant."""

from __future__ import annotations

from typing import get_args

import pytest

from stereo_core.spec.train import Optim, Scheduler
from stereo_core.training.doubts import warm_up_without_end
from stereo_core.training.schedules import lr_factor


@pytest.mark.parametrize("steps", [1, 19, 20, 21])
def test_a_warm_up_without_end_is_one_in_which_the_rate_is_never_reached(steps):
    optim = Optim(lr_scheduler="MultiStepLR", warmup_steps=20)
    reached = max(map(lr_factor(optim, steps), range(steps))) == 1
    assert bool(warm_up_without_end(optim, steps)) == (not reached)


def test_its_words():
    said = warm_up_without_end(Optim(warmup_steps=20), 12)
    assert said.startswith("train.optim.warmup_steps: the warm-up takes 20 steps, but the run has only 12")
    assert "lower it below 12, or train longer" in said


@pytest.mark.parametrize("name", get_args(Scheduler))
def test_one_cycle_alone_has_a_warm_up_of_its_own(name):
    doubt = warm_up_without_end(Optim(lr_scheduler=name, warmup_steps=5), 5)
    assert bool(doubt) == (name != "OneCycleLR")
