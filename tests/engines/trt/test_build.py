"""Engines of the real network, built as what their file is; what the builder refuses, and why."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from rtx import RTX, quantised, trt

from stereo_core.engines import build_engine
from stereo_core.engines.files import read_engine
from stereo_core.engines.tensorrt.build import attach_timing_cache, workspace_bytes
from stereo_core.errors import ModelError, SpecError
from stereo_core.files import sha256_of


@pytest.mark.slow
@pytest.mark.timeout(900)  # minutes where other work shares the cores
@pytest.mark.parametrize("precision", ["fp16", "bf16", "int8"])
def test_the_tiny_network_builds(tiny_onnx, tmp_path, precision):
    source = quantised(tiny_onnx, tmp_path / "int8.onnx", 64, 96) if precision == "int8" else tiny_onnx
    out = tmp_path / "tiny.engine"
    build = build_engine(source, out, replace(RTX, precision=precision, opt_batch=2, max_batch=4))
    info = read_engine(out)
    assert info == build.info
    assert (info["backend"], info["backend_version"]) == ("tensorrt_rtx", trt.__version__)
    assert (info["precision"], info["target"]) == (precision, "compute capability 8.6")
    assert [info[f"{end}_batch"] for end in ("min", "opt", "max")] == [1, 2, 4]
    assert [info[key] for key in ("min_height", "input_height", "max_height")] == [64, 64, 64]
    assert (info["encoder"], info["valid_iters"], info["max_disparity"]) == ("vitt", 2, 64)
    assert info["onnx_sha256"] == sha256_of(source)
    assert out.read_bytes()[:4] != b"\0\0\0\0" and out.stat().st_size > 10_000_000
    assert build.difference is None and build.not_verified
    assert sorted(p.name for p in tmp_path.iterdir() if p != source) == ["tiny.engine", "tiny.engine.json"]


def test_fp16_weights_are_half_as_large_in_the_engine(colour_onnx, tmp_path):
    """Four million weights: the size of the engine says in which type they are."""
    source = colour_onnx()
    model = onnx.load(source)
    wide = onnx.numpy_helper.from_array(np.random.default_rng(0).standard_normal((64, 64, 31, 31)).astype("f4"), "wide")
    lift = onnx.numpy_helper.from_array(np.ones((64, 1, 1, 1), np.float32), "lift")
    drop = onnx.numpy_helper.from_array(np.ones((1, 64, 1, 1), np.float32), "drop")
    model.graph.initializer.extend([wide, lift, drop])
    model.graph.node[-1].output[0] = "sum"
    for name, weight, inner, outer in (
        ("a", "lift", "sum", "x"),
        ("b", "wide", "x", "y"),
        ("c", "drop", "y", "disparity"),
    ):
        pads = [15] * 4 if weight == "wide" else [0] * 4
        model.graph.node.append(helper.make_node("Conv", [inner, weight], [outer], name, pads=pads))
    onnx.save(model, source)
    sizes = {}
    for precision in ("fp32", "fp16"):
        build_engine(source, tmp_path / precision, replace(RTX, precision=precision))
        sizes[precision] = (tmp_path / precision).stat().st_size
    assert sizes["fp32"] > 4 * 64 * 64 * 31 * 31 and sizes["fp16"] < 0.6 * sizes["fp32"]


@pytest.fixture(scope="module")
def vits_onnx(tmp_path_factory):
    import torch

    from stereo_core.actions import export
    from stereo_core.models import create_model, save_checkpoint
    from stereo_core.spec import spec_from_dict

    class Silent:
        def running(self, *_, **__):
            pass

    folder = tmp_path_factory.mktemp("vits")
    torch.manual_seed(0)
    save_checkpoint(create_model(encoder="vits"), folder / "vits.pth")
    section = {"checkpoint": str(folder / "vits.pth"), "onnx_file": str(folder / "vits.onnx"), "valid_iters": 4}
    section |= {"input_height": 128, "input_width": 160, "on_cpu": True, "check": False, "batch_size": 1}
    export.run(spec_from_dict("export", {"results_dir": str(folder), "export": section}), Silent())
    return folder / "vits.onnx"


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_vits_network_builds(vits_onnx, tmp_path):
    build_engine(vits_onnx, tmp_path / "vits.engine", replace(RTX, precision="fp16"))
    info = read_engine(tmp_path / "vits.engine")
    assert (info["precision"], info["encoder"], info["valid_iters"], info["input_width"]) == ("fp16", "vits", 4, 160)
    assert (tmp_path / "vits.engine").stat().st_size > 0.25 * vits_onnx.stat().st_size


@pytest.mark.slow
def test_the_vits_file_is_little_more_than_its_weights(vits_onnx):
    import torch

    state = torch.load(vits_onnx.with_suffix(".pth"), weights_only=True)["model"]
    assert vits_onnx.stat().st_size <= 1.2 * sum(4 * tensor.numel() for tensor in state.values())


@pytest.mark.parametrize(("zero", "precision"), [(TensorProto.INT8, "int8"), (TensorProto.FLOAT8E4M3FN, "fp8")])
def test_a_file_that_quantises_is_built_as_what_it_is(colour_onnx, tmp_path, zero, precision):
    source = colour_onnx()
    model = onnx.load(source)
    model.opset_import[0].version = 19
    model.graph.initializer.append(helper.make_tensor("scale", TensorProto.FLOAT, [], [1.0]))
    model.graph.initializer.append(helper.make_tensor("zero", zero, [], [0]))
    model.graph.node[0].input[0] = "d"
    model.graph.node.insert(0, helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["d"]))
    model.graph.node.insert(0, helper.make_node("QuantizeLinear", ["left_image", "scale", "zero"], ["q"]))
    onnx.save(model, source)
    for asked in ("fp32", "fp16"):
        with pytest.raises(SpecError, match=f"is quantised to {precision}; set {precision}, not {asked}"):
            build_engine(source, tmp_path / "e", replace(RTX, precision=asked))
    if precision == "fp8":
        with pytest.raises(
            SpecError, match=r"fp8 needs .* 8.9 or higher, but the target has 8\.6; set one of fp32, fp16, bf16, int8"
        ):
            build_engine(source, tmp_path / "e", replace(RTX, precision="fp8"))
    newer = replace(RTX, precision=precision, compute_capabilities=("8.9",))
    assert build_engine(source, tmp_path / "e", newer).info["precision"] == precision


def test_the_float32_products_that_turing_lacks_are_named_with_the_mend(tmp_path):
    value = helper.make_tensor_value_info
    images = [value(name, TensorProto.FLOAT, [1, 3, 64, 64]) for name in ("left_image", "right_image")]
    nodes = [
        helper.make_node("MatMul", ["left_image", "right_image"], ["p"], "/MatMul"),
        helper.make_node("ReduceSum", ["p", "axes"], ["disparity"], "/Sum"),
    ]
    axes = helper.make_tensor("axes", TensorProto.INT64, [1], [1])
    graph = helper.make_graph(nodes, "g", images, [value("disparity", TensorProto.FLOAT, [1, 1, 64, 64])], [axes])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), tmp_path / "n.onnx")
    turing = replace(RTX, compute_capabilities=("7.5",))
    with pytest.raises(ModelError, match=r'7.5 \(Turing\); .*data_type=fp16 .*layers_precision=\["\*MatMul\*:fp16"\]'):
        build_engine(tmp_path / "n.onnx", tmp_path / "e", turing)
    assert not (tmp_path / "e").exists()
    mended = replace(turing, precision="fp16", layers_precision=("*MatMul*:fp16",))
    assert build_engine(tmp_path / "n.onnx", tmp_path / "e", mended).info["target"] == "compute capability 7.5"


COLLECT_IN_A_CALL_TO_THE_LOGGER = """
import gc
import logging

import tensorrt_rtx as trt

from stereo_core.engines.tensorrt.messages import logger


class Collect(logging.Handler):
    def emit(self, record):
        gc.collect()


logging.getLogger().addHandler(Collect())
logging.getLogger().setLevel(logging.DEBUG)
garbage = [trt.Builder(logger(trt, verbose=False))]  # as the traceback of a failed build is
garbage.append(garbage)
del garbage
trt.Builder(logger(trt, verbose=True))
"""


def test_a_build_after_a_failed_one_does_not_hang():
    """Python may collect garbage in TensorRT's calls to the logger: freeing the failed build's builder there hung."""
    subprocess.run([sys.executable, "-c", COLLECT_IN_A_CALL_TO_THE_LOGGER], check=True, timeout=100)


def test_an_operator_that_tensorrt_does_not_know_is_named(colour_onnx, tmp_path):
    source = colour_onnx()
    model = onnx.load(source)
    model.graph.node[-1].op_type, model.graph.node[-1].domain, model.graph.node[-1].name = "Blend", "acme", "mix"
    model.opset_import.append(helper.make_opsetid("acme", 1))
    onnx.save(model, source)
    with pytest.raises(
        ModelError, match=r"colours.onnx: TensorRT's parser rejects the file; use another .*: node mix \(Blend\): \S"
    ):
        build_engine(source, tmp_path / "e", RTX)
    assert not (tmp_path / "e").exists()


def test_a_workspace_larger_than_the_device_is_clamped(caplog):
    with caplog.at_level(logging.WARNING):
        assert workspace_bytes(4, 24 * 2**30) == workspace_bytes(4, None) == 4 * 2**30
        assert workspace_bytes(None, 24 * 2**30) is None
        assert not caplog.records
        assert workspace_bytes(48, 24 * 2**30) == 24 * 2**30
    assert "48 GiB exceeds the GPU's memory; using 24.0 GiB instead" in caplog.text


@pytest.mark.parametrize("fits", [True, False])
def test_a_timing_cache_of_another_device_is_ignored_with_a_warning(tmp_path, caplog, fits):
    """`tensorrt` is not here and TensorRT-RTX has no such cache: its answer is made up, what we do with it is ours."""

    class Config:
        def create_timing_cache(self, content):
            return content

        def set_timing_cache(self, cache, ignore_mismatch):
            assert cache == b"times" and ignore_mismatch is False
            return fits

    path = tmp_path / "times.cache"
    path.write_bytes(b"times")
    with caplog.at_level(logging.WARNING):
        assert attach_timing_cache(Config(), path) is fits
    assert path.read_bytes() == b"times" and bool(caplog.records) is not fits
    assert fits or "times.cache is damaged or from another GPU or version" in caplog.text


@pytest.mark.slow
def test_sigterm_ends_a_build_without_an_engine(tiny_onnx, tmp_path):
    """The exception of a signal handler must not arise in the builder's calls back to Python, where it is lost."""
    out = tmp_path / "out" / "tiny.engine"
    keys = [f"gen_trt_engine.onnx_file={tiny_onnx}", f"gen_trt_engine.trt_engine={out}", f"results_dir={tmp_path}"]
    keys += ["gen_trt_engine.compute_capabilities=[8.6]"]
    command = [sys.executable, "-m", "stereo_core.cli", "gen_trt_engine", *keys]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL, env=os.environ)
    while process.poll() is None and not list(out.parent.glob(".tiny*")):
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=120)
    assert process.returncode == 143
    assert list(out.parent.iterdir()) == []
    last = json.loads((tmp_path / "gen_trt_engine" / "status.json").read_text().splitlines()[-1])
    assert last["status"] == "FAILURE" and "SIGTERM" in last["message"]
