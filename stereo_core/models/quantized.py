"""Quantised checkpoints: weights as int8 or float8 numbers with scales, and how to restore a network from them.

In the file a quantised weight keeps its name and is stored as int8 or float8_e4m3fn numbers. Beside the weights,
`quantization` holds `backend`, `weight_scales` (layer -> scale, broadcast against the weight) and `activation_scales`
(layer -> scale; only with static quantisation). Reading it does not need the library that chose the scales.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from stereo_core.errors import ModelError
from stereo_core.files import atomic_path
from stereo_core.models.files import write_torch
from stereo_core.models.foundation_stereo.config import settings_of
from stereo_core.models.foundation_stereo.layers import at_least_float32

DTYPES = {"int8": torch.int8, "fp8": torch.float8_e4m3fn}
LARGEST = {"int8": 127.0, "fp8": 448.0}
"""The number that represents a tensor's largest absolute value."""


@dataclass(frozen=True)
class QuantizedLayer:
    """The weight of a layer in low precision: weight = numbers * scale.

    Attributes:
        numbers: int8 or float8_e4m3fn, of the weight's shape.
        weight_scale: float32, broadcast against the weight.
        activation_scale: float32 scalar: inputs are rounded to multiples of it; None: inputs are not rounded.
    """

    numbers: Tensor
    weight_scale: Tensor
    activation_scale: Tensor | None = None


@dataclass(frozen=True)
class Quantization:
    """The entry `quantization` of a quantised checkpoint; see the top of this file."""

    backend: str
    weight_scales: dict[str, Tensor] = field(default_factory=dict)
    activation_scales: dict[str, Tensor] = field(default_factory=dict)


def save_quantized(model: nn.Module, path: str | Path, backend: str, layers: dict[str, QuantizedLayer]) -> None:
    """Write the float network `model` with `layers` (by name) in low precision; the file is replaced atomically."""
    state = {key: value.detach().cpu() for key, value in model.state_dict().items()}
    state |= {f"{name}.weight": layer.numbers.cpu() for name, layer in layers.items()}
    scales = {name: layer.weight_scale.float().cpu() for name, layer in layers.items()}
    activations = {n: x.activation_scale.float().cpu() for n, x in layers.items() if x.activation_scale is not None}
    quantization = {"backend": backend, "weight_scales": scales, "activation_scales": activations}
    content: dict[str, Any] = {"model": state, "quantization": quantization}
    content |= {"epoch": 0, "global_step": 0, "hyper_parameters": {"model": settings_of(model.config)}}
    with atomic_path(path) as temporary:
        write_torch(content, temporary)


def read_quantization(extra: dict[str, Any], path: str | Path) -> Quantization | None:
    """The entry `quantization` of a checkpoint, or None if it is not quantised.

    Raises:
        ModelError: the entry is damaged.
    """
    if "quantization" not in extra:
        return None
    try:
        return Quantization(**extra["quantization"])
    except TypeError as error:
        raise ModelError(
            f"{path}: the entry `quantization` was not written by depth_net quantize ({error}); quantise again"
        ) from error


def dequantized(state: dict[str, Tensor], quantization: Quantization, path: str | Path) -> dict[str, Tensor]:
    """The state dict with every weight in float32.

    Raises:
        ModelError: a scale has no weight, or a low-precision weight has no scale.
    """
    low = formats_of(state).keys()
    if odd := low ^ set(quantization.weight_scales):
        raise ModelError(
            f"{path}: quantised weights and scales do not match, for example {sorted(odd)[0]}; quantise again"
        )
    floats = {f"{n}.weight": state[f"{n}.weight"].float() * scale for n, scale in quantization.weight_scales.items()}
    return state | floats


def round_activations(model: nn.Module, quantization: Quantization, formats: dict[str, str]) -> None:
    """Let the statically quantised layers round their inputs and weights, in eager mode and in exported graphs.

    `model.quantization` is set to the backend's name.

    Args:
        formats: layer -> int8 or fp8.
    """
    model.quantization = quantization.backend
    for name, scale in quantization.activation_scales.items():
        layer, kind = model.get_submodule(name), formats[name]
        parametrize.register_parametrization(layer, "weight", Rounding(kind, quantization.weight_scales[name]))
        layer.input_rounding = Rounding(kind, scale)
        layer.register_forward_pre_hook(_round_input)


def formats_of(state: dict[str, Tensor]) -> dict[str, str]:
    """Layer -> int8 or fp8, for the weights in low precision."""
    names = {dtype: name for name, dtype in DTYPES.items()}
    weights = {key.removesuffix(".weight"): t for key, t in state.items() if key.endswith(".weight")}
    return {layer: names[t.dtype] for layer, t in weights.items() if t.dtype in names}


def rounds(model: nn.Module) -> bool:
    """Whether the network rounds activations (`round_activations`)."""
    return any(isinstance(module, Rounding) for module in model.modules())


def scale_of(amax: Tensor, kind: str) -> Tensor:
    """The scale that maps the absolute value `amax` to the largest number; never zero, so that it can divide."""
    amax = amax.float()
    return torch.where(amax > 0, amax, torch.ones_like(amax)) / LARGEST[kind]


def numbers_of(weight: Tensor, scale: Tensor, kind: str) -> Tensor:
    """A weight as int8 or float8 numbers."""
    numbers = (weight.float() / scale).clamp(-LARGEST[kind], LARGEST[kind])
    return (numbers.round() if kind == "int8" else numbers).to(DTYPES[kind])


class Rounding(nn.Module):
    """Rounds a tensor to the values that int8 or fp8 can hold; exported as QuantizeLinear and DequantizeLinear.

    Args:
        kind: int8 or fp8.
        scale: a scalar, or of the tensor's rank with one axis longer than 1, the axis of per-channel scales.
    """

    def __init__(self, kind: str, scale: Tensor):
        super().__init__()
        self.kind = kind
        self.axis = max(range(scale.dim()), key=lambda i: scale.shape[i], default=None)
        self.register_buffer("scale", scale.reshape(-1) if scale.dim() else scale, persistent=False)
        self.register_buffer("zero", torch.zeros_like(self.scale, dtype=torch.int32), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        y = at_least_float32(x)
        if self.kind == "fp8":
            return _RoundFloat8.apply(y, self.scale, self.axis).to(x.dtype)
        if self.axis is None:
            return torch.fake_quantize_per_tensor_affine(y, self.scale, self.zero, -128, 127).to(x.dtype)
        return torch.fake_quantize_per_channel_affine(y, self.scale, self.zero, self.axis, -128, 127).to(x.dtype)


class _RoundFloat8(torch.autograd.Function):
    """Rounding to float8_e4m3fn; torch has no exportable operator for it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, axis: int | None) -> Tensor:
        if axis is not None:
            scale = scale.reshape([-1 if i == axis else 1 for i in range(x.dim())])
        largest = LARGEST["fp8"]
        return (x / scale).clamp(-largest, largest).to(torch.float8_e4m3fn).to(x.dtype) * scale

    @staticmethod
    def symbolic(g: Any, x: Any, scale: Any, axis: int | None) -> Any:
        from torch.onnx.symbolic_helper import _get_tensor_sizes

        where = {} if axis is None else {"axis_i": axis}
        shape = _get_tensor_sizes(scale)
        zero = g.op("Constant", value_t=torch.zeros(shape, dtype=torch.float8_e4m3fn))
        low = g.op("QuantizeLinear", x, scale, zero, **where)
        result = g.op("DequantizeLinear", low, scale, zero, **where)
        result.setType(x.type())
        return result


def _round_input(layer: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    return (layer.input_rounding(arguments[0]), *arguments[1:])
