"""Choose which layers are quantised, and how, by the rules `quantize.layers` and `quantize.skip_names`."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any

from stereo_core.errors import SpecError
from stereo_core.values import counted

LOG = logging.getLogger(__name__)

FORMATS = {"int8": "int8", "fp8_e4m3fn": "fp8", "fp8_e5m2": "fp8"}
# Parts that stay in float by default: their errors accumulate over the iterations (update block) or directly affect the
# disparity (classifier, upsampling); they hold few of the weights, or cost more accuracy than they save.
SENSITIVE = ("update_block", "classifier", "spx_gru", "spx_2_gru", "stem_2", "sam", "cam", "corr_feature_att")


@dataclass(frozen=True)
class Layer:
    """A layer that a backend can quantise.

    Attributes:
        name: its qualified name, or the ONNX node's name.
        type: its class, or the ONNX node's operator.
        weights: number of elements of its weight.
        part: its part of the network, for the summary.
        default: whether it is quantised if the rules name no layer.
    """

    name: str
    type: str
    weights: int
    part: str
    default: bool


@dataclass(frozen=True)
class Formats:
    """int8, fp8 or None (float) for the weights and the activations of a layer."""

    weights: str | None = None
    activations: str | None = None


def choose(layers: Iterable[Layer], rules: list[Any], skip_names: list[str], static: bool) -> dict[str, Formats]:
    """Layer name -> its formats, for the layers that are quantised.

    A rule matches a layer by name, else by type (`fnmatch`, case-sensitive); without a module_name it matches the
    default layers. Later rules override earlier ones. A rule changes only what it sets: weights, activations or both.
    `native` removes the quantisation. skip_names apply last. Without rules: the default layers in int8.

    Args:
        rules: entries of quantize.layers.
        static: whether activations may be quantised.

    Raises:
        SpecError: no layer is left to quantise, or a layer gets an invalid combination of formats.
    """
    layers = list(layers)
    chosen: dict[str, Formats] = {}
    if not rules:
        chosen = {layer.name: Formats("int8", "int8") for layer in layers if layer.default}
    for index, rule in enumerate(rules):
        if "fp8_e5m2" in (rule.weights.dtype, rule.activations.dtype):
            LOG.warning("quantize.layers[%d]: fp8_e5m2 is not supported; using fp8_e4m3fn instead", index)
        fitting = [layer.name for layer in layers if _fits(rule.module_name, layer)]
        if not fitting:
            LOG.warning(
                "quantize.layers[%d]: %r matches no layer that can be quantised; correct the pattern",
                index,
                rule.module_name,
            )
        for name in fitting:
            chosen[name] = _changed(chosen.get(name, Formats()), rule)
    for pattern in skip_names:
        skipped = [layer.name for layer in layers if _named(pattern, layer)]
        if not skipped:
            LOG.warning("quantize.skip_names: %r matches no layer that can be quantised; correct the pattern", pattern)
        for name in skipped:
            chosen.pop(name, None)
    if not static:
        chosen = {name: replace(formats, activations=None) for name, formats in chosen.items()}
    chosen = {name: formats for name, formats in chosen.items() if formats.weights or formats.activations}
    _check(chosen)
    return chosen


def _fits(pattern: str, layer: Layer) -> bool:
    return _named(pattern, layer) if pattern else layer.default


def _named(pattern: str, layer: Layer) -> bool:
    return fnmatchcase(layer.name, pattern) or fnmatchcase(layer.type, pattern)


def _changed(formats: Formats, rule: Any) -> Formats:
    for part in ("weights", "activations"):
        if dtype := getattr(rule, part).dtype:
            formats = replace(formats, **{part: FORMATS.get(dtype)})
    return formats


def _check(chosen: dict[str, Formats]) -> None:
    if not chosen:
        raise SpecError(
            "quantize.layers: no layer is left to quantise; add a rule with weights.dtype that matches a layer"
        )
    for name, formats in chosen.items():
        if formats.activations and not formats.weights:
            raise SpecError(f"quantize.layers: {name} has quantised activations but float weights; set "
                            "weights.dtype too")  # fmt: skip
        if formats.activations not in (None, formats.weights):
            raise SpecError(f"quantize.layers: {name} has {formats.weights} weights but {formats.activations} "
                            "activations; set both to the same format")  # fmt: skip


def one_format(chosen: dict[str, Formats], backend: str) -> str:
    """int8 or fp8.

    Raises:
        SpecError: the layers have both; engines do not support that.
    """
    found = sorted({formats.weights for formats in chosen.values() if formats.weights})
    if len(found) > 1:
        raise SpecError(
            f"quantize.layers: the rules use {' and '.join(found)}, but {backend} supports one format per network; "
            "use one of them"
        )
    return found[0]


@dataclass(frozen=True)
class Summary:
    """A summary of the quantisation.

    Attributes:
        text: one line for the log.
        kpi: quantized_layers, quantizable_layers and quantized_weight_share (of the weights that could be quantised).
        rows: one row per layer: name, type, number of weights, weights' format, activations' format.
    """

    text: str
    kpi: dict[str, float]
    rows: list[tuple[str, str, int, str, str]]


def summarise(layers: Iterable[Layer], chosen: dict[str, Formats]) -> Summary:
    """Summarise what was quantised and what stays in float."""
    layers = list(layers)
    rows = []
    for layer in layers:
        formats = chosen.get(layer.name, Formats())
        rows.append((layer.name, layer.type, layer.weights, formats.weights or "fp32", formats.activations or "fp32"))
    total = sum(layer.weights for layer in layers)
    share = sum(layer.weights for layer in layers if layer.name in chosen) / total
    left = Counter(layer.part for layer in layers if layer.name not in chosen)
    text = (
        f"{len(chosen)} of {counted(len(layers), 'layer')} with {share:.1%} of their weights quantised "
        f"({_counted(Counter(map(_format, chosen.values())))}); left in float: {_counted(left) or 'none'}"
    )
    kpi = {"quantized_layers": len(chosen), "quantizable_layers": len(layers), "quantized_weight_share": share}
    return Summary(text, kpi, rows)


def _format(formats: Formats) -> str:
    return f"{formats.weights} weights" + (" and activations" if formats.activations else "")


def _counted(counts: Counter[str]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counts.most_common())


def is_sensitive(words: Iterable[str]) -> bool:
    """Whether a layer, given the parts of its name, is in SENSITIVE."""
    return not set(SENSITIVE).isdisjoint(words)
