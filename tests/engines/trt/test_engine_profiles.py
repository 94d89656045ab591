"""The sizes that an engine takes: those of its file, or a profile of what the file leaves open."""

from __future__ import annotations

from dataclasses import replace

import pytest
from rtx import RTX, trt

from stereo_core.engines import build_engine, tensorrt
from stereo_core.engines.files import read_onnx
from stereo_core.engines.tensorrt.build import profile_of
from stereo_core.engines.tensorrt.interface import interface_of_network
from stereo_core.engines.tensorrt.messages import logger
from stereo_core.errors import ModelError, SpecError
from stereo_core.report.describe import as_text, describe


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
    builder = trt.Builder(logger(trt, verbose=False))
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    assert trt.OnnxParser(network, builder.logger).parse(onnx_file.read_bytes())
    return interface_of_network(trt, network, profile_of(builder, network, info))


@pytest.mark.parametrize(("backend", "reach"), [("onnxruntime", 2), ("tensorrt_rtx", 1)])
def test_without_sizes_an_open_file_gives_an_open_engine(open_onnx, tmp_path, backend, reach, caplog):
    """TensorRT sets the memory of its largest size aside: no more by default than that of the traced one."""
    caplog.set_level("INFO")
    info = build_engine(open_onnx, tmp_path / "e", replace(RTX, backend=backend, verify=False)).info
    assert [info[key] for key in ("min_height", "input_height", "max_height")] == [32, 64, reach * 64]
    assert [info[key] for key in ("min_width", "input_width", "max_width")] == [32, 96, reach * 96]
    sizes = f"height 32 to {reach * 64} px, best 64, width 32 to {reach * 96} px, best 96"
    assert sizes in caplog.text and "gen_trt_engine.{min,opt,max}_height" in caplog.text


def test_a_height_that_is_set_alone_is_the_only_one_and_the_log_says_so(open_onnx, tmp_path, caplog):
    caplog.set_level("INFO")
    settings = replace(RTX, backend="onnxruntime", verify=False, heights=(None, 96, None))
    info = build_engine(open_onnx, tmp_path / "e", settings).info
    assert (info["min_height"], info["max_height"], info["min_width"]) == (96, 96, 32)
    assert "height 96 px, width 32 to 192 px" in caplog.text


@pytest.mark.parametrize(
    ("heights", "message"),
    [
        (
            (128, 64, 128),
            "min_height, opt_height, max_height are 128, 64, 128; they must be at least 1 and in ascending order",
        ),
        ((64, None, 32), "are 64, 64, 32; they must be at least 1 and in ascending order"),
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
        (1, {"max_batch": 4}, r"min_batch_size, .* are 1, 1, 4, but .* a static batch of 1; .*export.batch_size=-1"),
        (2, {"min_batch": 3, "opt_batch": 3, "max_batch": 3}, "are 3, 3, 3, but the ONNX file has a static batch of 2"),
        (1, {"heights": (None, 96, None)}, r"opt_height=96 cannot hold 64 px, the only height .*dynamic_hw"),
        (
            1,
            {"widths": (128, 160, 192)},
            "min_width=128, opt_width=160, max_width=192 cannot hold 96 px, the only width of the ONNX file",
        ),
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


def test_a_network_that_is_not_the_side_cars_is_refused(colour_onnx, tmp_path):
    """The check that also stands between a deserialised engine and its side-car."""
    source = colour_onnx(height=64)
    info = read_onnx(source) | {"min_height": 96, "input_height": 96, "max_height": 96}
    with pytest.raises(ModelError, match=r"colours.onnx: .*\(1, 3, 64, 96\).* expected .*\(1, 3, 96, 96\)"):
        tensorrt.backend("tensorrt_rtx").build(source, tmp_path / "e", info, RTX)
    assert not (tmp_path / "e").exists()
