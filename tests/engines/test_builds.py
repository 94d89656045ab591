"""One build at a time, whole or not at all."""

from __future__ import annotations

import logging
import threading
import time

import pytest

from stereo_core.engines import BuildSettings, build_engine
from stereo_core.engines.files import read_engine
from stereo_core.files import locked


def test_a_second_build_waits_for_the_first(colour_onnx, tmp_path, caplog):
    out, source = tmp_path / "out" / "e", colour_onnx()
    settings = BuildSettings(backend="onnxruntime", verify=False)
    second = threading.Thread(target=build_engine, args=(source, out, settings))
    with caplog.at_level(logging.INFO):
        with locked(out):
            second.start()
            while "another process is writing" not in caplog.text:
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
