"""ONNX files and engines for tests of TensorRT."""

from __future__ import annotations

from dataclasses import replace

import onnx
import pytest

from stereo_core.engines import build_engine


@pytest.fixture
def colour_engine(colour_onnx, tmp_path):
    """A small engine of this version for 8.6 and 8.9."""
    from rtx import RTX

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
