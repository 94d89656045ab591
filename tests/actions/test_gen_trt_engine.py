"""From a checkpoint to an engine: the file asked for, its side-car, and the checkpoint's own disparity out of it."""

from __future__ import annotations

import json
import logging
import resource
import sys

import numpy as np
import pytest
import torch

from stereo_core.actions import export, gen_trt_engine
from stereo_core.data.synthetic.planes import make_scene
from stereo_core.engines import load_engine
from stereo_core.engines.onnxruntime import OnnxRuntime
from stereo_core.engines.verify import synthetic_pair
from stereo_core.errors import ModelError, SpecError
from stereo_core.files import sha256_of
from stereo_core.models import create_model, save_checkpoint
from stereo_core.run.perform import perform
from stereo_core.spec import spec_from_dict
from stereo_core.spec.quantize import Quantize

HEIGHT, WIDTH = 64, 96
MODEL = {"model_type": "FoundationStereo", "preset": "tiny"}


class Status:
    def __init__(self):
        self.lines = []

    def running(self, message, **_):
        self.lines.append(message)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(3)
    return create_model(preset="tiny").eval()


@pytest.fixture(scope="module")
def onnx(model, tmp_path_factory):
    return exported(model, tmp_path_factory.mktemp("onnx"), check=False)


def exported(model, folder, **keys):
    save_checkpoint(model, folder / "tiny.pth")
    section = {"checkpoint": str(folder / "tiny.pth"), "onnx_file": str(folder / "tiny.onnx"), "valid_iters": 2}
    section |= {"input_height": HEIGHT, "input_width": WIDTH, "batch_size": -1, "on_cpu": True} | keys
    export.run(spec_from_dict("export", {"results_dir": str(folder), "model": MODEL, "export": section}), Status())
    return folder / "tiny.onnx"


def build(onnx, folder, tensorrt=None, **keys):
    section = {"onnx_file": str(onnx), "trt_engine": str(folder / "out" / "net.engine"), "tensorrt": tensorrt or {}}
    section |= {"backend": "onnxruntime"} | keys
    tree = {"results_dir": str(folder / "results"), "gen_trt_engine": section}
    status = Status()
    return gen_trt_engine.run(spec_from_dict("gen_trt_engine", tree), status), status


def test_engine_gives_the_checkpoints_disparity_for_another_image_size(model, onnx, tmp_path):
    """45 x 82 px in an engine of 64 x 96: the network's own padding, then the same graph."""
    outcome, _ = build(onnx, tmp_path, {"max_batch_size": 2})
    engine = load_engine(outcome.artifacts["engine"])
    scenes = [make_scene(60, 90, 12, seed) for seed in range(3)]
    left, right = (np.stack([scene[side] for scene in scenes]) for side in ("left", "right"))
    with torch.no_grad():
        tensors = [torch.from_numpy(x).permute(0, 3, 1, 2).float() for x in (left, right)]
        expected = model(*tensors, iters=2)[:, 0].numpy()
    np.testing.assert_allclose(engine.infer(left, right), expected, atol=2e-3)
    assert len(engine.latencies_ms) == 2


@pytest.mark.slow
def test_an_open_file_gives_an_engine_that_pads_no_more_than_the_network(model, tmp_path):
    """Traced at 64 x 96, run at 32 x 64 and 96 x 128: in one fixed size the first is padded, the second scaled down."""
    outcome, _ = build(exported(model, tmp_path, dynamic_hw=True, check=False), tmp_path)
    engine = load_engine(outcome.artifacts["engine"])
    for height, width in ((32, 64), (96, 128)):
        scene = make_scene(height, width, 12, 0)
        with torch.no_grad():
            pair = [torch.from_numpy(scene[side]).permute(2, 0, 1)[None].float() for side in ("left", "right")]
            expected = model(*pair, iters=2)[0, 0].numpy()
        np.testing.assert_allclose(engine.infer(scene["left"], scene["right"]), expected, atol=2e-3)


def test_engine_lies_exactly_where_it_was_asked_for(onnx, tmp_path):
    outcome, status = build(onnx, tmp_path, {"min_batch_size": 1, "opt_batch_size": 2, "max_batch_size": 4})
    engine = tmp_path / "out" / "net.engine"
    assert outcome.artifacts == {"engine": engine}
    assert sorted(p.name for p in engine.parent.iterdir()) == ["net.engine", "net.engine.json"]
    info = json.loads((tmp_path / "out" / "net.engine.json").read_text())
    assert info["sha256"] == sha256_of(engine) and info["onnx_sha256"] == sha256_of(onnx)
    assert (info["min_batch"], info["opt_batch"], info["max_batch"]) == (1, 2, 4)
    assert (info["encoder"], info["variant"], info["max_disparity"], info["valid_iters"]) == ("vitt", "nvlabs", 64, 2)
    assert outcome.metadata["engine"].items() <= info.items()
    assert 0 <= outcome.kpi["verify_mean_abs_difference_px"] < 0.01
    for text in (outcome.message, *status.lines):
        assert "with onnxruntime" in text and "not tensorrt" not in text


def test_without_a_name_the_engine_is_called_after_the_onnx_file(onnx, tmp_path):
    outcome, _ = build(onnx, tmp_path, trt_engine="", verify=False)
    assert outcome.artifacts["engine"] == tmp_path / "results" / "gen_trt_engine" / "tiny.ort.onnx"
    assert set(outcome.kpi) == {"engine_bytes", "build_seconds"}
    assert outcome.kpi["engine_bytes"] == outcome.artifacts["engine"].stat().st_size
    assert outcome.message.endswith("fp32, not verified: gen_trt_engine.verify is false.")


@pytest.mark.parametrize(("asked", "why"), [("tensorrt", "is not installed"), ("tensorrt_rtx", "compute_capabilities")])
def test_a_backend_that_can_not_build_here_is_refused(onnx, tmp_path, asked, why):
    with pytest.raises(SpecError, match=f"gen_trt_engine.backend: {asked} cannot build here: .*{why}"):
        build(onnx, tmp_path, backend=asked)
    assert not (tmp_path / "out").exists()


def test_another_precision_is_refused_not_built_as_fp32(onnx, tmp_path):
    with pytest.raises(SpecError, match="does not build bf16"):
        build(onnx, tmp_path, {"data_type": "BF16"})
    assert not (tmp_path / "out").exists()


def test_a_setting_that_the_build_has_no_use_for_draws_a_warning(onnx, tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        build(onnx, tmp_path, {"workspace_size": 1024}, verify=False)
        assert "no effect" not in caplog.text
        pins, keys = {"layers_precision": ["*:fp32"], "workspace_size": 2}, {"timing_cache": "x", "opt_height": HEIGHT}
        build(onnx, tmp_path, pins, verify=False, backend="onnxruntime", compute_capabilities=["8.6"], **keys)
    lines = [record.getMessage() for record in caplog.records]
    for key in ("tensorrt.workspace_size", "timing_cache", "compute_capabilities"):
        assert f"gen_trt_engine.{key} has no effect with the onnxruntime backend; leave it out" in lines
    assert (
        "gen_trt_engine.tensorrt.layers_precision has no effect in fp32, only in fp16 and bf16; leave it out" in lines
    )
    assert "opt_height" not in caplog.text  # it is the file's


def test_how_auto_came_to_its_choice_is_said_once_and_files_by_their_names(onnx, tmp_path, caplog, monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)  # not installed
    with caplog.at_level(logging.INFO):
        build(onnx, tmp_path, backend="auto")
    warning, *more = [record for record in caplog.records if "not tensorrt" in record.getMessage()]
    assert not more and warning.levelname == "WARNING"
    text = "gen_trt_engine.backend: auto chooses onnxruntime: its engine is an ONNX file, not a TensorRT engine (not "
    assert warning.getMessage().startswith(text) and "; not tensorrt_rtx: " in warning.getMessage()
    assert "engine's disparity on ONNX Runtime" in caplog.text and f"with that of {onnx}" in caplog.text
    assert "/.net.engine." not in caplog.text
    caplog.clear()
    with caplog.at_level(logging.INFO):
        load_engine(tmp_path / "out" / "net.engine", "cpu")
    assert f"{tmp_path / 'out' / 'net.engine'} runs on ONNX Runtime" in caplog.text


def test_the_build_of_the_readme_needs_no_results_dir(onnx, tmp_path):
    section = {"onnx_file": str(onnx), "trt_engine": str(tmp_path / "net.engine"), "verify": False}
    section["backend"] = "onnxruntime"
    assert perform("gen_trt_engine", spec_from_dict("gen_trt_engine", {"gen_trt_engine": section})) == 0
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"net.engine", "net.engine.json", "status.json", "experiment.yaml"}


@pytest.mark.slow
def test_a_quantised_file_of_one_batch_can_be_opened_and_keeps_only_int8_weights(model, tmp_path):
    """ONNX Runtime fuses products with sums in the file that it writes, and refused to do the rest on loading."""
    modelopt = pytest.importorskip("stereo_core.quantization.modelopt_onnx")
    pytest.importorskip("modelopt.onnx")
    source = exported(model, tmp_path, batch_size=1, valid_iters=1, check=False)
    settings = Quantize(backend="modelopt.onnx", device="cpu")
    modelopt.quantize(source, tmp_path / "int8.onnx", settings, [synthetic_pair(HEIGHT, WIDTH, 1)])
    outcome, _ = build(tmp_path / "int8.onnx", tmp_path, {"data_type": "int8"})
    assert outcome.kpi["verify_mean_abs_difference_px"] < 0.01
    assert outcome.kpi["engine_bytes"] < 0.6 * source.stat().st_size


@pytest.mark.parametrize("verify", [True, False])
def test_an_engine_that_can_not_be_opened_is_no_engine(onnx, tmp_path, monkeypatch, verify):
    """The backend's files are cut short here, as a full disk might."""
    write = OnnxRuntime.build

    def cut(self, source, out, *rest):
        said = write(self, source, out, *rest)
        out.write_bytes(out.read_bytes()[:-1000])
        return said

    monkeypatch.setattr(OnnxRuntime, "build", cut)
    with pytest.raises(Exception, match="INVALID_PROTOBUF"):
        build(onnx, tmp_path, verify=verify)
    assert not list((tmp_path / "out").glob("net.engine*"))


def test_a_disk_that_cannot_hold_the_engine_is_named(onnx, tmp_path):
    """A file-size limit stands for the full disk. ONNX Runtime says only INVALID_PROTOBUF."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (onnx.stat().st_size // 2, hard))
    try:
        with pytest.raises(OSError, match=r"File too large: '.*net\.engine'"):
            build(onnx, tmp_path, verify=False)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not list((tmp_path / "out").glob("*net.engine*"))


def test_an_engine_or_a_checkpoint_is_no_onnx_file(onnx, tmp_path):
    outcome, _ = build(onnx, tmp_path, verify=False)
    with pytest.raises(ModelError, match=r"net.engine: this is an engine, not an ONNX file"):
        build(outcome.artifacts["engine"], tmp_path / "second")
    with pytest.raises(ModelError, match=r"tiny.pth: this is a checkpoint .*, not an ONNX file"):
        build(onnx.with_suffix(".pth"), tmp_path / "second")
    assert not (tmp_path / "second" / "out").exists()
