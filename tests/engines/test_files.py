"""Engines, ONNX files and checkpoints are told apart, and a damaged or foreign file is refused by name."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from stereo_core.engines import BuildSettings, build_engine, load_engine
from stereo_core.engines.files import SIDECAR_KEYS, add_metadata, file_kind, read_onnx, sidecar_path
from stereo_core.errors import ModelError, SpecError, UserError
from stereo_core.files import sha256_of
from stereo_core.report.describe import describe

SETTINGS = BuildSettings("onnxruntime", verify=False)


@pytest.fixture
def engine(colour_onnx, tmp_path):
    path = tmp_path / "made.engine"
    build_engine(colour_onnx(), path, SETTINGS)
    return path


@pytest.fixture
def checkpoint(tmp_path):
    torch = pytest.importorskip("torch")
    path = tmp_path / "some.pth"
    torch.save({"state_dict": {"x": torch.zeros(2)}}, path)
    return path


def test_side_car_tells_what_the_engine_is(colour_onnx, tmp_path):
    source = colour_onnx(batch=None)
    model = onnx.load(source)
    add_metadata(model, {"encoder": "vits", "variant": "tao", "max_disparity": 192, "valid_iters": 8})
    onnx.save(model, source)
    out = tmp_path / "new" / "depth-net.engine"
    build = build_engine(source, out, BuildSettings("onnxruntime", verify=False, min_batch=1, opt_batch=2, max_batch=4))
    info = json.loads((tmp_path / "new" / "depth-net.engine.json").read_text())
    assert tuple(info) == SIDECAR_KEYS and build.info == info
    assert info == {
        "kind": "engine",
        "backend": "onnxruntime",
        "backend_version": onnxruntime.__version__,
        "precision": "fp32",
        "input_height": 64,
        "input_width": 96,
        "min_height": 64,
        "max_height": 64,
        "min_width": 96,
        "max_width": 96,
        "min_batch": 1,
        "opt_batch": 2,
        "max_batch": 4,
        "normalisation": "imagenet",
        "max_disparity": 192,
        "valid_iters": 8,
        "encoder": "vits",
        "variant": "tao",
        "onnx_sha256": sha256_of(source),
        "sha256": sha256_of(out),
        "target": "any",
    }
    assert load_engine(out).info == info
    assert sorted(p.name for p in out.parent.iterdir()) == ["depth-net.engine", "depth-net.engine.json"]


def test_static_batch_of_the_onnx_wins_over_the_profile(colour_onnx, tmp_path):
    info = build_engine(colour_onnx(batch=3), tmp_path / "e", SETTINGS).info
    assert (info["min_batch"], info["opt_batch"], info["max_batch"]) == (3, 3, 3)


@pytest.mark.parametrize("dims", [(1, 1, 576, 960), (1, 576, 960), ("b", "c", "h", "w"), None])
def test_the_layout_of_ngc_builds_and_runs(colour_onnx, tmp_path, dims):
    """576 x 960, opset 17, no metadata; the disparity with or without its channel, its shape written down or not."""
    path = colour_onnx(height=576, width=960)
    model = onnx.load(path)
    if dims and len(dims) == 3:
        model.graph.node[-1].output[0] = "with_channel"
        model.graph.initializer.append(numpy_helper.from_array(np.array([1]), "axis"))
        model.graph.node.append(helper.make_node("Squeeze", ["with_channel", "axis"], ["disparity"]))
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info("disparity", TensorProto.FLOAT, dims))
    onnx.save(model, path)
    info = read_onnx(path)
    assert (info["input_height"], info["input_width"], info["max_batch"]) == (576, 960, 1)
    assert (info["normalisation"], info["precision"]) == ("imagenet", "fp32")
    assert info["encoder"] is info["variant"] is info["max_disparity"] is info["valid_iters"] is None
    build_engine(path, tmp_path / "e", BuildSettings("onnxruntime"))
    left, right = np.random.default_rng(0).integers(0, 256, (2, 576, 960, 3), np.uint8).astype(np.float32)
    found = load_engine(tmp_path / "e").infer(left, right)
    np.testing.assert_allclose(found, left[..., 0] + 3 * right[..., 1], atol=0.01)


def test_open_height_and_width_are_told_from_static_ones(colour_onnx):
    path = colour_onnx(batch=None, height="height", width="width")
    info = read_onnx(path)
    sizes = ("input_height", "input_width", "min_height", "max_height", "min_width", "max_width")
    assert [info[key] for key in sizes] == [None] * 6  # another maker's: the size it was traced at is not known
    model = onnx.load(path)
    add_metadata(model, {"input_height": 64, "input_width": 96})
    onnx.save(model, path)
    info = read_onnx(path)
    assert [info[key] for key in sizes] == [64, 96, None, None, None, None]
    assert [read_onnx(colour_onnx())[key] for key in sizes] == [64, 96, 64, 64, 96, 96]


@pytest.mark.parametrize(
    ("zero_point", "constant", "precision"),
    [
        (TensorProto.INT8, False, "int8"),
        (TensorProto.UINT8, True, "int8"),
        (TensorProto.FLOAT8E4M3FN, False, "fp8"),
        (TensorProto.FLOAT8E4M3FN, True, "fp8"),
    ],
)
def test_a_quantised_graph_is_known_by_its_types(colour_onnx, zero_point, constant, precision):
    """Tools that quantise drop the metadata, or keep those of the file they read."""
    path = colour_onnx()
    model = onnx.load(path)
    add_metadata(model, {"precision": "fp32"})
    zero = helper.make_tensor("zero", zero_point, [], [0])
    scale = numpy_helper.from_array(np.float32(0.1), "scale")
    model.graph.initializer.extend([scale] if constant else [scale, zero])
    if constant:
        model.graph.node.append(helper.make_node("Constant", [], ["zero"], value=zero))
    model.graph.node.append(helper.make_node("QuantizeLinear", ["l", "scale", "zero"], ["q"]))
    model.graph.node.append(helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["dq"]))
    onnx.save(model, path)
    assert read_onnx(path)["precision"] == precision


def test_a_side_car_from_before_ranges_of_sizes_loads(engine):
    info = json.loads(sidecar_path(engine).read_text())
    old = {key: value for key, value in info.items() if key.split("_")[-1] not in ("height", "width")}
    sidecar_path(engine).write_text(json.dumps(old | {"input_height": 64, "input_width": 96}))
    assert load_engine(engine).info == info


def test_engine_is_a_plain_onnx_file_of_standard_operators(engine):
    model = onnx.load(engine)
    onnx.checker.check_model(model)
    assert {node.domain for node in model.graph.node} <= {"", "ai.onnx"}


def test_refuses_an_onnx_where_an_engine_is_wanted(colour_onnx):
    with pytest.raises(ModelError, match=r"colours.onnx: this is an ONNX file, not an engine.*gen_trt_engine"):
        load_engine(colour_onnx())


def test_refuses_an_engine_where_an_onnx_is_wanted(engine, tmp_path):
    with pytest.raises(ModelError, match=r"made.engine: this is an engine, not an ONNX file"):
        build_engine(engine, tmp_path / "again.engine", SETTINGS)
    assert not (tmp_path / "again.engine").exists()


def test_refuses_a_checkpoint(checkpoint, tmp_path):
    with pytest.raises(ModelError, match=r"some.pth: this is a checkpoint .*, not an engine.*depth_net export"):
        load_engine(checkpoint)
    with pytest.raises(ModelError, match=r"some.pth: this is a checkpoint .*, not an ONNX file.*depth_net export"):
        build_engine(checkpoint, tmp_path / "e", SETTINGS)


def test_refuses_a_compiled_package_of_pytorch(tmp_path):
    """Its native code would run as soon as PyTorch opens it."""
    path = tmp_path / "net.pt2"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("net/archive_format", "pt2")
        archive.writestr("net/data/aotinductor/model/x.wrapper.so", b"\x7fELF")
    with pytest.raises(ModelError, match=r"net.pt2: this is .* another file of PyTorch, not an engine"):
        load_engine(path)
    with pytest.raises(ModelError, match=r"net.pt2: this is .* another file of PyTorch, not an ONNX file"):
        read_onnx(path)
    with pytest.raises(ModelError, match=r"net.pt2: .*torch.save did not write it"):
        describe(path)


@pytest.mark.parametrize("content", [b"", b"hello, world " * 20, b"\0" * 4096, b"ftrt" + b"\1" * 100])
def test_refuses_what_is_none_of_these(tmp_path, content):
    path = tmp_path / "thing.engine"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=r"thing.engine: .*gen_trt_engine"):
        load_engine(path)
    with pytest.raises(ModelError, match=r"thing.engine: .*(not an|no) ONNX file"):
        read_onnx(path)
    with pytest.raises(ModelError, match=r"thing.engine"):
        describe(path)


def test_a_zip_file_with_names_that_are_no_utf_8_is_damaged(tmp_path):
    """zipfile itself ends in a UnicodeDecodeError."""
    path = tmp_path / "net.pth"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("n\u00e4/data.pkl", "")
    path.write_bytes(path.read_bytes().replace("\u00e4".encode(), b"\xc3\xc3"))
    assert file_kind(path) == "checkpoint"
    with pytest.raises(ModelError, match=r"net.pth"):
        load_engine(path)
    with pytest.raises(ModelError, match=r"net.pth: the file is truncated or damaged"):
        describe(path)


def test_refuses_missing_files(tmp_path):
    for call in (load_engine, read_onnx, describe):
        with pytest.raises(ModelError, match=r"none.engine: no such file"):
            call(tmp_path / "none.engine")


def test_refuses_a_truncated_onnx(colour_onnx, tmp_path):
    whole = colour_onnx().read_bytes()
    short = tmp_path / "short.onnx"
    short.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ModelError, match=r"short.onnx: .*truncated"):
        read_onnx(short)


def test_refuses_a_truncated_and_a_changed_engine(engine):
    whole = engine.read_bytes()
    for damaged in (whole[:-10], whole[:-1] + bytes([whole[-1] ^ 1])):
        engine.write_bytes(damaged)
        with pytest.raises(ModelError, match=r"made.engine: the engine is truncated or was changed"):
            load_engine(engine)


def test_refuses_an_engine_of_a_backend_that_is_not_here(engine):
    info = json.loads(sidecar_path(engine).read_text())
    sidecar_path(engine).write_text(json.dumps(info | {"backend": "tensorrt", "target": "NVIDIA H100"}))
    with pytest.raises(ModelError, match=r"made.engine: .*TensorRT is not installed.*stereo-pipelines\[tensorrt\]"):
        load_engine(engine)
    sidecar_path(engine).write_text(json.dumps(info | {"backend": "vulkan", "target": "NPU"}))
    with pytest.raises(ModelError, match=r"made.engine: the engine needs the backend vulkan .* for NPU"):
        load_engine(engine)


def test_refuses_a_side_car_that_lacks_a_key(engine):
    info = json.loads(sidecar_path(engine).read_text())
    del info["max_batch"]
    sidecar_path(engine).write_text(json.dumps(info))
    with pytest.raises(ModelError, match=r"made.engine.json: the side-car lacks max_batch"):
        load_engine(engine)


@pytest.mark.parametrize(
    ("key", "value"),
    [("max_batch", "4"), ("min_height", -32), ("input_width", True), ("backend", [1]), ("precision", 8)],
)
def test_refuses_a_side_car_that_holds_what_can_not_be(engine, key, value):
    info = json.loads(sidecar_path(engine).read_text())
    sidecar_path(engine).write_text(json.dumps(info | {key: value}))
    with pytest.raises(ModelError, match=f"made.engine.json: the side-car has impossible values of {key}"):
        load_engine(engine)


def test_an_onnx_file_with_odd_metadata_and_nodes(colour_onnx):
    path = colour_onnx()
    model = onnx.load(path)
    model.graph.node.insert(0, helper.make_node("Constant", [], []))
    model.graph.node.insert(0, helper.make_node("QuantizeLinear", [], []))
    del model.opset_import[:]
    onnx.save(model, path)
    assert describe(path)["opset"] is None and read_onnx(path)["precision"] == "int8"
    add_metadata(model, {"valid_iters": "8 or so"})
    onnx.save(model, path)
    with pytest.raises(ModelError, match=r"the metadata stereo\.valid_iters is '8 or so', not a number"):
        read_onnx(path)


@pytest.mark.parametrize("text", ['{"kind": "run"}', "[1]", "{", ""])
def test_another_json_file_beside_it_makes_no_engine(colour_onnx, text):
    path = colour_onnx()
    sidecar_path(path).write_text(text)
    assert file_kind(path) == "onnx"


@pytest.mark.parametrize(("left", "right"), [("left", "right"), ("left_image", "image")])
def test_refuses_other_input_names(colour_onnx, left, right):
    with pytest.raises(ModelError, match=rf"inputs {left}, {right} .*left_image, right_image and disparity"):
        read_onnx(colour_onnx(left=left, right=right))


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ([1, 3, 96], "1 x 3 x 96; expected B x 3 x H x W"),
        ([1, 1, 64, 96], "1 x 1 x 64 x 96; expected B x 3 x H x W"),
        ([1, 3, 60, 96], "96 x 60; they must be multiples of 32"),
        ([1, 3, "h", 100], r"100 x \?; they must be multiples of 32"),
        ([1, 3, 64, 96], "output disparity is 1 x 3 x 64 x 96; expected 1 x 1 x 64 x 96"),
        (["b", 3, "h", "w"], "output disparity is . x 3 x . x .; expected B x 1 x H x W"),
    ],
)
def test_refuses_other_shapes(tmp_path, shape, message):
    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, shape) for n in ("left_image", "right_image")]
    out = helper.make_tensor_value_info("disparity", TensorProto.FLOAT, shape)
    graph = helper.make_graph(
        [helper.make_node("Add", ["left_image", "right_image"], ["disparity"])], "g", values, [out]
    )
    path = tmp_path / "other.onnx"
    onnx.save(helper.make_model(graph), path)
    with pytest.raises(ModelError, match=message):
        read_onnx(path)


@pytest.mark.parametrize("precision", ["bf16"])
def test_a_precision_that_is_not_built_is_refused_by_name(colour_onnx, tmp_path, precision):
    with pytest.raises(SpecError, match=rf"data_type: the onnxruntime backend does not build {precision}"):
        build_engine(colour_onnx(), tmp_path / "e", BuildSettings("onnxruntime", precision=precision))


@pytest.mark.parametrize("profile", [(2, 1, 4), (1, 4, 2), (0, 1, 1)])
def test_a_falling_profile_is_refused(colour_onnx, tmp_path, profile):
    low, best, high = profile
    with pytest.raises(SpecError, match=f"{low}, {best}, {high}"):
        build_engine(
            colour_onnx(batch=None),
            tmp_path / "e",
            BuildSettings("onnxruntime", min_batch=low, opt_batch=best, max_batch=high),
        )


@pytest.mark.parametrize("device", ["cuda", "cuda:1"])
def test_a_device_that_is_not_there_is_an_error(engine, device):
    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this ONNX Runtime has a CUDA provider")
    with pytest.raises(UserError, match=rf"device {device}: .*no CUDA provider"):
        load_engine(engine, device)
    with pytest.raises(UserError, match=r"'tpu' is not"):
        load_engine(engine, "tpu")


def test_a_gpu_that_is_not_used_is_told(engine, monkeypatch, caplog):
    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this ONNX Runtime has a CUDA provider")
    torch = pytest.importorskip("torch")
    load_engine(engine)
    assert "although this machine has a GPU" not in caplog.text
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    load_engine(engine, "cpu")
    assert "although this machine has a GPU" not in caplog.text
    load_engine(engine)
    assert (
        "has no CUDA provider and runs on the CPU, although this machine has a GPU; install onnxruntime-gpu"
        in caplog.text
    )


def test_a_failed_build_leaves_the_old_engine_whole(engine, colour_onnx, monkeypatch):
    before = engine.read_bytes()
    nan = colour_onnx("nan.onnx", scale=float("nan"))
    with pytest.raises(RuntimeError, match="nan px on average"):
        build_engine(nan, engine, BuildSettings("onnxruntime"))
    assert engine.read_bytes() == before
    assert load_engine(engine).infer(np.zeros((8, 8, 3)), np.zeros((8, 8, 3))).shape == (8, 8)
    assert not [p for p in engine.parent.iterdir() if p.name.startswith(".")]


def test_verify_reports_the_difference_to_the_onnx_file(colour_onnx, tmp_path):
    build = build_engine(colour_onnx(batch=2), tmp_path / "e", BuildSettings("onnxruntime"))
    assert 0 <= build.difference["mean_abs_difference_px"] <= build.difference["max_abs_difference_px"] < 0.5
    assert build.difference["mean_abs_difference_px"] <= build.difference["tolerance_px"] <= 0.01


def test_describe(engine, colour_onnx):
    said = describe(engine)
    assert (said["kind"], said["backend"], said["bytes"]) == ("engine", "onnxruntime", engine.stat().st_size)
    said = describe(colour_onnx())
    assert (said["kind"], said["opset"], said["nodes"], said["input_width"]) == ("onnx", 17, 3, 96)


def test_describe_a_checkpoint(tmp_path):
    from stereo_core.models import create_model, save_checkpoint

    save_checkpoint(create_model(preset="tiny"), tmp_path / "tiny.pth")
    said = describe(tmp_path / "tiny.pth")
    assert (said["kind"], said["encoder"], said["variant"]) == ("checkpoint", "vitt", "nvlabs")
    (tmp_path / "tiny.pth").rename(tmp_path / "dn_model_best.pth")
    assert describe(f"{tmp_path}@best")["sha256"] == said["sha256"]
    with pytest.raises(ModelError, match="no such checkpoint; the folder holds no checkpoint"):
        describe(f"{tmp_path}@latest")


def test_engines_run_and_describe_without_pytorch(engine):
    """A deployment image has no PyTorch."""
    subprocess.run([sys.executable, Path(__file__).parent / "without_pytorch.py", engine], check=True)


def test_the_onnx_file_is_not_overwritten_by_its_engine(colour_onnx):
    path = colour_onnx()
    before = path.read_bytes()
    with pytest.raises(SpecError, match=r"trt_engine: .*colours.onnx is also the name of the ONNX file"):
        build_engine(path, path, SETTINGS)
    assert path.read_bytes() == before
