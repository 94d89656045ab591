"""The example as a user runs it."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from stereo_core.data.images import write_png
from stereo_core.engines import BuildSettings, build_engine

EXAMPLE = Path(__file__).parents[2] / "examples" / "ros_free_camera.py"


@pytest.fixture
def engine(tmp_path):
    """An engine of 64 x 96: the disparity is the left image's red minus the right image's, normalised."""
    value = helper.make_tensor_value_info
    sides = ("left_image", "right_image")
    nodes = [helper.make_node("Sub", sides, ["d"]), helper.make_node("Slice", ["d", "0", "1", "1"], ["disparity"])]
    weights = [numpy_helper.from_array(np.int64([number]), str(number)) for number in (0, 1)]
    inputs = [value(name, TensorProto.FLOAT, [1, 3, 64, 96]) for name in sides]
    outputs = [value("disparity", TensorProto.FLOAT, [1, 1, 64, 96])]
    graph = helper.make_graph(nodes, "red", inputs, outputs, weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, tmp_path / "red.onnx")
    build_engine(tmp_path / "red.onnx", tmp_path / "red.ort.onnx", BuildSettings(backend="onnxruntime", verify=False))
    return tmp_path / "red.ort.onnx"


def medians(engine, source):
    command = [sys.executable, str(EXAMPLE), str(source), "--model", str(engine)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found = re.findall(r"^\d+: (\d+ x \d+), median (\S+) px, [\d.]+ frames per second", done.stdout, re.MULTILINE)
    return [(size, float(median)) for size, median in found]


def plain(red):
    return np.tile(np.uint8([red, 0, 0]), (50, 80, 1))


def test_a_folder(engine, tmp_path):
    for name, red in (("a", 100), ("b", 200)):
        for side, value in (("left", red), ("right", 10)):
            (tmp_path / "pairs" / side).mkdir(parents=True, exist_ok=True)
            write_png(tmp_path / "pairs" / side / f"{name}.png", plain(value))
    expected = [("80 x 50", pytest.approx((red - 10) / 255 / 0.229, abs=0.01)) for red in (100, 200)]
    assert medians(engine, tmp_path / "pairs") == expected


def test_a_folder_without_pairs(engine, tmp_path):
    command = [sys.executable, str(EXAMPLE), str(tmp_path), "--model", str(engine)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (1, f"{tmp_path}: there are no images in left/; put the right ones in "
                                                 "right/ under the same names\n")  # fmt: skip


def test_a_side_by_side_video(engine, tmp_path):
    path = tmp_path / "pairs.avi"
    video = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 10, (160, 50))
    for _ in range(3):
        video.write(np.concatenate([plain(200), plain(10)], axis=1)[..., ::-1])
    video.release()
    assert medians(engine, path) == 3 * [("80 x 50", pytest.approx(190 / 255 / 0.229, abs=0.1))]
