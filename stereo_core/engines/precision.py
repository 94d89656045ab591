"""Write a lower precision into the graph itself: an fp32 ONNX file becomes an fp16 or bf16 one.

TensorRT's strongly typed networks and ONNX Runtime compute in the types of the graph. This module sets them with the
semantics of PyTorch's autocast, so that an fp16 engine computes the same as the fp16 checkpoint:

- products with weights (convolutions, linear layers) run in the low type;
- operations that need the precision stay float32: norms, softmax (except attention's), sums, powers, logarithms,
  positions that are looked up or rounded;
- everything else runs in the widest type of its inputs. Constants and values that depend only on shapes adapt to the
  others; a constant that fp16 cannot represent (an epsilon of 1e-12, a mask of -1e9) keeps its node in float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import ml_dtypes
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from stereo_core.errors import ModelError, SpecError

FLOAT = TensorProto.FLOAT
_KEY = "gen_trt_engine.tensorrt.data_type"
TYPES = {"fp32": FLOAT, "fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}
_NUMPY: dict[int, Any] = {TensorProto.FLOAT16: np.dtype(np.float16), TensorProto.BFLOAT16: np.dtype(ml_dtypes.bfloat16)}

_PRODUCTS = frozenset(("Conv", "ConvTranspose", "Gemm", "MatMul", "Einsum"))
_NOT_IN_BF16 = frozenset(("ConvTranspose",))  # TensorRT has no bf16 deconvolution
_FLOAT32 = frozenset(
    (
        *("InstanceNormalization", "LayerNormalization", "GroupNormalization", "BatchNormalization"),
        *("LpNormalization", "MeanVarianceNormalization", "RMSNormalization", "Softmax", "LogSoftmax"),
        *("ReduceSum", "ReduceMean", "ReduceProd", "ReduceL1", "ReduceL2", "ReduceSumSquare", "ReduceLogSum"),
        *("ReduceLogSumExp", "CumSum", "Exp", "Log", "Pow", "Sqrt", "Reciprocal", "Sin", "Cos"),
        *("Floor", "Ceil", "Round", "Range", "GridSample", "QuantizeLinear", "DequantizeLinear"),
    )
)
# Operators with inputs that ONNX requires in float32: positions of these inputs.
_ALWAYS_FLOAT = {"Resize": (1, 2), "Upsample": (1,)}


@dataclass(frozen=True)
class _Value:
    """A float value of the original graph and its counterpart in the new one.

    Attributes:
        name: its name in the new graph.
        type: TensorProto element type.
        constant: it depends only on weights and shapes, and does not influence the type of a node.
    """

    name: str
    type: int
    constant: bool = False


def lower_precision(model: onnx.ModelProto, precision: str, pins: Sequence[str] = ()) -> onnx.ModelProto:
    """A copy of a float32 network that computes in `precision`. Its inputs and outputs stay float32.

    Args:
        precision: "fp16" or "bf16" ("fp32" to apply only the pins).
        pins: `<layer>:<precision>`; a layer is a node's name or an fnmatch pattern; the last match wins. The pattern
            `*` replaces `precision` for all nodes that no other pin matches.

    Raises:
        SpecError: a pin has no precision of TYPES, or matches no floating-point node.
        ModelError: the graph has branches or loops, or operators of unknown types.
    """
    graph = _Lowering(model, precision, [_parse_pin(pin) for pin in pins])
    return graph.run()


def _parse_pin(pin: str) -> tuple[str, int]:
    layer, _, precision = pin.rpartition(":")
    if not layer or precision.lower() not in TYPES:
        raise SpecError(
            f"gen_trt_engine.tensorrt.layers_precision: {pin!r} is not <layer>:<precision>; precisions are "
            f"{', '.join(TYPES)}"
        )
    return layer, TYPES[precision.lower()]


class _Lowering:
    """One pass over the nodes in order; `values` holds every float value computed so far."""

    def __init__(self, model: onnx.ModelProto, precision: str, pins: list[tuple[str, int]]):
        self.model = model
        self.low = next((kind for layer, kind in reversed(pins) if layer == "*"), TYPES[precision])
        self.pins = [pin for pin in pins if pin[0] != "*"]
        self.pins_used: set[str] = set()
        self.types = _element_types(model)
        self.tensors = {tensor.name: tensor for tensor in model.graph.initializer}
        self.values = {x.name: _Value(x.name, FLOAT) for x in model.graph.input if self.types[x.name] == FLOAT}
        self.constants = set(self.tensors)
        self.consumers = _consumers(model.graph)
        self.softmaxes: set[str] = set()
        self.nodes: list[onnx.NodeProto] = []
        self.casts: dict[tuple[str, int], str] = {}
        for name, tensor in self.tensors.items():
            self._take_constant(name, tensor)

    def run(self) -> onnx.ModelProto:
        for node in self.model.graph.node:
            if any(a.type in (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS) for a in node.attribute):
                raise ModelError(f"{_KEY}: node {node.name} ({node.op_type}) contains a subgraph; set fp32")
            self._take(node)
        self._refuse_unused_pins()
        for output in self.model.graph.output:
            self._add_output(output.name)
        return self._assembled()

    def _take(self, node: onnx.NodeProto) -> None:
        """Add one node to the new graph, in its type."""
        tensor = _constant_tensor(node)
        if tensor is not None:
            self.tensors[node.output[0]] = tensor
            self.constants.add(node.output[0])
            self._take_constant(node.output[0], tensor)
            return
        if node.op_type == "Identity" and node.input[0] in self.values:
            self.values[node.output[0]] = self.values[node.input[0]]
            self._mark(node)
            return
        self._mark(node)
        kind = self._type_for(node)
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        fixed = _ALWAYS_FLOAT.get(node.op_type, ())
        copy.input[:] = [
            self._in_type(name, FLOAT if place in fixed else kind) if name in self.values else name
            for place, name in enumerate(node.input)
        ]
        self.nodes.append(copy)
        # A Cast to float32 is an explicit part of the exported network: keep it.
        made = FLOAT if node.op_type in ("Cast", "ConstantOfShape") else kind
        for name in node.output:
            if self.types.get(name) == FLOAT:
                self.values[name] = _Value(name, made, name in self.constants)

    def _mark(self, node: onnx.NodeProto) -> None:
        """Record which values depend only on weights and shapes."""
        if node.op_type in ("Shape", "Size") or all(not name or name in self.constants for name in node.input):
            self.constants.update(node.output)

    def _take_constant(self, name: str, tensor: onnx.TensorProto) -> None:
        if tensor.data_type == FLOAT:
            self.values[name] = _Value(name, FLOAT, True)

    def _type_for(self, node: onnx.NodeProto) -> int:
        """The element type in which a node computes."""
        floats = [self.values[name] for name in node.input if name in self.values]
        if not floats and not any(self.types.get(name) == FLOAT for name in node.output):
            return FLOAT
        pinned = self._pin(node.name)
        if pinned is not None:
            return pinned
        own = self._own_type(node, floats)
        if own == TensorProto.BFLOAT16 and node.op_type in _NOT_IN_BF16:
            return FLOAT
        return own if own == FLOAT or not self._unrepresentable(node, own) else FLOAT

    def _own_type(self, node: onnx.NodeProto, floats: list[_Value]) -> int:
        if node.op_type == "Softmax" and not self._is_attention(node):
            self.softmaxes.update(node.output)
            return FLOAT
        rounds = node.op_type == "Cast" and self.types[node.output[0]] != FLOAT
        if rounds or (node.op_type in _FLOAT32 and node.op_type != "Softmax"):
            return FLOAT
        if node.op_type in _PRODUCTS and any(value.constant for value in floats):
            # A product with softmax weights is the sum over disparity, written as a product.
            return FLOAT if any(name in self.softmaxes for name in node.input) else self.low
        kinds = {value.type for value in floats if not value.constant}
        if not kinds or FLOAT in kinds:
            return FLOAT
        return kinds.pop() if len(kinds) == 1 else FLOAT

    def _is_attention(self, softmax: onnx.NodeProto) -> bool:
        """Whether its result is used only in products with other activations."""
        users = self.consumers.get(softmax.output[0], [])
        return bool(users) and all(
            user.op_type == "MatMul" and not any(name in self.tensors for name in user.input) for user in users
        )

    def _unrepresentable(self, node: onnx.NodeProto, kind: int) -> bool:
        """Whether a scalar among the inputs becomes 0 or infinite in `kind`."""
        tensors = [self.tensors[name] for name in node.input if name in self.tensors and name in self.values]
        numbers = [numpy_helper.to_array(t) for t in tensors if np.prod(t.dims, dtype=int) == 1]
        return any(_lost(number, kind) for number in numbers)

    def _pin(self, node: str) -> int | None:
        found = [(layer, kind) for layer, kind in self.pins if fnmatchcase(node, layer) or node == layer]
        self.pins_used.update(layer for layer, _ in found)
        return found[-1][1] if found else None

    def _refuse_unused_pins(self) -> None:
        unused = [layer for layer, _ in self.pins if layer not in self.pins_used]
        if unused:
            raise SpecError(
                "gen_trt_engine.tensorrt.layers_precision: no floating-point layer of the ONNX file matches "
                f"{', '.join(unused)}; use the names of its nodes"
            )

    def _in_type(self, name: str, kind: int) -> str:
        """The name of a float value in type `kind`; casts and copies are created once."""
        value = self.values[name]
        if value.type == kind:
            return value.name
        if (value.name, kind) not in self.casts:
            self.casts[value.name, kind] = self._converted(value, kind)
        return self.casts[value.name, kind]

    def _converted(self, value: _Value, kind: int) -> str:
        new = f"{value.name}_{TensorProto.DataType.Name(kind).lower()}"
        if value.name in self.tensors and value.type == FLOAT:
            array = numpy_helper.to_array(self.tensors[value.name])
            self.tensors[new] = numpy_helper.from_array(_rounded(array, kind), new)
        else:
            self.nodes.append(helper.make_node("Cast", [value.name], [new], f"{new}_cast", to=kind))
        return new

    def _add_output(self, name: str) -> None:
        """Add a graph output in float32 under its original name."""
        value = self.values.get(name)
        if value is None or (value.name == name and value.type == FLOAT):
            return
        if value.name != name:
            self.nodes.append(helper.make_node("Cast", [value.name], [name], f"{name}_cast", to=FLOAT))
            return
        inner = f"{name}_inner"
        for node in self.nodes:
            node.input[:] = [inner if x == name else x for x in node.input]
            node.output[:] = [inner if x == name else x for x in node.output]
        self.nodes.append(helper.make_node("Cast", [inner], [name], f"{name}_cast", to=FLOAT))

    def _assembled(self) -> onnx.ModelProto:
        used = {name for node in self.nodes for name in node.input}
        outputs = {value.name for value in self.model.graph.output}
        result = onnx.ModelProto()
        for name in ("ir_version", "producer_name", "producer_version", "domain", "model_version", "doc_string"):
            setattr(result, name, getattr(self.model, name))
        result.opset_import.extend(self.model.opset_import)
        result.metadata_props.extend(self.model.metadata_props)
        graph = result.graph
        graph.name = self.model.graph.name
        graph.input.extend(self.model.graph.input)
        graph.output.extend(self.model.graph.output)
        graph.node.extend(self.nodes)
        for name, tensor in self.tensors.items():
            if name in used or name in outputs:
                graph.initializer.add().CopyFrom(tensor)
                graph.initializer[-1].name = name
        return result


def _element_types(model: onnx.ModelProto) -> dict[str, int]:
    """Element type of every value of the graph, by ONNX's type inference."""
    try:
        graph = onnx.shape_inference.infer_shapes(model).graph
    except onnx.shape_inference.InferenceError as error:
        raise ModelError(f"the ONNX graph has inconsistent types; export it again: {error}") from None
    known = {x.name: x.type.tensor_type.elem_type for x in (*graph.input, *graph.output, *graph.value_info)}
    known |= {tensor.name: tensor.data_type for tensor in graph.initializer}
    for node in graph.node:
        unknown = [name for name in node.output if name and not known.get(name)]
        if unknown:
            raise ModelError(f"{_KEY}: the output type of node {node.name} ({node.op_type}) is unknown; set fp32")
    return known


def _consumers(graph: onnx.GraphProto) -> dict[str, list[onnx.NodeProto]]:
    users: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            users.setdefault(name, []).append(node)
    return users


def _constant_tensor(node: onnx.NodeProto) -> onnx.TensorProto | None:
    if node.op_type != "Constant":
        return None
    return next((attribute.t for attribute in node.attribute if attribute.name == "value"), None)


def _rounded(array: np.ndarray, kind: int) -> np.ndarray:
    """Round float32 to a low type; finite numbers stay finite."""
    limits = ml_dtypes.finfo(_NUMPY[kind])  # type: ignore[no-untyped-call] # in its stubs
    finite = np.clip(array, float(limits.min), float(limits.max))
    return np.where(np.isfinite(array), finite, array).astype(_NUMPY[kind])


def _lost(number: np.ndarray, kind: int) -> bool:
    with np.errstate(over="ignore", under="ignore"):
        low = number.astype(_NUMPY[kind]).astype(np.float32)
    return bool(np.any((low == 0) & (number != 0)) or np.any(np.isinf(low) & np.isfinite(number)))
