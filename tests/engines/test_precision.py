"""fp16 and bf16 graphs: what is low, what stays float32, and that the disparity survives."""

from __future__ import annotations

import warnings

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from stereo_core.engines.precision import lower_precision
from stereo_core.engines.verify import synthetic_pair
from stereo_core.errors import ModelError, SpecError

FLOAT, HALF, BFLOAT = TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16


class Graph:
    """A model's nodes by name, and the element types of its values."""

    def __init__(self, model: onnx.ModelProto):
        self.model = model
        graph = onnx.shape_inference.infer_shapes(model).graph
        self.types = {x.name: x.type.tensor_type.elem_type for x in (*graph.input, *graph.output, *graph.value_info)}
        self.types |= {x.name: x.data_type for x in graph.initializer}
        self.weights = {x.name for x in graph.initializer}
        self.nodes = {node.name: node for node in graph.node}

    def of(self, *kinds: str) -> list[onnx.NodeProto]:
        return [node for node in self.nodes.values() if node.op_type in kinds]

    def into(self, node: onnx.NodeProto) -> set[int]:
        """Float types of a node's inputs."""
        return {self.types[name] for name in node.input if name} & {FLOAT, HALF, BFLOAT}

    def kind(self, name: str) -> int:
        return self.types[self.nodes[name].output[0]]


@pytest.fixture(scope="module")
def tiny(tiny_onnx):
    return onnx.load(tiny_onnx)


@pytest.fixture(scope="module")
def half(tiny):
    return Graph(lower_precision(tiny, "fp16"))


def run(model: onnx.ModelProto, left: np.ndarray, right: np.ndarray) -> np.ndarray:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, dict(zip((x.name for x in session.get_inputs()), (left, right), strict=True)))[0]


@pytest.mark.slow
def test_fp16_keeps_the_disparity(tiny, half):
    onnx.checker.check_model(half.model, full_check=True)
    left, right = synthetic_pair(64, 96, 2)
    reference, found = run(tiny, left, right), run(half.model, left, right)
    assert found.dtype == np.float32 and reference.std() > 1
    assert 0 < np.abs(found - reference).mean() < 0.01


@pytest.mark.slow
def test_fp16_keeps_the_disparity_where_every_value_is_rounded(tiny, half):
    """ONNX Runtime's CPU has few fp16 kernels and computes much in float32; ONNX's own evaluator does not."""
    left, right = synthetic_pair(64, 96, 1)
    names = [value.name for value in half.model.graph.input]
    found = ReferenceEvaluator(half.model).run(None, dict(zip(names, (left, right), strict=True)))[0]
    assert 0 < np.abs(found - run(tiny, left, right)).mean() < 0.01


def test_products_with_weights_are_low_and_halve_the_file(tiny, half):
    for node in half.of("Conv", "ConvTranspose"):
        assert half.into(node) == {HALF} and half.types[node.output[0]] == HALF, node.name
    linear = [node for node in half.of("MatMul") if half.weights & set(node.input)]
    assert len(linear) > 20 and all(half.into(node) == {HALF} for node in linear)
    assert half.model.ByteSize() < 0.6 * tiny.ByteSize()


def test_what_loses_its_meaning_stays_float32(half):
    for node in half.of("ReduceL2", "ReduceSum", "InstanceNormalization", "LayerNormalization", "Floor", "Exp", "Pow"):
        assert half.into(node) <= {FLOAT} and half.types[node.output[0]] == FLOAT, node.name
    rounded = [n for n in half.of("Cast") if half.types[n.output[0]] in (TensorProto.INT64, TensorProto.INT32)]
    assert all(half.into(node) <= {FLOAT} for node in rounded)
    # The positions that the lookup reads: one Floor an iteration, level and volume, from the disparity itself.
    assert len([name for name in half.nodes if name.startswith("/Floor")]) == 2 * 2 * 2


def test_softmax_over_disparity_is_float32_and_attention_is_low(half):
    assert half.kind("/Softmax") == half.kind("/ReduceSum") == FLOAT
    assert half.into(half.nodes["/Softmax"]) == {FLOAT}
    assert half.kind("/feature/dino/pretrained/blocks.0/attn/Softmax") == HALF
    assert half.kind("/cost_agg/atts.4/sa.0/self_attn/Softmax") == HALF


def test_inputs_outputs_and_metadata_are_the_files_own(tiny, half):
    assert list(half.model.graph.input) == list(tiny.graph.input)
    assert list(half.model.graph.output) == list(tiny.graph.output)
    assert list(half.model.metadata_props) == list(tiny.metadata_props) != []


def test_bf16_is_low_but_for_deconvolutions(tiny):
    graph = Graph(lower_precision(tiny, "bf16"))
    weights = [w for w in graph.model.graph.initializer if w.data_type == BFLOAT]
    assert len(weights) > 100
    assert all(graph.types[name] == BFLOAT for node in graph.of("Conv") for name in node.input)
    assert all(graph.into(node) == {FLOAT} for node in graph.of("ConvTranspose"))
    name = graph.nodes["/feature/stem/stem.0/Conv"].input[1]
    low = numpy_helper.to_array(next(w for w in weights if w.name == name)).astype(np.float32)
    full = numpy_helper.to_array(next(w for w in tiny.graph.initializer if name.startswith(w.name)))
    np.testing.assert_allclose(low, full, rtol=2**-8)


def test_pins_name_nodes_or_patterns_and_the_last_counts(tiny):
    graph = Graph(lower_precision(tiny, "fp16", ["/feature/stem/*:fp32", "/feature/stem/stem.0/Conv:FP16"]))
    assert graph.kind("/feature/stem/stem.0/Conv") == HALF
    others = [n for n in graph.of("Conv") if n.name.startswith("/feature/stem/") and "stem.0" not in n.name]
    assert all(graph.into(node) == {FLOAT} for node in others)
    assert graph.kind("/feature/stages.0/blocks/blocks.0/conv_dw/Conv") == HALF


def test_the_star_is_the_default_of_all_others(tiny):
    graph = Graph(lower_precision(tiny, "fp16", ["/feature/stem/stem.0/Conv:fp16", "*:fp32"]))
    assert [n.name for n in graph.of("Conv") if graph.into(n) == {HALF}] == ["/feature/stem/stem.0/Conv"]


@pytest.mark.parametrize("pin", ["Conv_1", "stem:int8", ":fp16", "a:b:c"])
def test_a_pin_of_another_form_is_refused(tiny, pin):
    with pytest.raises(SpecError, match=r"layers_precision: .*<layer>:<precision>"):
        lower_precision(tiny, "fp16", [pin])


def test_a_pin_for_no_layer_is_refused(tiny):
    with pytest.raises(
        SpecError, match=r"layers_precision: no floating-point layer of the ONNX file matches head_\*, nothing; "
    ):
        lower_precision(tiny, "fp16", ["head_*:fp32", "nothing:fp32", "/feature/stem/*:fp32"])


class Foreign(torch.nn.Module):
    """Another maker's network: a disparity sum written as a product, grid sampling, a norm from single operators."""

    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 16, 3, padding=1)
        self.up = torch.nn.ConvTranspose2d(16, 16, 2, stride=2)
        self.norm = torch.nn.LayerNorm(16)
        self.linear = torch.nn.Linear(16, 16)
        self.register_buffer("bins", torch.arange(16.0)[:, None])

    def forward(self, left_image, right_image):
        x, y = (torch.nn.functional.max_pool2d(self.conv(image), 2) for image in (left_image, right_image))
        x, y = (z / z.norm(dim=1, keepdim=True).clamp(min=1e-12) for z in (x, y))
        x = self.norm((x * y).permute(0, 2, 3, 1))
        x = x + torch.nn.functional.gelu(self.linear(x))
        disparity = torch.softmax(4 * x, dim=-1) @ self.bins
        h, w = disparity.shape[1:3]
        rows, columns = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
        places = torch.stack([(2 * columns + 1) / w - 1 - disparity[..., 0] / w, ((2 * rows + 1) / h - 1)[None]], -1)
        y = torch.nn.functional.grid_sample(y, places, align_corners=False)
        y = torch.nn.functional.interpolate(self.up(y), scale_factor=2.0, mode="bilinear")[:, :1, ::2, ::2]
        return y + torch.nn.functional.interpolate(disparity.permute(0, 3, 1, 2), scale_factor=2.0)


@pytest.fixture(scope="module", params=[16, 17])
def foreign(request, tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("foreign") / f"{request.param}.onnx"
    images = (torch.randn(1, 3, 32, 64), torch.randn(1, 3, 32, 64))
    names = {"input_names": ["left_image", "right_image"], "output_names": ["disparity"]}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(Foreign().eval(), images, path, dynamo=False, opset_version=request.param, **names)
    return onnx.load(path)


def test_another_makers_file(foreign):
    """Opset 16 writes the LayerNorm as ReduceMean, Sub, Pow, Sqrt and Div."""
    model = lower_precision(foreign, "fp16")
    onnx.checker.check_model(model, full_check=True)
    graph = Graph(model)
    assert all(graph.into(node) == {FLOAT} for node in graph.of("Softmax", "GridSample", "Clip", "ReduceL2", "Pow"))
    assert all(graph.into(node) == {HALF} for node in graph.of("Conv", "ConvTranspose"))
    linear, disparity_sum = graph.of("MatMul")
    assert graph.into(linear) == {HALF} and graph.into(disparity_sum) == {FLOAT}
    left, right = synthetic_pair(32, 64, 1)
    reference = run(foreign, left, right)
    assert reference.std() > 0.1 and np.abs(run(model, left, right) - reference).mean() < 0.01


def test_a_low_output_leaves_the_graph_as_float32():
    """The output's own node is low; another node reads it too."""
    weight = numpy_helper.from_array(np.full((1, 3, 1, 1), 0.1, np.float32), "w")
    nodes = [
        helper.make_node("Conv", ["left_image", "w"], ["disparity"], "conv"),
        helper.make_node("Relu", ["disparity"], ["second"], "relu"),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("left_image", FLOAT, [1, 3, 2, 2])],
        [helper.make_tensor_value_info(name, FLOAT, [1, 1, 2, 2]) for name in ("disparity", "second")],
        [weight],
    )
    model = lower_precision(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), "fp16")
    onnx.checker.check_model(model, full_check=True)
    session = ort.InferenceSession(model.SerializeToString())
    disparity, second = session.run(None, {"left_image": np.full((1, 3, 2, 2), -1, np.float32)})
    assert disparity.dtype == np.float32 and abs(disparity + 0.3).max() < 1e-3 and (second == 0).all()


def test_a_graph_with_branches_is_refused():
    def branch(name):
        value = helper.make_tensor_value_info(name, FLOAT, [1])
        constant = helper.make_node("Constant", [], [name], value=numpy_helper.from_array(np.zeros(1, np.float32)))
        return helper.make_graph([constant], name, [], [value])

    node = helper.make_node("If", ["c"], ["disparity"], "choice", then_branch=branch("t"), else_branch=branch("e"))
    inputs = [helper.make_tensor_value_info("c", TensorProto.BOOL, [])]
    graph = helper.make_graph([node], "g", inputs, [helper.make_tensor_value_info("disparity", FLOAT, [1])])
    with pytest.raises(ModelError, match=r"choice \(If\) contains a subgraph"):
        lower_precision(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), "fp16")
