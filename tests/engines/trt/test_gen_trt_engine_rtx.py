"""gen_trt_engine with TensorRT-RTX, through the spec and with every key."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

import onnx
import pytest
from rtx import trt

from stereo_core.actions import gen_trt_engine
from stereo_core.engines.files import read_engine
from stereo_core.run.outcome import Outcome
from stereo_core.run.status import StatusLog
from stereo_core.spec import spec_from_dict


@dataclass
class Built:
    engine: Path
    outcome: Outcome
    said: str  # in the log
    status: str  # in status.json
    times: Path  # the timing cache that was asked for


@pytest.fixture
def built(open_onnx, tmp_path, caplog) -> Built:
    """Numbers for compute capabilities, TAO's 1024, any case, pins, sizes, a cache that RTX lacks."""
    model = onnx.load(open_onnx)
    model.graph.node[0].name = "red"
    onnx.save(model, open_onnx)
    tensorrt = {"data_type": "FP16", "workspace_size": 1024, "max_batch_size": 2, "layers_precision": ["red:fp32"]}
    keys = {"compute_capabilities": [8.9, "12.0"], "timing_cache": str(tmp_path / "times"), "max_width": 128}
    tree = {"results_dir": str(tmp_path / "results"), "gen_trt_engine": {"onnx_file": str(open_onnx)} | keys}
    tree["gen_trt_engine"]["tensorrt"] = tensorrt
    with caplog.at_level(logging.INFO):
        outcome = gen_trt_engine.run(spec_from_dict("gen_trt_engine", tree), StatusLog(tmp_path))
    engine = tmp_path / "results" / "gen_trt_engine" / "open.rtx.engine"
    return Built(engine, outcome, caplog.text, (tmp_path / "status.json").read_text(), tmp_path / "times")


def test_the_engine_is_what_the_keys_say(built):
    info = read_engine(built.engine)
    assert (info["precision"], info["target"]) == ("fp16", "compute capabilities 8.9, 12.0")
    assert info["backend_version"] == trt.__version__
    assert (info["min_width"], info["input_width"], info["max_width"], info["max_batch"]) == (96, 96, 128, 2)
    assert not built.engine.with_name("open.rtx.engine.lock").exists()


def test_the_outcome_names_the_engine_and_what_it_is(built):
    outcome, info = built.outcome, read_engine(built.engine)
    assert outcome.artifacts == {"engine": built.engine} and outcome.metadata["engine"].items() <= info.items()
    assert set(outcome.kpi) == {"engine_bytes", "build_seconds"}
    assert outcome.kpi["engine_bytes"] == built.engine.stat().st_size
    assert "fp16, not verified: built by tensorrt_rtx" in outcome.message
    assert " with tensorrt_rtx" in built.status


def test_the_choice_and_what_has_no_effect_are_said(built):
    assert "not tensorrt: TensorRT is not installed" in built.said
    assert "gen_trt_engine.timing_cache has no effect with the tensorrt_rtx backend" in built.said
    assert not built.times.exists()
    assert "workspace_size: 1024 means no limit" in built.said
    assert "the engine was not verified: built by" in built.said
