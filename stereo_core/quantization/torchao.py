"""Quantise only weights with torchao, in int8 or float8; the network computes in float."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from stereo_core.models.quantized import QuantizedLayer, save_quantized
from stereo_core.quantization import without_noise
from stereo_core.quantization.rules import Formats, Layer, Summary, choose, summarise
from stereo_core.quantization.torch_layers import layers_of


def quantize(model: nn.Module, out: Path, section: Any, pairs: Any = None) -> Summary:
    """Write the quantised checkpoint of `model` to `out`; pairs are not needed."""
    layers = [_all_default(layer) for layer in layers_of(model)]
    chosen = choose(layers, section.layers, section.skip_names, static=False)
    with without_noise():
        quantised = {name: _quantized(model, name, formats) for name, formats in chosen.items()}
    save_quantized(model, out, section.backend, quantised)
    return summarise(layers, chosen)


def _all_default(layer: Layer) -> Layer:
    """Quantise all layers by default: rounding only weights costs little accuracy."""
    return Layer(layer.name, layer.type, layer.weights, layer.part, default=True)


def _quantized(model: nn.Module, name: str, formats: Formats) -> QuantizedLayer:
    """A weight quantised by torchao. A convolution is passed as a matrix with one row per output channel (of a
    transposed convolution: per input channel)."""
    from torchao.quantization import Float8WeightOnlyConfig, Int8WeightOnlyConfig, quantize_

    weight = cast(Tensor, model.get_submodule(name).weight).detach()
    matrix = weight.flatten(1)
    linear = nn.Linear(matrix.shape[1], matrix.shape[0], bias=False, device=matrix.device)
    linear.weight = nn.Parameter(matrix.float().contiguous(), requires_grad=False)
    config = Int8WeightOnlyConfig if formats.weights == "int8" else Float8WeightOnlyConfig
    quantize_(linear, config(), filter_fn=lambda module, _: isinstance(module, nn.Linear))
    quantized: Any = linear.weight
    numbers, scale = quantized.qdata, quantized.scale
    return QuantizedLayer(numbers.reshape(weight.shape), _by_rows(scale, weight))


def _by_rows(scale: Tensor, weight: Tensor) -> Tensor:
    return scale.reshape(-1, *[1] * (weight.dim() - 1)).to(torch.float32)
