"""The figures of evaluations as pages show them: plain names with units, shares in per cent."""

from __future__ import annotations

import math
from collections.abc import Mapping
from statistics import quantiles

NAMES = {
    "epe": ("EPE", "px"),
    "d1": ("D1", "%"),
    "bp1": ("BP-1", "%"),
    "bp2": ("BP-2", "%"),
    "bp3": ("BP-3", "%"),
    "rmse": ("RMSE", "px"),
    "train_loss": ("training loss", "px"),
    "val_loss": ("validation loss", "px"),
    "initial_val_loss": ("validation loss before training", "px"),
    "latency_median_ms": ("batch time, median", "ms"),
    "latency_p95_ms": ("batch time, 95 %", "ms"),
    "latency_batch": ("batch size", "pairs"),
    "images_per_second": ("speed", "pairs/s"),
    "model_bytes": ("model file", "MB"),
    "engine_bytes": ("engine file", "MB"),
    "device_memory_bytes": ("GPU memory", "MB"),
    "pixels": ("valid pixels", ""),
    "valid": ("valid", "%"),
    "images": ("pairs", ""),
    "empty": ("pairs without ground truth", ""),
}
"""Key in results.json, metrics.csv or status.json -> name and unit."""

SETTINGS = {
    "hierarchical": ("coarse pass first", ""),
    "resize": ("images fitted to the network", ""),
    "encoder": ("encoder", ""),
    "max_disparity": ("largest disparity of the network", "px"),
    "dataset_max_disparity": ("largest ground truth that counts", "px"),
    "valid_iters": ("iterations", ""),
    **{
        f"{end}_{side}": (f"{end} {side}", "px")
        for end in ("input", "min", "opt", "max")
        for side in ("height", "width")
    },
}
"""Key of an evaluation's or prediction's settings -> name and unit; the others are their own names."""

_RESIZES = {"none": "no, as they are", "pad": "by padding", "stretch": "by stretching"}

EXPLAINED = (
    "EPE is the mean error of the pixels. BP-n is the share of pixels with an error above n px. D1 is the share of "
    "pixels with an error above 3 px and above 5 % of the ground truth. Low figures are good."
)

ACCURACY = ("epe", "d1", "bp1", "bp2", "bp3", "rmse")
KINDS = {
    "mean over pairs": "{}",
    "over all pixels": "{}_pixel",
    "before training": "initial_{}",
    "before training, over all pixels": "initial_{}_pixel",
}
"""What an accuracy refers to -> its key, made from the metric's key."""

SPREAD = {"median over pairs": 10, "95th percentile over pairs": 19}
"""Kind -> twentieths of the pairs: beside the mean they tell whether a few pairs are far worse than the others."""

Pairs = Mapping[str, Mapping[str, float]]
"""Path of a left image -> the pair's figures."""

_FACTORS = {"%": 100.0, "MB": 1e-6}
_DECIMALS = {"px": 3, "%": 2, "pairs/s": 2, "MB": 1}


def plain(key: str) -> str:
    """The name of a figure with its unit, as `EPE (px)`; keys without an entry stay as they are."""
    name, unit = NAMES.get(key, (key, ""))
    return f"{name} ({unit})" if unit else name


def scaled(key: str, value: float) -> float:
    """A figure in the unit that `plain` names."""
    return value * _FACTORS.get(NAMES.get(key, (key, ""))[1], 1.0)


def setting(key: str) -> str:
    """The name of a setting with its unit; plain words with blanks, so that lines break between them."""
    name, unit = SETTINGS.get(key, (key.replace("_", " "), ""))
    return f"{name} ({unit})" if unit else name


def setting_value(key: str, value: object) -> str:
    """A setting's value in words: yes and no, and how images were fitted."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return _RESIZES.get(str(value), str(value)) if key == "resize" else str(value)


def decimals(key: str, value: float) -> int | None:
    """The digits after the decimal point of a figure as `scaled` gives it; None: as many as the value has."""
    unit = NAMES.get(key, (key, ""))[1]
    return int(value < 10) if unit == "ms" else _DECIMALS.get(unit)


def spread(pairs: Pairs, key: str) -> dict[str, float]:
    """A figure for each kind of SPREAD, interpolated as NumPy does; empty for fewer than two pairs.

    Pairs without the figure, or with NaN (no ground truth), do not count.
    """
    known = [value for value in (one.get(key, math.nan) for one in pairs.values()) if value == value]
    if len(known) < 2:
        return {}
    cuts = quantiles(known, n=20, method="inclusive")
    return {kind: cuts[twentieths - 1] for kind, twentieths in SPREAD.items()}


def sentence(row: dict[str, float]) -> str:
    """The metrics of one image (see `stereo_core.metrics`) in a line."""
    if not row["pixels"]:
        return "no valid ground truth"
    shares = (f"{NAMES[key][0]} {scaled(key, row[key]):.2f} %" for key in ("bp2", "d1"))
    return ", ".join((f"EPE {row['epe']:.3f} px", *shares))
