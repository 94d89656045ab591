"""What ONNX Runtime alone does: precisions, memory that is bound, and its settings."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from stereo_core.engines import BuildSettings, build_engine, load_engine
from stereo_core.engines.onnxruntime import session_options
from stereo_core.errors import SpecError


def built(source, **settings):
    out = source.with_suffix(".ort.onnx")
    build = build_engine(source, out, BuildSettings(backend="onnxruntime", **settings))
    return build, load_engine(out, "cpu")


def pair(*shape, seed=0):
    return tuple(np.random.default_rng(seed + i).standard_normal(shape).astype(np.float32) for i in range(2))


def quantised_onnx(path, scale, zero):
    """`disparity = left red + right green`, each rounded to a multiple of `scale` by a quantiser of zero's type."""
    value = helper.make_tensor_value_info
    images = [value(name, TensorProto.FLOAT, [1, 3, 32, 32]) for name in ("left_image", "right_image")]
    weights = [numpy_helper.from_array(np.float32(scale), "scale"), zero]
    weights += [numpy_helper.from_array(np.int64([c]), f"c{c}") for c in range(3)]
    nodes = []
    for name, image, channel in (("l", "left_image", 0), ("r", "right_image", 1)):
        inputs = [image, f"c{channel}", f"c{channel + 1}", "c1"]
        nodes += [
            helper.make_node("Slice", inputs, [f"{name}s"]),
            helper.make_node("QuantizeLinear", [f"{name}s", "scale", "zero"], [f"{name}q"]),
            helper.make_node("DequantizeLinear", [f"{name}q", "scale", "zero"], [name]),
        ]
    nodes.append(helper.make_node("Add", ["l", "r"], ["disparity"]))
    out = [value("disparity", TensorProto.FLOAT, [1, 1, 32, 32])]
    graph = helper.make_graph(nodes, "quantised", images, out, weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9), path)
    return path


def test_int8_engine_rounds_as_its_file_says(tmp_path):
    source = quantised_onnx(tmp_path / "q.onnx", 0.25, numpy_helper.from_array(np.int8(0), "zero"))
    build, engine = built(source, precision="int8")
    left, right = pair(1, 3, 32, 32)
    rounded = 0.25 * (np.rint(left[:, 0] / 0.25) + np.rint(right[:, 1] / 0.25))
    np.testing.assert_allclose(engine.run(left, right), rounded, atol=1e-6)
    assert build.info["precision"] == "int8"


def test_fp8_engine_keeps_three_bits_of_the_mantissa(tmp_path):
    zero = helper.make_tensor("zero", TensorProto.FLOAT8E4M3FN, [], [0.0])
    _, engine = built(quantised_onnx(tmp_path / "q.onnx", 1.0, zero), precision="fp8")
    left, right = np.full((2, 1, 3, 32, 32), 17.3, np.float32)
    np.testing.assert_array_equal(engine.run(left, right), np.full((1, 32, 32), 36.0))  # 18 + 18: steps of 2


def test_a_relu_before_a_float8_quantiser_stays(tmp_path):
    """ONNX Runtime's own optimisation takes it away, as it may before int8 whose zero point is -128."""
    zero = helper.make_tensor("zero", TensorProto.FLOAT8E4M3FN, [], [0.0])
    source = quantised_onnx(tmp_path / "q.onnx", 1.0, zero)
    model = onnx.load(source)
    for node in model.graph.node:
        if node.op_type == "QuantizeLinear":
            node.input[0] += "_positive"
    for name in ("rs", "ls"):
        model.graph.node.insert(2 if name == "ls" else 4, helper.make_node("Relu", [name], [f"{name}_positive"]))
    onnx.save(model, source)
    _, engine = built(source, precision="fp8")
    left, right = np.full((2, 1, 3, 32, 32), 17.3, np.float32)
    np.testing.assert_array_equal(engine.run(-left, right), np.full((1, 32, 32), 18.0))


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_file_that_quantises_is_built_in_no_other_precision(tmp_path, precision):
    source = quantised_onnx(tmp_path / "q.onnx", 0.25, numpy_helper.from_array(np.int8(0), "zero"))
    with pytest.raises(SpecError, match="is quantised to int8"):
        built(source, precision=precision)


def test_fp16_engine_holds_fp16_weights_and_gives_float32(colour_onnx):
    source = colour_onnx()
    _, engine = built(source, precision="fp16", verify=False)
    weights = [tensor.data_type for tensor in onnx.load(source.with_suffix(".ort.onnx")).graph.initializer]
    assert TensorProto.FLOAT16 in weights and TensorProto.FLOAT not in weights
    left, right = (x / 4 for x in pair(1, 3, 64, 96))
    _, exact = built(source, verify=False)
    difference = np.abs(engine.run(left, right) - exact.run(left, right))
    assert engine.run(left, right).dtype == np.float32 and 0 < difference.mean() < 1


@pytest.mark.slow
def test_deconvolutions_stay_float32_in_an_fp16_engine_unless_pinned(tiny_onnx, tmp_path):
    def types(**settings):
        out = tmp_path / "model.ort.onnx"
        build_engine(tiny_onnx, out, BuildSettings(backend="onnxruntime", precision="fp16", verify=False, **settings))
        graph = onnx.load(out).graph
        weights = {tensor.name: tensor.data_type for tensor in graph.initializer}
        return {op: {weights[n.input[1]] for n in graph.node if n.op_type == op} for op in ("Conv", "ConvTranspose")}

    assert types() == {"Conv": {TensorProto.FLOAT16}, "ConvTranspose": {TensorProto.FLOAT}}
    assert types(layers_precision=("*ConvTranspose:fp16",))["ConvTranspose"] == {TensorProto.FLOAT16}


def test_layers_that_are_pinned_stay_float32(colour_onnx):
    source = colour_onnx()
    built(source, precision="fp16", layers_precision=("*:fp32",), verify=False)
    weights = {tensor.data_type for tensor in onnx.load(source.with_suffix(".ort.onnx")).graph.initializer}
    assert weights == {TensorProto.FLOAT}


def test_a_result_is_not_overwritten_by_the_next_run(colour_onnx):
    _, engine = built(colour_onnx(), verify=False)
    first = engine.run(*pair(1, 3, 64, 96))
    kept = first.copy()
    second = engine.run(*pair(1, 3, 64, 96, seed=5))
    np.testing.assert_array_equal(first, kept)
    assert not np.array_equal(first, second)


def test_memory_is_allocated_once_a_shape(colour_onnx):
    _, engine = built(colour_onnx(batch=None), max_batch=2, verify=False)
    places = set()
    for batch in (1, 2, 1, 2):
        engine.run(*pair(batch, 3, 64, 96))
        places |= {value.data_ptr() for value in engine._values[batch, 3, 64, 96].values()}
    assert len(places) == 6


@pytest.mark.parametrize("batch", [1, 3])
def test_tensors_are_bound_where_they_lie(colour_onnx, batch):
    torch = pytest.importorskip("torch")
    _, engine = built(colour_onnx(batch=batch), verify=False)
    left, right = pair(batch, 3, 64, 96)
    found = engine.run_torch(torch.from_numpy(left), torch.from_numpy(right))
    assert found.shape == (batch, 64, 96) and not engine._values  # no memory of the engine's own
    np.testing.assert_array_equal(found.numpy(), engine.run(left, right))


def test_disparity_without_a_channel(tmp_path):
    """Some makers write B x H x W."""
    torch = pytest.importorskip("torch")
    value = helper.make_tensor_value_info
    images = [value(name, TensorProto.FLOAT, [2, 3, 32, 32]) for name in ("left_image", "right_image")]
    axes = numpy_helper.from_array(np.int64([1]), "axes")
    nodes = [
        helper.make_node("Add", ["left_image", "right_image"], ["s"]),
        helper.make_node("ReduceSum", ["s", "axes"], ["disparity"], keepdims=0),
    ]
    graph = helper.make_graph(nodes, "g", images, [value("disparity", TensorProto.FLOAT, [2, 32, 32])], [axes])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), tmp_path / "n.onnx")
    _, engine = built(tmp_path / "n.onnx")
    left, right = pair(2, 3, 32, 32)
    expected = (left + right).sum(1)
    np.testing.assert_allclose(engine.run(left, right), expected, rtol=1e-5, atol=1e-5)
    tensors = engine.run_torch(torch.from_numpy(left), torch.from_numpy(right))
    np.testing.assert_allclose(tensors.numpy(), expected, rtol=1e-5, atol=1e-5)


def test_threads_follow_the_setting_that_all_libraries_share(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert session_options().intra_op_num_threads == 3
    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {4, 7, 9, 11, 12}, raising=False)
    assert session_options().intra_op_num_threads == 5
