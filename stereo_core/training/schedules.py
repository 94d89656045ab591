"""Learning-rate schedules as factors of the base rate, one value an optimizer step."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable

from stereo_core.errors import SpecError

Factor = Callable[[int], float]


def lr_factor(optim, total_steps: int) -> Factor:
    """The factor on `train.optim.lr` at each optimizer step (0-based): linear warm-up, then the named schedule.

    Args:
        optim: the spec's `train.optim`.
        total_steps: optimizer steps of the whole run.

    Raises:
        SpecError: `train.optim.lr_scheduler` names a schedule that is not available.
    """
    if optim.lr_scheduler not in _SCHEDULES:
        raise SpecError(
            f"train.optim.lr_scheduler: {optim.lr_scheduler} is not available; choose one of {', '.join(_SCHEDULES)}"
        )
    schedule = _SCHEDULES[optim.lr_scheduler](optim, max(1, total_steps))

    def factor(step: int) -> float:
        warm_up = min(1.0, (step + 1) / (optim.warmup_steps + 1))
        return warm_up * schedule(step)

    return factor


def _multi_step(optim, total_steps: int) -> Factor:
    milestones = sorted(optim.lr_steps)
    return lambda step: optim.lr_decay ** bisect_right(milestones, step)


def _step(optim, total_steps: int) -> Factor:
    return lambda step: optim.lr_decay ** (step // optim.lr_step_size)


def _linear(optim, total_steps: int) -> Factor:
    return lambda step: max(0.0, 1 - step / total_steps)


def _cosine(optim, total_steps: int) -> Factor:
    least = optim.min_lr / optim.lr
    return lambda step: least + (1 - least) * (1 + math.cos(math.pi * min(1.0, step / total_steps))) / 2


_SCHEDULES = {
    "MultiStepLR": _multi_step,
    "MultiStep": _multi_step,
    "StepLR": _step,
    "PolynomialLR": _linear,
    "LambdaLR": _linear,
    "CosineAnnealingLR": _cosine,
}
