"""Deconvolutions in parts: the same numbers, and only where it is the same."""

from __future__ import annotations

import numpy as np
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from stereo_core.engines.deconvolution import split_deconvolutions

SIZES = {"kernel_shape": [4, 4, 4], "strides": [2, 2, 2], "pads": [1, 1, 1, 1, 1, 1]}


def network(weight, **attributes):
    """One deconvolution; weight: (input channels, output channels, kernel)."""
    dims = [1, weight.shape[0], *([4] * (weight.ndim - 2))]
    node = helper.make_node("ConvTranspose", ["x", "w"], ["y"], "up", **attributes)
    graph = helper.make_graph(
        [node],
        "deconvolution",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, dims)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(weight, "w")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def random(*shape):
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def computed(model, x):
    return ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, {"x": x})[0]


@pytest.mark.parametrize(("channels", "parts"), [(8, [2, 2, 2, 2]), (6, [2, 2, 1, 1]), (3, [1, 1, 1])])
def test_parts_give_what_the_whole_gives(channels, parts):
    weight, x = random(5, channels, 4, 4, 4), random(1, 5, 4, 4, 4)
    model = network(weight, **SIZES)
    whole = computed(model, x)
    split_deconvolutions(model)
    np.testing.assert_allclose(computed(model, x), whole, rtol=0, atol=1e-5)
    tensors = {tensor.name: tensor.dims for tensor in model.graph.initializer}
    assert [tensors[n.input[1]][1] for n in model.graph.node if n.op_type == "ConvTranspose"] == parts
    assert "w" not in tensors  # its weights stand in the file once


@pytest.mark.parametrize(
    ("shape", "attributes"),
    [((4, 2, 4, 4, 4), {"group": 2, **SIZES}), ((4, 4, 4, 4), {"kernel_shape": [4, 4], "strides": [2, 2]})],
    ids=["groups", "images"],
)
def test_others_are_left_as_they_are(shape, attributes):
    model = network(random(*shape), **attributes)
    before = model.SerializeToString()
    split_deconvolutions(model)
    assert model.SerializeToString() == before
