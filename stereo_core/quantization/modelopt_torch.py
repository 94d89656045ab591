"""Quantise a PyTorch network with NVIDIA ModelOpt: int8 or float8 weights and activations.

ModelOpt determines the ranges of activations; a weight's range is its largest absolute value per output channel.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from stereo_core.errors import SpecError
from stereo_core.models.quantized import QuantizedLayer, numbers_of, save_quantized, scale_of
from stereo_core.quantization import without_noise
from stereo_core.quantization.rules import Formats, Summary, choose, one_format, summarise
from stereo_core.quantization.torch_layers import TRANSPOSED, layers_of

BITS = {"int8": 8, "fp8": (4, 3)}
ENTROPY_STRIDE = 32
"""Stride over the histogram's 2048 bins when searching a range; trying each bin takes minutes per layer."""
Pairs = Iterable[tuple[Tensor, Tensor]]


def quantize(model: nn.Module, out: Path, section: Any, pairs: Pairs) -> Summary:
    """Write the quantised checkpoint of `model` to `out`.

    Args:
        pairs: left and right images (1, 3, H, W), RGB 0..255, on the model's device.

    Raises:
        SpecError: contradictory rules, or an algorithm that fp8 does not support.
    """
    layers = layers_of(model)
    chosen = choose(layers, section.layers, section.skip_names, static=True)
    kind = one_format(chosen, section.backend)
    if kind == "fp8" and section.algorithm == "entropy":
        raise SpecError("quantize.algorithm: entropy supports only int8; set max for fp8")
    ranges = _activation_ranges(model, chosen, kind, section.algorithm == "entropy", pairs)
    chosen = {name: f if name in ranges else replace(f, activations=None) for name, f in chosen.items()}
    quantised = {name: _quantized(model.get_submodule(name), kind, ranges.get(name)) for name in chosen}
    save_quantized(model, out, section.backend, quantised)
    return summarise(layers, chosen)


def _activation_ranges(
    model: nn.Module, chosen: dict[str, Formats], kind: str, entropy: bool, pairs: Pairs
) -> dict[str, Tensor]:
    """Layer -> the range of its input (largest absolute value, a scalar); layers that are never called are left out.

    ModelOpt's calibrators observe the inputs of the float network, as in ModelOpt's `mtq.calibrate`.
    """
    with without_noise():
        from modelopt.torch.quantization.calib import HistogramCalibrator, MaxCalibrator

    # NumPy's histogram counts in integers; torch's counts in float32, which is inexact for large networks.
    watch = partial(HistogramCalibrator, torch_hist=False) if entropy else MaxCalibrator
    calibrators = {name: watch(BITS[kind], None, False) for name, formats in chosen.items() if formats.activations}
    hooks = [model.get_submodule(name).register_forward_pre_hook(_collector(c)) for name, c in calibrators.items()]
    try:
        with torch.no_grad():
            for left, right in pairs:
                model(left, right)
    finally:
        for hook in hooks:
            hook.remove()
    options = {"method": "entropy", "stride": ENTROPY_STRIDE} if entropy else {}
    ranges = {name: calibrator.compute_amax(**options) for name, calibrator in calibrators.items()}
    return {name: amax.reshape(()) for name, amax in ranges.items() if amax is not None}


def _collector(calibrator: Any) -> Callable[[nn.Module, tuple[Any, ...]], None]:
    return lambda layer, arguments: calibrator.collect(arguments[0])


def _quantized(layer: nn.Module, kind: str, activation_range: Tensor | None) -> QuantizedLayer:
    weight = cast(Tensor, layer.weight).detach()
    channels = 1 if isinstance(layer, TRANSPOSED) else 0
    scale = scale_of(weight.abs().amax([i for i in range(weight.dim()) if i != channels], keepdim=True), kind)
    activation_scale = None if activation_range is None else scale_of(activation_range, kind)
    return QuantizedLayer(numbers_of(weight, scale, kind), scale, activation_scale)
