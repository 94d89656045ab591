"""The keys that a search may tune, and their ranges. Only keys that affect this training run are allowed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from pydantic.fields import FieldInfo

from stereo_core.spec import effects
from stereo_core.spec.automl import ParamRange
from stereo_core.spec.experiment import ExperimentSpec
from stereo_core.spec.fields import marks_of
from stereo_core.spec.paths import nearest, walk
from stereo_core.spec.train import MULTI_STEP

LOG_RATIO = 1000  # a range with this ratio of its bounds, or more, is searched on a log scale
OPEN = 0.01  # if a range excludes its lower bound, this share of the range is left out


class Refused(ValueError):
    """A key or a range cannot be searched; the message says why."""


@dataclass(frozen=True)
class Dimension:
    """One key of the search.

    Attributes:
        low, high: the range, both ends included.
        log: whether to search on a log scale.
        integer: whether values are whole numbers.
        options: values to choose from instead of the range; empty: use the range.
        default: the spec's value, which the baseline uses.
    """

    path: str
    low: float
    high: float
    log: bool
    integer: bool
    options: tuple[float, ...]
    default: float


def search_space(spec: ExperimentSpec) -> list[Dimension]:
    """The dimensions of a checked spec, in the order of `automl_hyperparameters`."""
    ranges = spec.automl.custom_param_ranges
    return [_dimension(spec, path, ranges.get(path, ParamRange())) for path in spec.automl.automl_hyperparameters]


def complaints(spec: ExperimentSpec) -> Iterator[tuple[str, str]]:
    """Problems with `automl_hyperparameters` and `custom_param_ranges`: (dotted path, rule)."""
    own = spec.automl
    if len(set(own.automl_hyperparameters)) < len(own.automl_hyperparameters):
        yield "automl.automl_hyperparameters", "contains a key twice; remove one"
    refused = {path: why for path in own.automl_hyperparameters if (why := why_not(spec, path))}
    for path, why in refused.items():
        can = ", ".join(path for path in _FIELDS if not why_not(spec, path))
        yield "automl.automl_hyperparameters", f"{path} cannot be searched: {why}; possible with this spec: {can}"
    for path, given in own.custom_param_ranges.items():
        if path not in own.automl_hyperparameters:
            yield f"automl.custom_param_ranges.{path}", "the key is not in automl.automl_hyperparameters; add it there"
        elif path not in refused:
            try:
                _narrowed(path, given)
            except Refused as error:
                yield f"automl.custom_param_ranges.{path}", str(error)
    for path in own.automl_hyperparameters:
        if path not in refused:
            yield from _baseline_outside(spec, path)


def why_not(spec: ExperimentSpec, path: str) -> str | None:
    """Why a key cannot be searched in this training run; None if it can."""
    if path not in _FIELDS:
        guess = nearest(path, ExperimentSpec)
        return "unknown key" + (f", did you mean {guess}" if guess else "")
    without_effect = effects.reason(path)
    if without_effect:
        return f"it has no effect: {without_effect}"
    if path in _FIXED:
        return _FIXED[path]
    if not _marked(_FIELDS[path]):
        return "it is not a hyperparameter"
    if path.startswith("dataset.") and not path.startswith("dataset.train_dataset."):
        return "it has no effect on training"
    condition = _CONDITIONS.get(path)
    return condition(spec) if condition else None


def _unless(holds: Callable[[ExperimentSpec], Any], why: str) -> Callable[[ExperimentSpec], str | None]:
    return lambda spec: None if holds(spec) else why


_AUGMENTATION = "dataset.train_dataset.augmentation"
_DECAY, _PERIOD = "train.optim.lr_decay", "train.optim.lr_step_size"
_DECAYING = (*MULTI_STEP, "StepLR")


def _above_0(spec: ExperimentSpec, path: str) -> bool:
    """Whether trials can have a probability above 0: the spec sets one, or the search varies the key."""
    return value_of(spec, path) > 0 or path in _keys(spec)


def _flips(spec: ExperimentSpec) -> str | None:
    return (
        None if value_of(spec, _AUGMENTATION).do_flip else f"there are no flips unless {_AUGMENTATION}.do_flip is true"
    )


def _stretches(spec: ExperimentSpec) -> str | None:
    if value_of(spec, _AUGMENTATION).max_stretch == 0:
        return f"there is no stretch while {_AUGMENTATION}.max_stretch is 0"
    scaled = _above_0(spec, f"{_AUGMENTATION}.spatial_aug_prob")
    return None if scaled else f"there is no stretch while {_AUGMENTATION}.spatial_aug_prob is 0"


def _scales(spec: ExperimentSpec) -> str | None:
    own = value_of(spec, _AUGMENTATION)
    if own.min_scale or own.max_scale or (own.max_stretch and _above_0(spec, f"{_AUGMENTATION}.stretch_prob")):
        return None
    return f"{_AUGMENTATION}.min_scale, max_scale and the stretch are 0, so images that fill a crop are not scaled"


def _recolours(spec: ExperimentSpec) -> str | None:
    own = value_of(spec, _AUGMENTATION)
    ranges = (own.color_aug_saturation, own.color_aug_hue_range, own.gamma[:2], own.gamma[2:])
    if own.color_aug_brightness or own.color_aug_contrast or any(low != high for low, high in ranges):
        return None
    return f"the colour ranges of {_AUGMENTATION} (color_aug_*, gamma) have a single value, so both views are equal"


def _has_a_period(spec: ExperimentSpec) -> str | None:
    if spec.train.optim.lr_scheduler != "StepLR":
        return "only StepLR uses it"
    return (
        f"nothing decays while {_DECAY} is 1" if spec.train.optim.lr_decay == 1 and _DECAY not in _keys(spec) else None
    )


def _keys(spec: ExperimentSpec) -> list[str]:
    return spec.automl.automl_hyperparameters


_CONDITIONS: dict[str, Callable[[ExperimentSpec], str | None]] = {
    "train.optim.momentum": _unless(
        lambda s: s.train.optim.optimizer == "SGD" and s.train.optim.lr_scheduler != "OneCycleLR",
        "only SGD has a momentum, and OneCycleLR overrides it",
    ),
    _PERIOD: _has_a_period,
    _DECAY: _unless(lambda s: s.train.optim.lr_scheduler in _DECAYING, f"only {', '.join(_DECAYING)} use it"),
    "train.optim.min_lr": _unless(
        lambda s: s.train.optim.lr_scheduler == "CosineAnnealingLR", "only CosineAnnealingLR uses it"
    ),
    "model.corr_radius": _unless(
        lambda s: not s.train.pretrained_model_path, "the checkpoint in train.pretrained_model_path fixes it"
    ),
    f"{_AUGMENTATION}.h_flip_prob": _flips,
    f"{_AUGMENTATION}.v_flip_prob": _flips,
    f"{_AUGMENTATION}.stretch_prob": _stretches,
    f"{_AUGMENTATION}.spatial_aug_prob": _scales,
    f"{_AUGMENTATION}.color_aug_prob": _recolours,
}


def never_reached(spec: ExperimentSpec, steps: int) -> Iterator[tuple[str, str]]:
    """The searched schedule keys that take effect only after a trial's last step, with the reason.

    Args:
        steps: optimizer steps of a trial; known once the training pairs are counted.
    """
    optim, searched = spec.train.optim, _keys(spec)
    periods = [min(d.options or [d.low]) for d in search_space(spec) if d.path == _PERIOD] or [optim.lr_step_size]
    first = min(periods if optim.lr_scheduler == "StepLR" else optim.lr_steps, default=None)
    if first is None or first >= steps:
        when = f"at step {first:g}" if first else "never, because train.optim.lr_steps is empty"
        for path in (_DECAY, _PERIOD):
            if path in searched:
                yield (
                    path,
                    f"the learning rate decays {when}, but a trial has {steps} steps; set earlier steps, or do not "
                    "search this key",
                )


_FIXED = {
    "model.cv_group": "the network always has 8 correlation groups",
    "model.volume_dim": "the network always has 28 cost volume channels",
}
_FIELDS: dict[str, FieldInfo] = dict(walk(ExperimentSpec))


def _marked(field: FieldInfo) -> bool:
    return bool(marks_of(field).get("automl"))


# ---- ranges


def _dimension(spec: ExperimentSpec, path: str, given: ParamRange) -> Dimension:
    low, high, open_low = _own_range(path)
    closed_low = low + OPEN * (high - low) if open_low else low
    narrow_low, narrow_high, options = _narrowed(path, given)
    return Dimension(
        path=path,
        low=narrow_low,
        high=narrow_high,
        log=closed_low > 0 and high / closed_low >= LOG_RATIO and not options,
        integer=_is_integer(path),
        options=options,
        default=value_of(spec, path),
    )


def _narrowed(path: str, given: ParamRange) -> tuple[float, float, tuple[float, ...]]:
    """The key's own range, narrowed by the user's; Refused if the user's is wider or nothing is left."""
    low, high, open_low = _own_range(path)
    bounds = {"valid_min": given.valid_min, "valid_max": given.valid_max}
    values = [(name, value) for name, value in bounds.items() if value is not None]
    values += [("valid_options", value) for value in given.valid_options]
    for name, value in values:
        if value > high or value < low or (open_low and value == low):
            beyond = "greater than" if open_low else "from"
            raise Refused(f"{name} {value:g} is outside the key's own range, {beyond} {low:g} to {high:g}")
        if _is_integer(path) and value != int(value):
            raise Refused(f"{name} {value:g} is not a whole number")
    if given.valid_options and len(values) > len(given.valid_options):
        raise Refused("valid_options already lists all values; leave valid_min and valid_max out")
    if given.valid_options and len(set(given.valid_options)) < 2:
        raise Refused("valid_options needs at least two different values")
    cast = int if _is_integer(path) else float
    new_low = given.valid_min if given.valid_min is not None else low + OPEN * (high - low) if open_low else low
    new_high = given.valid_max if given.valid_max is not None else high
    if new_low >= new_high:
        raise Refused(f"the range from {new_low:g} to {new_high:g} is empty; set valid_min below valid_max")
    return cast(new_low), cast(new_high), tuple(cast(value) for value in given.valid_options)


def _baseline_outside(spec: ExperimentSpec, path: str) -> Iterator[tuple[str, str]]:
    value = value_of(spec, path)
    try:
        low, high, options = _narrowed(path, spec.automl.custom_param_ranges.get(path, ParamRange()))
    except Refused:
        return
    if (value not in options) if options else not low <= value <= high:
        what = ", ".join(f"{option:g}" for option in options) if options else f"{low:g} to {high:g}"
        yield (
            f"automl.custom_param_ranges.{path}",
            f"{what} does not include the spec's value {value:g}, which the first trial uses; set {path} within it",
        )


def _own_range(path: str) -> tuple[float, float, bool]:
    """Lowest and highest value of a key, and whether the lowest value is excluded."""
    rules: dict[str, float] = {}
    for rule in _FIELDS[path].metadata:
        rules |= {name: getattr(rule, name) for name in ("ge", "gt", "le") if hasattr(rule, name)}
    return rules["gt"] if "gt" in rules else rules["ge"], rules["le"], "gt" in rules


def _is_integer(path: str) -> bool:
    return _FIELDS[path].annotation is int


def value_of(spec: ExperimentSpec, path: str) -> Any:
    """The value of a dotted path."""
    value: Any = spec
    for name in path.split("."):
        value = getattr(value, name)
    return value
