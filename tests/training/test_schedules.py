"""Learning rates, step by step, against torch's own schedulers."""

from __future__ import annotations

from types import SimpleNamespace
from typing import get_args

import pytest
import torch
from torch.optim import lr_scheduler

from stereo_core.spec.train import Scheduler
from stereo_core.training.schedules import lr_factor, one_cycle_momentum

STEPS = 60


def optim(name, **more):
    return SimpleNamespace(
        **{
            "lr_scheduler": name,
            "lr": 1e-3,
            "lr_steps": [10, 25],
            "lr_step_size": 15,
            "lr_decay": 0.1,
            "min_lr": 1e-5,
            "warmup_steps": 0,
        }
        | more
    )


@pytest.mark.parametrize(
    ("name", "theirs"),
    [
        ("MultiStepLR", lambda o: lr_scheduler.MultiStepLR(o, [10, 25], 0.1)),
        ("MultiStep", lambda o: lr_scheduler.MultiStepLR(o, [10, 25], 0.1)),
        ("CustomMultiStepLRScheduler", lambda o: lr_scheduler.MultiStepLR(o, [10, 25], 0.1)),
        ("StepLR", lambda o: lr_scheduler.StepLR(o, 15, 0.1)),
        ("PolynomialLR", lambda o: lr_scheduler.PolynomialLR(o, STEPS)),
        ("CosineAnnealingLR", lambda o: lr_scheduler.CosineAnnealingLR(o, STEPS, 1e-5)),
        ("OneCycleLR", lambda o: lr_scheduler.OneCycleLR(o, 1e-3, STEPS)),
    ],
)
def test_equals_torch(name, theirs):
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1e-3, momentum=0.9)
    scheduler = theirs(optimizer)
    factor = lr_factor(optim(name), STEPS)
    for step in range(STEPS):
        assert 1e-3 * factor(step) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-9), step
        if name == "OneCycleLR":
            assert one_cycle_momentum(step, STEPS) == pytest.approx(optimizer.param_groups[0]["momentum"], rel=1e-9)
        optimizer.step()
        if step < STEPS - 1:  # OneCycleLR has no more values
            scheduler.step()


def test_linear_lambda():
    assert [lr_factor(optim("LambdaLR"), 4)(step) for step in range(5)] == [1, 0.75, 0.5, 0.25, 0]


def test_warm_up_is_linear_and_then_over():
    factor = lr_factor(optim("MultiStepLR", warmup_steps=4), STEPS)
    assert [factor(step) for step in range(6)] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0, 1.0])


def test_one_cycle_warms_up_by_itself():
    plain, warm = (lr_factor(optim("OneCycleLR", warmup_steps=steps), STEPS) for steps in (0, 20))
    assert [warm(step) for step in range(STEPS)] == [plain(step) for step in range(STEPS)]


@pytest.mark.parametrize("name", get_args(Scheduler))
@pytest.mark.parametrize("total", [0, 1, 3, 4])
def test_every_schedule_of_the_spec_lasts_one_step_past_the_run(name, total):
    """torch asks for the rate after the last step too."""
    factor = lr_factor(optim(name), total)
    assert all(0 <= factor(step) <= 1 for step in range(total + 2))
