"""A quantised checkpoint is the network that was measured: the same numbers in eager mode and in its ONNX file."""

from __future__ import annotations

import resource

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn

from stereo_core.errors import ModelError
from stereo_core.models import create_model, load_model, save_checkpoint
from stereo_core.models.checkpoints import convert_checkpoint, describe
from stereo_core.models.quantized import (
    QuantizedLayer,
    Rounding,
    numbers_of,
    rounds,
    save_quantized,
    scale_of,
)

LINEAR, CONV = "update_block.disp_head.conv.2.pwconv1", "corr_stem.0"


def quantized(model: nn.Module, name: str, kind: str, activation: float | None) -> QuantizedLayer:
    weight = model.get_submodule(name).weight.detach()
    scale = scale_of(weight.abs().amax(list(range(1, weight.dim())), keepdim=True), kind)
    return QuantizedLayer(numbers_of(weight, scale, kind), scale, activation and torch.tensor(activation))


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(5)
    return create_model(preset="tiny", valid_iters=2).eval()


@pytest.fixture(scope="module")
def file(network, tmp_path_factory):
    path = tmp_path_factory.mktemp("quantized") / "q.pth"
    layers = {LINEAR: quantized(network, LINEAR, "int8", None), CONV: quantized(network, CONV, "int8", 0.05)}
    save_quantized(network, path, "modelopt.pytorch", layers)
    return path


def test_a_disk_that_cannot_hold_the_file_is_named(network, file, tmp_path):
    """A file-size limit stands for the full disk. PyTorch speaks of its own archive."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (file.stat().st_size // 2, hard))
    try:
        with pytest.raises(OSError, match=r"File too large: '.*q\.pth'"):
            save_quantized(network, tmp_path / "q.pth", "modelopt.pytorch", {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", ["int8", "fp8"])
def test_rounding_is_the_formats_own(kind):
    x = torch.tensor([[0.004, 0.26, -3.0, 9.0], [0.51, -0.51, 0.074, 100.0]])
    scale = torch.tensor([[0.1], [0.01]])
    found = Rounding(kind, scale)(x)
    if kind == "int8":
        expected = torch.tensor([[0.0, 0.3, -3.0, 9.0], [0.51, -0.51, 0.07, 1.27]])
    else:  # four significant bits; 448 is the largest
        expected = torch.tensor([[0.00390625 * 10.0, 2.5, -30.0, 88.0], [52.0, -52.0, 7.5, 448.0]]) * scale
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(("kind", "opset"), [("int8", 16), ("int8", 20), ("fp8", 19)])
def test_the_onnx_file_rounds_as_the_network_does(kind, opset, tmp_path):
    torch.manual_seed(0)
    conv = nn.Conv2d(3, 4, 3)
    scale = scale_of(conv.weight.detach().abs().amax([1, 2, 3], keepdim=True), kind)
    nn.utils.parametrize.register_parametrization(conv, "weight", Rounding(kind, scale))
    model = nn.Sequential(Rounding(kind, torch.tensor(0.02)), conv).eval()
    x = torch.randn(1, 3, 8, 8)
    torch.onnx.export(model, (x,), tmp_path / "m.onnx", dynamo=False, opset_version=opset, input_names=["x"])
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx", providers=["CPUExecutionProvider"])
    with torch.no_grad():
        expected, plain = model(x).numpy(), nn.functional.conv2d(x, conv.parametrizations.weight.original, conv.bias)
    np.testing.assert_allclose(session.run(None, {"x": x.numpy()})[0], expected, atol=1e-6)
    assert np.abs(expected - plain.numpy()).max() > 1e-3


def test_weights_come_back_within_half_a_step_and_activations_are_rounded(network, file):
    model = load_model(file).eval()
    for name in (LINEAR, CONV):
        weight = network.get_submodule(name).weight
        step = weight.detach().abs().amax(list(range(1, weight.dim())), keepdim=True) / 127
        error = (model.get_submodule(name).weight - weight).abs()
        assert (error <= step / 2 * 1.001).all() and error.max() > 0
    assert rounds(model) and not rounds(network)
    x = torch.rand(1, model.get_submodule(CONV).in_channels, 4, 4, 4)
    conv = network.get_submodule(CONV)
    low = model.get_submodule(CONV).weight
    expected = nn.functional.conv3d((x / 0.05).round() * 0.05, low, conv.bias, conv.stride, conv.padding)
    torch.testing.assert_close(model.get_submodule(CONV)(x), expected)
    assert model.feature.stem[0].weight.equal(network.feature.stem[0].weight)


def test_the_file_holds_low_precision_numbers_and_no_objects(network, file, tmp_path):
    content = torch.load(file, weights_only=True)
    assert content["model"][f"{CONV}.weight"].dtype == torch.int8
    assert set(content["quantization"]["activation_scales"]) == {CONV}
    assert describe(file)["quantization"] == "modelopt.pytorch" and describe(file)["quantized_layers"] == 2
    save_checkpoint(network, tmp_path / "float.pth")
    assert "quantization" not in describe(tmp_path / "float.pth")


def test_a_scale_without_its_weight_is_refused(file, tmp_path):
    content = torch.load(file, weights_only=True)
    del content["quantization"]["weight_scales"][CONV]
    torch.save(content, tmp_path / "bad.pth")
    with pytest.raises(ModelError, match=r"quantised weights and scales do not match, for example corr_stem\.0"):
        load_model(tmp_path / "bad.pth")
    torch.save(content | {"quantization": {"library": "x"}}, tmp_path / "bad.pth")
    with pytest.raises(ModelError, match=r"the entry `quantization` was not written by depth_net quantize"):
        load_model(tmp_path / "bad.pth")


def test_another_layout_would_lose_the_scales(file, tmp_path):
    with pytest.raises(ModelError, match=r"a quantised checkpoint cannot be converted"):
        convert_checkpoint(file, tmp_path / "tao.pth", "tao")
    assert not (tmp_path / "tao.pth").exists()
