"""Learning-rate schedules as factors of the base rate, one value per optimizer step."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable

from stereo_core.spec.train import MULTI_STEP, Optim

Factor = Callable[[int], float]


def lr_factor(optim: Optim, total_steps: int) -> Factor:
    """The factor on `train.optim.lr` at each optimizer step (0-based): linear warm-up, then the named schedule.

    OneCycleLR has its own warm-up and ignores `train.optim.warmup_steps`.

    Args:
        optim: the spec's `train.optim`.
        total_steps: optimizer steps of the whole run.
    """
    schedule = _SCHEDULES[optim.lr_scheduler](optim, max(1, total_steps))
    if optim.lr_scheduler == "OneCycleLR":
        return schedule

    def factor(step: int) -> float:
        warm_up = min(1.0, (step + 1) / (optim.warmup_steps + 1))
        return warm_up * schedule(step)

    return factor


def _multi_step(optim: Optim, total_steps: int) -> Factor:
    milestones = sorted(optim.lr_steps)
    return lambda step: optim.lr_decay ** bisect_right(milestones, step)


def _step(optim: Optim, total_steps: int) -> Factor:
    return lambda step: optim.lr_decay ** (step // optim.lr_step_size)


def _linear(optim: Optim, total_steps: int) -> Factor:
    return lambda step: max(0.0, 1 - step / total_steps)


def _cosine(optim: Optim, total_steps: int) -> Factor:
    return lambda step: _half_cosine(1, optim.min_lr / optim.lr, min(1.0, step / total_steps))


def _one_cycle(optim: Optim, total_steps: int) -> Factor:
    """torch's OneCycleLR with its defaults: from 1/25 up to 1, then down to 1/250000; see one_cycle_momentum."""
    return lambda step: _cycle(step, total_steps, 1 / 25, 1, 1 / 25e4)


def one_cycle_momentum(step: int, total_steps: int) -> float:
    """The momentum (of AdamW: beta1) that torch's OneCycleLR sets: opposite to the rate, from 0.95 down to 0.85 and
    back."""
    return _cycle(step, max(1, total_steps), 0.95, 0.85, 0.95)


def _cycle(step: int, total_steps: int, start: float, middle: float, end: float) -> float:
    """From `start` to `middle` over the first 30 % of the steps, then to `end` over the rest."""
    peak, last = 0.3 * total_steps - 1, total_steps - 1
    if step <= peak:
        return _half_cosine(start, middle, step / peak)
    return _half_cosine(middle, end, (min(step, last) - peak) / (last - peak))


def _half_cosine(start: float, end: float, part: float) -> float:
    """From `start` to `end` on half a cosine wave, `part` (0..1) of the way."""
    return end + (start - end) * (1 + math.cos(math.pi * part)) / 2


_SCHEDULES = {
    **dict.fromkeys(MULTI_STEP, _multi_step),
    "StepLR": _step,
    "PolynomialLR": _linear,
    "LambdaLR": _linear,
    "CosineAnnealingLR": _cosine,
    "OneCycleLR": _one_cycle,
}
