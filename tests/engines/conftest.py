"""ONNX files by hand, whose disparity is a known function of the images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper


@pytest.fixture
def colour_onnx(tmp_path):
    """Factory of an ONNX file with `disparity = scale * left red + 3 * right green`, colours in 0..255."""

    def make(name="colours.onnx", batch=1, height=64, width=96, *, left="left_image", right="right_image", scale=1.0):
        return write_colour_onnx(tmp_path / name, batch, height, width, left, right, scale)

    return make


def write_colour_onnx(path: Path, batch, height, width, left="left_image", right="right_image", scale=1.0) -> Path:
    shape = [batch or "batch", 3, height, width]
    # One 1x1 convolution an image undoes the ImageNet normalisation of the channel it takes.
    red, green = np.zeros((1, 3, 1, 1), np.float32), np.zeros((1, 3, 1, 1), np.float32)
    red[0, 0], green[0, 1] = 0.229 * 255 * scale, 0.224 * 255 * 3
    weights = {"red": red, "green": green, "red0": np.float32([0.485 * 255 * scale])}
    weights["green0"] = np.float32([0.456 * 255 * 3])
    nodes = [
        helper.make_node("Conv", [left, "red", "red0"], ["l"]),
        helper.make_node("Conv", [right, "green", "green0"], ["r"]),
        helper.make_node("Add", ["l", "r"], ["disparity"]),
    ]
    graph = helper.make_graph(
        nodes,
        "colours",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in (left, right)],
        [helper.make_tensor_value_info("disparity", TensorProto.FLOAT, [shape[0], 1, height, width])],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


@pytest.fixture(scope="session")
def tiny_onnx(tmp_path_factory) -> Path:
    """The tiny network with random weights, any batch of 64 x 96, 2 iterations."""
    import torch

    from stereo_core.actions import export
    from stereo_core.models import create_model, save_checkpoint
    from stereo_core.spec import spec_from_dict

    class Silent:
        def running(self, *_, **__):
            pass

    folder = tmp_path_factory.mktemp("tiny")
    torch.manual_seed(3)
    save_checkpoint(create_model(preset="tiny"), folder / "tiny.pth")
    section = {"checkpoint": str(folder / "tiny.pth"), "onnx_file": str(folder / "tiny.onnx"), "valid_iters": 2}
    section |= {"input_height": 64, "input_width": 96, "on_cpu": True, "check": False}
    model = {"model_type": "FoundationStereo", "preset": "tiny"}
    export.run(spec_from_dict("export", {"results_dir": str(folder), "model": model, "export": section}), Silent())
    return folder / "tiny.onnx"
