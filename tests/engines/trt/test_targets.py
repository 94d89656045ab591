"""GPUs that an engine is built for and runs on, and the backend that is chosen for them."""

from __future__ import annotations

import logging
from dataclasses import replace

import pytest
from rtx import L4, RTX, copied, trt

from stereo_core.engines import BuildSettings, build_engine, choose_backend, load_engine, tensorrt
from stereo_core.engines.tensorrt.targets import Gpu, find_gpu
from stereo_core.errors import ModelError, SpecError, UserError


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"compute_capabilities": ("9.0",)}, "TensorRT-RTX does not build for 9.0, only for 7.5, 8.0, 8.6, 8.9"),
        ({"compute_capabilities": ("86",)}, "'86' is not a compute capability such as 8.6"),
        (
            {"precision": "bf16", "compute_capabilities": ("7.5", "8.6")},
            "bf16 needs .* 8.0 or higher, but the target has 7.5",
        ),
        ({"backend": "tensorrt"}, r"tensorrt cannot build here: .*pip install 'stereo-pipelines\[tensorrt\]'"),
        ({"precision": "int8"}, "int8 needs an ONNX file quantised to int8 .* is fp32; .*`depth_net quantize`"),
        ({"precision": "fp16", "layers_precision": ("conv:int8",)}, "layers_precision: 'conv:int8' is not"),
    ],
)
def test_settings_that_can_not_be_had_are_refused(colour_onnx, tmp_path, keys, message):
    with pytest.raises(SpecError, match=message):
        build_engine(colour_onnx(), tmp_path / "e", replace(RTX, **keys))
    assert list(tmp_path.iterdir()) == [tmp_path / "colours.onnx"]


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
    with pytest.raises(ModelError, match=r"colours.engine: built by .* capabilities 8.6, 8.9; PyTorch .* finds no"):
        load_engine(colour_engine)
    with pytest.raises(UserError, match="device cpu: a TensorRT engine runs only on cuda"):
        load_engine(colour_engine, "cpu")


def test_a_truncated_engine_is_refused(colour_engine, tmp_path):
    engine = copied(colour_engine, tmp_path)
    engine.write_bytes(engine.read_bytes()[:-100])
    with pytest.raises(ModelError, match=r"e.engine: the engine is truncated or was changed after its build"):
        load_engine(engine)


def test_auto_takes_the_first_that_can_build_for_a_gpu(monkeypatch, caplog):
    with caplog.at_level(logging.INFO):
        assert choose_backend(BuildSettings(compute_capabilities=("8.9",))) == "tensorrt_rtx"
    assert "auto chooses tensorrt_rtx (not tensorrt: TensorRT is not installed" in caplog.text
    monkeypatch.setattr(tensorrt, "find_gpu", lambda gpu_id: L4)
    assert choose_backend(BuildSettings()) == "tensorrt_rtx"
    monkeypatch.setattr(tensorrt, "find_gpu", lambda gpu_id: Gpu("NVIDIA H100", (9, 0), 1))
    assert choose_backend(BuildSettings()) == "openvino"
    assert "not tensorrt_rtx: TensorRT-RTX does not run on NVIDIA H100" in caplog.text
