"""What OpenVINO alone does; the disparity itself is held against ONNX Runtime's, node by node."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from test_onnxruntime import pair, quantised_onnx

from stereo_core.engines import BuildSettings, build_engine, choose_backend, load_engine, openvino
from stereo_core.engines.files import read_engine
from stereo_core.engines.verify import reference_disparity
from stereo_core.errors import ModelError, SpecError, UserError

ov = pytest.importorskip("openvino")
OPENVINO = BuildSettings(backend="openvino", verify=False)
BF16 = openvino._has_bf16()


def built(source, **settings):
    out = source.with_suffix(".ov.onnx")
    build = build_engine(source, out, BuildSettings(backend="openvino", **settings))
    return build, load_engine(out)


@pytest.mark.slow
def test_the_network_gives_its_files_disparity_two_images_at_once(tiny_onnx, tmp_path):
    build = build_engine(tiny_onnx, tmp_path / "e", BuildSettings(backend="openvino", max_batch=2))
    assert build.difference["mean_abs_difference_px"] < 1e-4 and build.not_verified is None
    info = read_engine(tmp_path / "e")
    assert (info["backend"], info["backend_version"], info["target"]) == ("openvino", ov.__version__, "any CPU")


def test_an_open_file_runs_in_the_sizes_of_its_range(tmp_path, colour_onnx):
    source = colour_onnx(batch=None, height="h", width="w")
    build, engine = built(source, max_batch=3, heights=(32, 64, 96), widths=(32, 64, 128), verify=False)
    assert (build.info["max_height"], build.info["max_width"]) == (96, 128)
    for shape in ((1, 3, 32, 128), (3, 3, 96, 64), (1, 3, 32, 128)):
        left, right = pair(*shape)
        np.testing.assert_allclose(engine.run(left, right), reference_disparity(source, left, right), atol=1e-3)


def test_a_result_is_not_overwritten_by_the_next_run(colour_onnx):
    _, engine = built(colour_onnx(), verify=False)
    first = engine.run(*pair(1, 3, 64, 96))
    kept = first.copy()
    assert not np.array_equal(engine.run(*pair(1, 3, 64, 96, seed=5)), kept)
    np.testing.assert_array_equal(first, kept)


def test_a_signal_finds_its_stack_after_engines_were_opened_and_closed(colour_onnx, tmp_path):
    """On a CPU with AMX each Core of OpenVINO brings a signal stack that goes with it."""
    build_engine(colour_onnx(), tmp_path / "e", OPENVINO)
    code = """
import gc, os, signal, sys
from stereo_core.engines import load_engine
signal.signal(signal.SIGUSR1, lambda *_: None)
engines = [load_engine(sys.argv[1]) for _ in range(3)]
while engines:
    engines.pop(0)
    gc.collect()
    os.kill(os.getpid(), signal.SIGUSR1)
"""
    command = [sys.executable, "-X", "faulthandler", "-c", code, str(tmp_path / "e")]
    assert subprocess.run(command, timeout=120).returncode == 0


def test_tensors_and_arrays_give_the_same(colour_onnx):
    torch = pytest.importorskip("torch")
    _, engine = built(colour_onnx(), verify=False)
    left, right = (np.random.default_rng(seed).integers(0, 256, (2, 40, 50, 3), np.uint8) for seed in range(2))
    tensors = (torch.from_numpy(image).permute(0, 3, 1, 2) for image in (left, right))
    np.testing.assert_allclose(engine.infer(*tensors).numpy(), engine.infer(left, right), atol=1e-3)


@pytest.mark.skipif(not BF16, reason="this CPU has no bf16 arithmetic")
def test_bf16_is_computed_where_it_is_asked_for(tiny_onnx, tmp_path):
    """In float32, above, OpenVINO's own choice would be bf16 on such a CPU."""
    build = build_engine(tiny_onnx, tmp_path / "e", BuildSettings(backend="openvino", precision="bf16"))
    assert build.info["precision"] == "bf16" and build.difference["mean_abs_difference_px"] > 1e-4


@pytest.mark.skipif(BF16, reason="this CPU has bf16 arithmetic")
def test_bf16_is_refused_by_a_cpu_without(colour_onnx):
    with pytest.raises(SpecError, match="does not support bf16; set fp32"):
        built(colour_onnx(), precision="bf16")


def test_int8_engine_rounds_as_its_file_says(tmp_path):
    source = quantised_onnx(tmp_path / "q.onnx", 0.25, numpy_helper.from_array(np.int8(0), "zero"))
    _, engine = built(source, precision="int8")
    left, right = pair(1, 3, 32, 32)
    rounded = 0.25 * (np.rint(left[:, 0] / 0.25) + np.rint(right[:, 1] / 0.25))
    np.testing.assert_allclose(engine.run(left, right), rounded, atol=1e-6)


def test_weights_beside_the_file_go_into_the_engine(colour_onnx, tmp_path):
    source = colour_onnx()
    model = onnx.load(source)
    (tmp_path / "outside").mkdir()
    outside = tmp_path / "outside" / "colours.onnx"
    onnx.save(model, outside, save_as_external_data=True, location="weights.bin", size_threshold=0)
    build_engine(outside, tmp_path / "e", OPENVINO)
    (tmp_path / "outside" / "weights.bin").unlink()
    left, right = pair(1, 3, 64, 96)
    np.testing.assert_allclose(load_engine(tmp_path / "e").run(left, right), reference_disparity(source, left, right),
                               atol=1e-3)  # fmt: skip


def test_an_operator_that_openvino_lacks_is_told(colour_onnx):
    source = colour_onnx()
    model = onnx.load(source)
    model.graph.node[-1].domain, model.graph.node[-1].op_type = "nobody", "Strange"
    model.opset_import.append(onnx.helper.make_opsetid("nobody", 1))
    onnx.save(model, source)
    with pytest.raises(ModelError, match=r"colours.onnx: OpenVINO cannot compile the file; use another [\s\S]*Strange"):
        built(source)


def test_it_runs_on_cpus_only(colour_onnx):
    built(colour_onnx(), verify=False)
    out = colour_onnx().with_suffix(".ov.onnx")
    assert load_engine(out, "cpu").device == "cpu"
    with pytest.raises(UserError, match=r"device cuda:0: .*runs only on the CPU"):
        load_engine(out, "cuda:0")


def test_without_the_package_the_error_names_it(colour_onnx, monkeypatch):
    built(source := colour_onnx(), verify=False)
    monkeypatch.setitem(sys.modules, "openvino", None)
    text = r"OpenVINO is not installed: pip install 'stereo-pipelines\[openvino\]'"
    with pytest.raises(SpecError, match=text):
        built(source)
    with pytest.raises(ModelError, match=text):
        load_engine(source.with_suffix(".ov.onnx"))


def test_auto_takes_it_on_a_cpu_for_what_it_builds(monkeypatch):
    assert choose_backend(BuildSettings()) == "openvino"
    assert choose_backend(BuildSettings(precision="fp16")) == "onnxruntime"
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: ["CUDAExecutionProvider"])
    assert choose_backend(BuildSettings()) == "onnxruntime"
    assert choose_backend(BuildSettings(backend="openvino")) == "openvino"


def test_it_runs_and_is_described_without_pytorch(colour_onnx):
    built(colour_onnx(), verify=False)
    engine = colour_onnx().with_suffix(".ov.onnx")
    subprocess.run([sys.executable, Path(__file__).parent / "without_pytorch.py", engine], check=True)
