"""Inputs and outputs of an engine, according to its side-car, its network and the engine itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from stereo_core.engines.files import DISPARITY, LEFT, RIGHT
from stereo_core.errors import ModelError

Interface = dict[str, tuple[tuple[int, ...], ...]]
"""Name of an input -> its minimum, optimum and maximum shapes. Name of an output -> empty."""


def interface_of_info(info: dict[str, Any]) -> Interface:
    """The inputs and outputs according to a side-car."""
    batches, heights, widths = (
        (info[f"min_{side}"], info[opt], info[f"max_{side}"])
        for side, opt in (("batch", "opt_batch"), ("height", "input_height"), ("width", "input_width"))
    )
    shapes = tuple((batch, 3, height, width) for batch, height, width in zip(batches, heights, widths, strict=True))
    return {LEFT: shapes, RIGHT: shapes, DISPARITY: ()}


def interface_of_network(trt: Any, network: Any, profile: Any) -> Interface:
    """The inputs and outputs of a parsed ONNX file, with the profile it is built with."""
    found: Interface = {}
    for tensor in (network.get_input(index) for index in range(network.num_inputs)):
        shape = tuple(tensor.shape)
        shapes = profile.get_shape(tensor.name) if -1 in shape else (shape,) * 3
        found[tensor.name] = tuple(map(tuple, shapes))
        _refuse_type(trt, tensor.name, tensor.dtype)
    for tensor in (network.get_output(index) for index in range(network.num_outputs)):
        found[tensor.name] = ()
        _refuse_type(trt, tensor.name, tensor.dtype)
    return found


def interface_of_engine(trt: Any, engine: Any) -> Interface:
    """The inputs and outputs of a deserialised engine."""
    found: Interface = {}
    for name in (engine.get_tensor_name(index) for index in range(engine.num_io_tensors)):
        is_input = engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT
        found[name] = tuple(map(tuple, engine.get_tensor_profile_shape(name, 0))) if is_input else ()
        _refuse_type(trt, name, engine.get_tensor_dtype(name))
    return found


def _refuse_type(trt: Any, name: str, kind: Any) -> None:
    if kind != trt.DataType.FLOAT:
        raise ModelError(
            f"{name} is {kind}, not float32; export the ONNX file by `depth_net export` and build the engine again"
        )


def refuse_difference(path: Path, found: Interface, expected: Interface) -> None:
    if found != expected:
        raise ModelError(f"{path}: inputs and outputs are {found}, expected {expected}; build the engine again")
