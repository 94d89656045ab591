"""Rewrite transposed 3-D convolutions so that ONNX Runtime needs less memory for them."""

from __future__ import annotations

import numpy as np
from onnx import ModelProto, NodeProto, helper, numpy_helper

PARTS = 4


def split_deconvolutions(model: ModelProto, parts: int = PARTS) -> None:
    """Replace each 3-D ConvTranspose by `parts` nodes, each for a share of the output channels, and a Concat.

    ONNX Runtime's CPU kernel expands its input by kernel size times output channels: 1.4 GB for the last one of the
    published network at 320 x 736, more than everything else together. The results stay the same.

    Args:
        model: changed in place. A ConvTranspose with groups, or with a computed weight (QDQ), is not changed.
    """
    graph = model.graph
    weights = {tensor.name: tensor for tensor in graph.initializer}
    nodes: list[NodeProto] = []
    for node in graph.node:
        weight = weights.get(node.input[1]) if node.op_type == "ConvTranspose" else None
        if weight is None or len(weight.dims) != 5 or len(node.input) > 2 or _groups(node) > 1:
            nodes.append(node)
            continue
        outputs = []
        # Weight: input channels, output channels, kernel.
        for index, share in enumerate(
            np.array_split(numpy_helper.to_array(weight), min(parts, weight.dims[1]), axis=1)
        ):
            name = f"{weight.name}_{index}"
            graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(share), name))
            outputs.append(f"{node.output[0]}_{index}")
            part = helper.make_node("ConvTranspose", [node.input[0], name], outputs[-1:], f"{node.name}_{index}")
            part.attribute.extend(node.attribute)
            nodes.append(part)
        nodes.append(helper.make_node("Concat", outputs, node.output, f"{node.name}_join", axis=1))
    del graph.node[:]
    graph.node.extend(nodes)
    used = {name for node in nodes for name in node.input}
    for tensor in [tensor for tensor in graph.initializer if tensor.name not in used]:
        graph.initializer.remove(tensor)


def _groups(node: NodeProto) -> int:
    return next((attribute.i for attribute in node.attribute if attribute.name == "group"), 1)
