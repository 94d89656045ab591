"""TensorRT-RTX engines from the real builder, which needs no GPU, and every refusal of its own.

No GPU that TensorRT-RTX runs on is here: that an engine gives the right disparity is not tested; that it is built of
the right network, with the right profile, is.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from typing import ClassVar

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from stereo_core.engines import BuildSettings, build_engine, choose_backend, load_engine, tensorrt
from stereo_core.engines.files import read_engine, read_onnx, sidecar_path
from stereo_core.engines.tensorrt.build import attach_timing_cache, profile_of, workspace_bytes
from stereo_core.engines.tensorrt.interface import interface_of_network
from stereo_core.engines.tensorrt.targets import Gpu, find_gpu
from stereo_core.errors import ModelError, SpecError, UserError
from stereo_core.files import locked, sha256_of
from stereo_core.report.describe import as_text, describe

trt = pytest.importorskip("tensorrt_rtx", reason="pip install 'stereo-pipelines[tensorrt-rtx]'")

RTX = BuildSettings(backend="tensorrt_rtx", compute_capabilities=("8.6",), workspace_gib=4)
L4 = Gpu("NVIDIA L4", (8, 9), 24 * 2**30)


@pytest.fixture
def colour_engine(colour_onnx, tmp_path):
    """A small engine of this version for 8.6 and 8.9."""
    out = tmp_path / "built" / "colours.engine"
    build_engine(colour_onnx(), out, replace(RTX, compute_capabilities=("8.9", "8.6")))
    return out


@pytest.fixture
def open_onnx(colour_onnx):
    """Any batch, height and width; traced at 64 x 96."""
    path = colour_onnx("open.onnx", None, "height", "width")
    model = onnx.load(path)
    for key, value in (("stereo.input_height", "64"), ("stereo.input_width", "96")):
        model.metadata_props.add(key=key, value=value)
    onnx.save(model, path)
    return path


# --- Engines of the real network --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "precision",
    ["fp32", "fp16", pytest.param("bf16", marks=pytest.mark.slow), pytest.param("int8", marks=pytest.mark.slow)],
)
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


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_the_vits_network_builds(vits_onnx, tmp_path, precision):
    source = quantised(vits_onnx, tmp_path / "int8.onnx", 128, 160) if precision == "int8" else vits_onnx
    build_engine(source, tmp_path / "vits.engine", replace(RTX, precision=precision))
    info = read_engine(tmp_path / "vits.engine")
    assert (info["precision"], info["encoder"], info["valid_iters"], info["input_width"]) == (precision, "vits", 4, 160)
    weights = vits_onnx.stat().st_size / (2 if precision == "fp16" else 1)
    assert (tmp_path / "vits.engine").stat().st_size > 0.5 * weights


@pytest.mark.slow
def test_the_vits_file_is_little_more_than_its_weights(vits_onnx):
    import torch

    state = torch.load(vits_onnx.with_suffix(".pth"), weights_only=True)["model"]
    assert vits_onnx.stat().st_size <= 1.2 * sum(4 * tensor.numel() for tensor in state.values())


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


def quantised(source, out, height, width):
    """The file that `depth_net quantize` makes with ModelOpt, calibrated on one synthetic pair."""
    from stereo_core.engines.verify import synthetic_pair
    from stereo_core.quantization.modelopt_onnx import quantize
    from stereo_core.spec.quantize import Quantize

    quantize(source, out, Quantize(backend="modelopt.onnx", device="cpu"), [synthetic_pair(height, width, 1)])
    return out


# --- Profiles ---------------------------------------------------------------------------------------------------------


def test_the_profile_of_an_open_file_is_the_builders(open_onnx, tmp_path):
    sizes = {"heights": (32, None, 128), "widths": (None, 128, 256)}
    settings = replace(RTX, min_batch=1, opt_batch=2, max_batch=3, **sizes)
    info = build_engine(open_onnx, tmp_path / "e", settings).info
    shapes = ((1, 3, 32, 128), (2, 3, 64, 128), (3, 3, 128, 256))
    assert [info[key] for key in ("min_height", "input_height", "max_height")] == [32, 64, 128]
    assert [info[key] for key in ("min_width", "input_width", "max_width")] == [128, 128, 256]
    assert interface(open_onnx, info) == {"left_image": shapes, "right_image": shapes, "disparity": ()}
    said = describe(tmp_path / "e")
    assert (said["backend"], said["min_height"], said["max_width"]) == ("tensorrt_rtx", 32, 256)
    lines = [line.split(maxsplit=1) for line in as_text(said).splitlines()]
    for fact in (
        ["height", "32 to 128 px, best 64"],
        ["width", "128 to 256 px, best 128"],
        ["batch", "1 to 3, best 2"],
    ):
        assert fact in lines
    assert ["target", "compute capability 8.6"] in lines
    lines = as_text(describe(open_onnx)).splitlines()
    assert "batch          any" in lines and "height         any, traced at 64 px" in lines


def interface(onnx_file, info):
    """Inputs and outputs as parser and profile give them."""
    builder = trt.Builder(trt.Logger(trt.Logger.ERROR))
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    assert trt.OnnxParser(network, builder.logger).parse(onnx_file.read_bytes())
    return interface_of_network(trt, network, profile_of(builder, network, info))


def test_without_sizes_an_open_file_gets_the_traced_one_alone(open_onnx, tmp_path):
    info = build_engine(open_onnx, tmp_path / "e", replace(RTX, backend="onnxruntime", verify=False)).info
    assert [info[key] for key in ("min_height", "input_height", "max_height")] == [64, 64, 64]
    assert [info[key] for key in ("min_width", "input_width", "max_width")] == [96, 96, 96]


@pytest.mark.parametrize(
    ("heights", "message"),
    [
        ((128, 64, 128), "min_height, opt_height, max_height are 128, 64, 128; they must not fall"),
        ((64, None, 32), "are 64, 64, 32; they must not fall"),
        ((64, 100, 128), "are 64, 100, 128; they must be multiples of 32"),
    ],
)
def test_a_profile_of_impossible_heights_is_refused(open_onnx, tmp_path, heights, message):
    with pytest.raises(SpecError, match=message):
        build_engine(open_onnx, tmp_path / "e", replace(RTX, heights=heights))
    assert not (tmp_path / "e").exists()


@pytest.mark.parametrize(
    ("batch", "keys", "message"),
    [
        (1, {"max_batch": 4}, r"min_batch_size, .* are 1, 1, 4, and .* a batch of 1 only; .*export.batch_size=-1"),
        (2, {"min_batch": 3, "opt_batch": 3, "max_batch": 3}, "are 3, 3, 3, and the ONNX file has a batch of 2 only"),
        (1, {"heights": (None, 96, None)}, r"opt_height, .* are null, 96, null, .* height of 64 px only; .*dynamic_hw"),
        (1, {"widths": (128, 160, 192)}, "min_width, .* are 128, 160, 192, and the ONNX file has a width of 96 px"),
    ],
)
def test_a_profile_that_a_static_file_can_not_have_is_refused(colour_onnx, tmp_path, batch, keys, message):
    with pytest.raises(SpecError, match=message):
        build_engine(colour_onnx(batch=batch), tmp_path / "e", replace(RTX, **keys))
    assert not (tmp_path / "e").exists()


def test_a_profile_that_is_the_static_files_own_is_built(colour_onnx, tmp_path):
    """TAO's templates write out batches of 1."""
    same = replace(RTX, opt_batch=3, max_batch=3, heights=(64, 64, 64), widths=(None, 96, None))
    info = build_engine(colour_onnx(batch=3), tmp_path / "e", same).info
    assert [info[f"{end}_batch"] for end in ("min", "opt", "max")] == [3, 3, 3]


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


def test_a_network_that_is_not_the_side_cars_is_refused(colour_onnx, tmp_path):
    """The check that also stands between a deserialised engine and its side-car."""
    source = colour_onnx(height=64)
    info = read_onnx(source) | {"min_height": 96, "input_height": 96, "max_height": 96}
    with pytest.raises(ModelError, match=r"colours.onnx: .*\(1, 3, 64, 96\).* where .*\(1, 3, 96, 96\).* expected"):
        tensorrt.backend("tensorrt_rtx").build(source, tmp_path / "e", info, RTX)
    assert not (tmp_path / "e").exists()


# --- Refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"compute_capabilities": ("9.0",)}, "TensorRT-RTX does not build for 9.0, only for 7.5, 8.0, 8.6, 8.9"),
        ({"compute_capabilities": ("86",)}, "'86' is not a compute capability such as 8.6"),
        ({"precision": "bf16", "compute_capabilities": ("7.5", "8.6")}, "bf16 needs .* 8.0 or higher, not 7.5"),
        ({"backend": "tensorrt"}, r"tensorrt can not build here: .*pip install 'stereo-pipelines\[tensorrt\]'"),
        ({"precision": "int8"}, "int8 needs an ONNX file that quantises to int8 .* is fp32; `depth_net quantize`"),
        ({"precision": "fp16", "layers_precision": ("conv:int8",)}, "layers_precision: 'conv:int8' is not"),
    ],
)
def test_settings_that_can_not_be_had_are_refused(colour_onnx, tmp_path, keys, message):
    with pytest.raises(SpecError, match=message):
        build_engine(colour_onnx(), tmp_path / "e", replace(RTX, **keys))
    assert list(tmp_path.iterdir()) == [tmp_path / "colours.onnx"]


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
        with pytest.raises(SpecError, match=f"quantises to {precision}; set {precision}, not {asked}"):
            build_engine(source, tmp_path / "e", replace(RTX, precision=asked))
    if precision == "fp8":
        with pytest.raises(
            SpecError, match=r"fp8 needs .* 8.9 or higher, not 8\.6; .* builds fp32, fp16, bf16, int8 for"
        ):
            build_engine(source, tmp_path / "e", replace(RTX, precision="fp8"))
    newer = replace(RTX, precision=precision, compute_capabilities=("8.9",))
    assert build_engine(source, tmp_path / "e", newer).info["precision"] == precision


def test_an_operator_that_tensorrt_does_not_know_is_named(colour_onnx, tmp_path):
    source = colour_onnx()
    model = onnx.load(source)
    model.graph.node[-1].op_type, model.graph.node[-1].domain, model.graph.node[-1].name = "Blend", "acme", "mix"
    model.opset_import.append(helper.make_opsetid("acme", 1))
    onnx.save(model, source)
    with pytest.raises(ModelError, match=r"colours.onnx: TensorRT's parser refuses it: node mix \(Blend\): \S"):
        build_engine(source, tmp_path / "e", RTX)
    assert not (tmp_path / "e").exists()


def test_another_version_is_told_before_the_engine_is_opened(colour_engine, tmp_path):
    engine = copied(colour_engine, tmp_path, backend_version="1.2.0.54")
    with pytest.raises(
        ModelError, match=rf"built by tensorrt_rtx 1.2.0.54 for .*has tensorrt_rtx {trt.__version__}; build"
    ):
        load_engine(engine)


@pytest.mark.parametrize(
    ("gpu", "target", "message"),
    [
        (
            L4,
            "compute capability 8.6",
            "for compute capability 8.6; .* has a NVIDIA L4 of compute capability 8.9; build",
        ),
        (Gpu("NVIDIA H100", (9, 0), 80 * 2**30), "compute capability 9.0", "TensorRT-RTX does not run on NVIDIA H100"),
    ],
)
def test_another_gpu_is_told_before_the_engine_is_opened(colour_engine, tmp_path, monkeypatch, gpu, target, message):
    """No GPU is here: the one found is made up, the check is ours."""
    monkeypatch.setattr(tensorrt, "find_gpu", lambda gpu_id: gpu)
    with pytest.raises(ModelError, match=message):
        load_engine(copied(colour_engine, tmp_path, target=target))


def test_an_engine_needs_a_gpu(colour_engine):
    if isinstance(find_gpu(0), Gpu):
        pytest.skip("this machine has a GPU")
    with pytest.raises(ModelError, match=r"colours.engine: built by .* capabilities 8.6, 8.9; there is no GPU here"):
        load_engine(colour_engine)
    with pytest.raises(UserError, match="device cpu: a TensorRT engine runs on cuda"):
        load_engine(colour_engine, "cpu")


def test_a_truncated_engine_is_refused(colour_engine, tmp_path):
    engine = copied(colour_engine, tmp_path)
    engine.write_bytes(engine.read_bytes()[:-100])
    with pytest.raises(ModelError, match=r"e.engine: truncated or changed since it was built"):
        load_engine(engine)


def copied(engine, folder, **changed):
    target = folder / "e.engine"
    target.write_bytes(engine.read_bytes())
    info = json.loads(sidecar_path(engine).read_text()) | changed
    sidecar_path(target).write_text(json.dumps(info))
    return target


# --- The choice of a backend ------------------------------------------------------------------------------------------


def test_auto_takes_the_first_that_can_build_for_a_gpu(monkeypatch, caplog):
    with caplog.at_level(logging.INFO):
        assert choose_backend(BuildSettings(compute_capabilities=("8.9",))) == "tensorrt_rtx"
    assert "auto takes tensorrt_rtx (not tensorrt: TensorRT is not installed" in caplog.text
    monkeypatch.setattr(tensorrt, "find_gpu", lambda gpu_id: L4)
    assert choose_backend(BuildSettings()) == "tensorrt_rtx"
    monkeypatch.setattr(tensorrt, "find_gpu", lambda gpu_id: Gpu("NVIDIA H100", (9, 0), 1))
    assert choose_backend(BuildSettings()) == "onnxruntime"
    assert "not tensorrt_rtx: TensorRT-RTX does not run on NVIDIA H100" in caplog.text


# --- Build settings ---------------------------------------------------------------------------------------------------


def test_a_workspace_larger_than_the_device_is_clamped(caplog):
    with caplog.at_level(logging.WARNING):
        assert workspace_bytes(4, 24 * 2**30) == workspace_bytes(4, None) == 4 * 2**30
        assert workspace_bytes(None, 24 * 2**30) is None
        assert not caplog.records
        assert workspace_bytes(48, 24 * 2**30) == 24 * 2**30
    assert "48 GiB is more than the GPU has; its 24.0 GiB are the limit" in caplog.text


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
    assert fits or "times.cache is of another GPU or version" in caplog.text


# --- One build at a time, whole or not at all -------------------------------------------------------------------------


def test_a_second_build_waits_for_the_first(colour_onnx, tmp_path, caplog):
    out, source = tmp_path / "out" / "e", colour_onnx()
    settings = BuildSettings(backend="onnxruntime", verify=False)
    second = threading.Thread(target=build_engine, args=(source, out, settings))
    with caplog.at_level(logging.INFO):
        with locked(out):
            second.start()
            while "is being written by another process" not in caplog.text:
                time.sleep(0.01)
            assert not out.exists()
        second.join()
    assert read_engine(out)["backend"] == "onnxruntime"
    assert sorted(p.name for p in out.parent.iterdir()) == ["e", "e.json"]


def test_an_engine_never_stands_beside_another_ones_side_car(colour_onnx, tmp_path, monkeypatch):
    """The disk fills up between the two files."""
    out = tmp_path / "e"
    settings = BuildSettings(backend="onnxruntime", verify=False)
    build_engine(colour_onnx(), out, settings)

    def full(*_):
        raise OSError("No space left on device")

    monkeypatch.setattr("stereo_core.engines.write_sidecar", full)
    with pytest.raises(OSError, match="No space"):
        build_engine(colour_onnx("other.onnx", scale=2.0), out, settings)
    assert not out.exists()


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


# --- The action -------------------------------------------------------------------------------------------------------


def test_gen_trt_engine_builds_with_every_key(open_onnx, tmp_path, caplog):
    """Through the spec: numbers for compute capabilities, TAO's 1024, any case, pins, sizes, a cache that RTX lacks."""
    from stereo_core.actions import gen_trt_engine
    from stereo_core.spec import spec_from_dict

    class Status:
        lines: ClassVar[list[str]] = []

        def running(self, message, **_):
            self.lines.append(message)

    model = onnx.load(open_onnx)
    model.graph.node[0].name = "red"
    onnx.save(model, open_onnx)
    tensorrt_keys = {"data_type": "FP16", "workspace_size": 1024, "max_batch_size": 2, "layers_precision": ["red:fp32"]}
    keys = {"compute_capabilities": [8.9, "12.0"], "timing_cache": str(tmp_path / "times"), "max_width": 128}
    section = {"onnx_file": str(open_onnx), "tensorrt": tensorrt_keys, **keys}
    tree = {"results_dir": str(tmp_path / "results"), "gen_trt_engine": section}
    with caplog.at_level(logging.INFO):
        outcome = gen_trt_engine.run(spec_from_dict("gen_trt_engine", tree), Status())
    engine = tmp_path / "results" / "gen_trt_engine" / "open.rtx.engine"
    info = read_engine(engine)
    assert outcome.artifacts == {"engine": engine} and outcome.metadata["engine"].items() <= info.items()
    assert (info["precision"], info["target"]) == ("fp16", "compute capabilities 8.9, 12.0")
    assert (info["min_width"], info["input_width"], info["max_width"], info["max_batch"]) == (96, 96, 128, 2)
    assert set(outcome.kpi) == {"engine_bytes", "build_seconds"}
    assert outcome.kpi["engine_bytes"] == engine.stat().st_size
    assert "fp16, not verified: built by tensorrt_rtx" in outcome.message
    assert Status.lines[0].endswith(" with tensorrt_rtx") and "not tensorrt: TensorRT is not installed" in caplog.text
    assert "gen_trt_engine.timing_cache has no effect with the tensorrt_rtx backend" in caplog.text
    assert "workspace_size: 1024 is taken as no limit" in caplog.text
    assert "the engine is not verified: built by" in caplog.text
    assert not (tmp_path / "times").exists() and not engine.with_name("open.rtx.engine.lock").exists()
