"""The figures of evaluations as pages show them: plain names with units, shares in per cent."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
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
    "loss": ("validation loss", "px"),  # val/loss, of train.monitor
    "initial_val_loss": ("validation loss before training", "px"),
    "baseline_epe": ("EPE of the unchanged spec", "px"),
    "baseline_val_loss": ("validation loss of the unchanged spec", "px"),
    "epe_increase": ("increase of the EPE", "px"),
    "latency_median_ms": ("time of a batch, median", "ms"),
    "latency_p95_ms": ("time of a batch, 95th percentile", "ms"),
    "latency_batch": ("batch size", "pairs"),
    "images_per_second": ("speed", "pairs/s"),
    "model_bytes": ("model file", "MB"),
    "engine_bytes": ("engine file", "MB"),
    "onnx_bytes": ("ONNX file", "MB"),
    "bytes_before": ("size before quantisation", "MB"),
    "bytes_after": ("size after quantisation", "MB"),
    "device_memory_bytes": ("GPU memory", "MB"),
    "build_seconds": ("time of the build", "s"),
    "onnx_nodes": ("nodes of the graph", ""),
    "check_mean_abs_difference_px": ("mean difference from PyTorch", "px"),
    "check_max_abs_difference_px": ("largest difference from PyTorch", "px"),
    "check_tolerance_px": ("largest mean difference allowed", "px"),
    "verify_mean_abs_difference_px": ("mean difference from the ONNX file", "px"),
    "verify_max_abs_difference_px": ("largest difference from the ONNX file", "px"),
    "verify_tolerance_px": ("largest mean difference allowed", "px"),
    "quantized_layers": ("layers quantised", ""),
    "quantizable_layers": ("layers that can be quantised", ""),
    "quantized_weight_share": ("share of the weights quantised", "%"),
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
    "EPE is the mean error of a pair's pixels. BP-n is the share of pixels with an error above n px. D1 is the share "
    "of pixels with an error above 3 px and above 5 % of the ground truth. Low figures are good."
)

ACCURACY = ("epe", "d1", "bp1", "bp2", "bp3", "rmse")
KINDS = {
    "mean over pairs, before training": "initial_{}",
    "mean over pairs, before quantisation": "{}_before",
    "mean over pairs": "{}",
    "over all pixels, before training": "initial_{}_pixel",
    "over all pixels": "{}_pixel",
}
"""What an accuracy refers to -> its key, made from the metric's key."""

SPREAD = {"median over pairs": 10, "95th percentile over pairs": 19}
"""Kind -> twentieths of the pairs: beside the mean they tell whether a few pairs are far worse than the others."""

Pairs = Mapping[str, Mapping[str, float]]
"""Path of a left image -> the pair's figures."""

_FACTORS = {"%": 100.0, "MB": 1e-6}
_DECIMALS = {"px": 3, "%": 2, "pairs/s": 2, "MB": 1, "s": 1}


def plain(key: str) -> str:
    """The name of a figure with its unit, as `EPE (px)`, or `engine: EPE (px)` for `engine/epe`; keys without an entry
    stay as they are."""
    of, _, own = key.rpartition("/")
    if own not in NAMES:
        return key
    name, unit = NAMES[own]
    return f"{of}: " * bool(of) + name + f" ({unit})" * bool(unit)


def _unit(key: str) -> str:
    return NAMES.get(key.rpartition("/")[2], ("", ""))[1]


def of_batch(key: str, batches: Collection[float]) -> str:
    """`plain`, where a latency names its batches, if they are known: `time of a batch of 4, median (ms)`."""
    if not batches or not key.startswith("latency_"):
        return plain(key)
    sizes = " or ".join(f"{batch:.0f}" for batch in sorted(batches))
    return plain(key).replace("of a batch", "of a pair" if set(batches) == {1} else f"of a batch of {sizes}")


TIME = "time of a pair (ms)"  # the title of what `pair_ms` returns


def pair_ms(figures: Mapping[str, float]) -> float:
    """The time of a pair in ms; latencies are per batch."""
    return figures["latency_median_ms"] / figures.get("latency_batch", 1)


def scaled(key: str, value: float) -> float:
    """A figure in the unit that `plain` names."""
    return value * _FACTORS.get(_unit(key), 1.0)


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
    unit = _unit(key)
    if unit == "px" and 0 < abs(value) < 0.0005:  # it would be shown as 0.000
        return None
    return int(value < 10) if unit == "ms" else _DECIMALS.get(unit)


def amount(key: str, value: float) -> str:
    """A figure as a sentence has it, with its unit: `0.715 px`."""
    number, unit = scaled(key, value), _unit(key)
    digits = decimals(key, number)
    return (f"{number:.4g}" if digits is None else f"{number:.{digits}f}") + f" {unit}" * bool(unit)


def named(key: str, value: float) -> str:
    """`amount` after the figure's name: `EPE 0.715 px`, also for `val/epe`."""
    return f"{NAMES[key.rpartition('/')[2]][0]} {amount(key, value)}"


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
    return ", ".join(named(key, row[key]) for key in ("epe", "bp2", "d1"))
