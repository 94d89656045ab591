"""The ONNX file computes what the checkpoint computes, keeps TAO's contract, and appears whole or not at all."""

from __future__ import annotations

import json

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from stereo_core.actions import export
from stereo_core.data.images import read_image
from stereo_core.engines.files import read_onnx
from stereo_core.engines.verify import synthetic_pair
from stereo_core.errors import ModelError, SpecError
from stereo_core.models import create_model, save_checkpoint
from stereo_core.report.describe import describe
from stereo_core.spec import spec_from_dict

HEIGHT, WIDTH = 64, 96
ITERS = 2


class Status:
    """Keeps the lines; the real log's file format is not the matter here."""

    def __init__(self):
        self.lines = []

    def running(self, message, **_):
        self.lines.append(message)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A tiny network whose random weights are scaled up, so that the images matter to its disparity."""
    torch.manual_seed(3)
    path = tmp_path_factory.mktemp("export") / "tiny.pth"
    save_checkpoint(create_model(preset="tiny"), path)
    return path


def spec_of(checkpoint, out, **keys):
    section = {
        "checkpoint": str(checkpoint),
        "onnx_file": str(out),
        "input_height": HEIGHT,
        "input_width": WIDTH,
        "valid_iters": ITERS,
        "on_cpu": True,
    }
    tree = {"results_dir": str(out.parent / "results"), "model": {"model_type": "FoundationStereo", "preset": "tiny"}}
    return spec_from_dict("export", tree | {"export": section | keys})


def eager(checkpoint, left, right, iters):
    from stereo_core.models import load_model

    model = load_model(checkpoint, preset="tiny").eval()
    with torch.no_grad():
        return model.core(torch.from_numpy(left), torch.from_numpy(right), iters).numpy()


@pytest.fixture(scope="module")
def exported(checkpoint, tmp_path_factory):
    """(file, outcome, status) of an export with an open batch, at the default opset."""
    out, status = tmp_path_factory.mktemp("onnx") / "new folder" / "model.onnx", Status()
    return out, export.run(spec_of(checkpoint, out), status), status


def assert_disparity_is_the_checkpoints(checkpoint, onnx_file, count):
    left, right = synthetic_pair(HEIGHT, WIDTH, count)
    session = onnxruntime.InferenceSession(onnx_file, providers=["CPUExecutionProvider"])
    found = session.run(["disparity"], {"left_image": left, "right_image": right})[0]
    expected = eager(checkpoint, left, right, ITERS)
    assert found.shape == (count, 1, HEIGHT, WIDTH)
    # float32 in another order of additions; what a mistake would cost stands in the two lines below.
    np.testing.assert_allclose(found, expected, atol=1e-3)
    assert np.abs(eager(checkpoint, left, right, ITERS - 1) - expected).mean() > 1e-2
    assert np.abs(eager(checkpoint, right, left, ITERS) - expected).mean() > 1e-2


def opset_of(model):
    return [entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")]


def test_disparity_is_the_checkpoints_for_any_batch(checkpoint, exported):
    out, outcome, _ = exported
    assert_disparity_is_the_checkpoints(checkpoint, out, 3)
    assert outcome.artifacts == {"onnx": out}
    assert 0 <= outcome.kpi["check_mean_abs_difference_px"] <= outcome.kpi["check_max_abs_difference_px"] < 1e-3
    assert outcome.kpi["check_mean_abs_difference_px"] <= outcome.kpi["check_tolerance_px"] <= 0.01


@pytest.mark.parametrize(
    ("opset", "batch"),
    [
        (16, 2),
        (20, 1),
        *(pytest.param(*pair, marks=pytest.mark.slow) for pair in [(16, -1), (18, 2), (19, -1), (20, -1)]),
    ],
)
def test_every_opset_and_a_static_batch(checkpoint, tmp_path, opset, batch):
    out = tmp_path / "model.onnx"
    export.run(spec_of(checkpoint, out, opset_version=opset, batch_size=batch), Status())
    model = onnx.load(out)
    assert opset_of(model) == [opset]
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_value == max(batch, 0)
    assert_disparity_is_the_checkpoints(checkpoint, out, 3 if batch == -1 else batch)


def test_contract_of_the_graph(exported):
    out, outcome, _ = exported
    model = onnx.load(out)
    shapes = {
        value.name: [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]
        for value in (*model.graph.input, *model.graph.output)
    }
    assert shapes["left_image"] == shapes["right_image"] == ["batch_size", 3, HEIGHT, WIDTH]
    assert shapes["disparity"] == ["batch_size", 1, HEIGHT, WIDTH]
    assert opset_of(model) == [17]
    operators = {node.op_type for node in model.graph.node}
    assert not operators & {"ScatterND", "ScatterElements", "Loop", "If", "NonZero"}
    weights = sum(p.numel() * p.element_size() for p in create_model(preset="tiny").parameters())
    assert out.stat().st_size < 1.2 * weights
    info = read_onnx(out)
    assert info == {
        "kind": "onnx",
        "precision": "fp32",
        "input_height": HEIGHT,
        "input_width": WIDTH,
        "min_height": HEIGHT,
        "max_height": HEIGHT,
        "min_width": WIDTH,
        "max_width": WIDTH,
        "min_batch": 1,
        "opt_batch": 1,
        "max_batch": None,
        "normalisation": "imagenet",
        "max_disparity": 64,
        "valid_iters": ITERS,
        "encoder": "vitt",
        "variant": "nvlabs",
    }
    assert outcome.metadata["onnx"].items() <= info.items()
    assert describe(out)["nodes"] == outcome.kpi["onnx_nodes"] == len(model.graph.node)
    settings = json.loads(next(p.value for p in model.metadata_props if p.key == "stereo.model"))
    assert (settings["preset"], settings["disparity_attention"]) == ("tiny", "disparity")


def test_the_check_takes_a_real_pair_where_the_spec_names_one(checkpoint, tmp_path, shared):
    folder = shared / "data" / "KITTI_2015" / "training"
    files = [folder / side / "000000_10.png" for side in ("image_2", "image_3")]
    (tmp_path / "infer.txt").write_text(" ".join(map(str, files)) + "\n")
    source = {"dataset_name": "Kitti", "data_file": str(tmp_path / "infer.txt")}
    tree = spec_of(checkpoint, tmp_path / "model.onnx").model_dump()
    tree["dataset"]["infer_dataset"]["data_sources"] = [source]
    *pair, where = export._pair(spec_from_dict("export", tree), 384, 1248, 2)
    assert where == str(files[0])
    for images, file in zip(pair, files, strict=True):
        rgb = read_image(file).astype(np.float64)
        top, left = (384 - rgb.shape[0]) // 2, (1248 - rgb.shape[1]) // 2
        inside = images[0, :, top : top + rgb.shape[0], left : left + rgb.shape[1]]
        expected = (rgb / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
        np.testing.assert_allclose(inside, expected.transpose(2, 0, 1), atol=1e-5)
        assert np.abs(images[1] - images[0]).mean() > 0.1  # the second pair is another one


def test_a_file_that_differs_from_pytorch_never_gets_its_name(checkpoint, tmp_path, monkeypatch):
    """The defect: a network whose iteration count follows the trace, not the setting."""

    def one_iteration_when_traced(self, left_image, right_image):
        iters = 1 if torch.jit.is_tracing() else ITERS
        return self.model.core(left_image, right_image, iters)

    monkeypatch.setattr(export.ExportGraph, "forward", one_iteration_when_traced)
    out = tmp_path / "model.onnx"
    out.write_bytes(b"an older file")
    with pytest.raises(RuntimeError, match="px on average"):
        export.run(spec_of(checkpoint, out), Status())
    assert out.read_bytes() == b"an older file"
    assert [p.name for p in tmp_path.iterdir()] == ["model.onnx"]


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("input_height", 100, r"export.input_height: 100 is not a multiple of 32; the nearest is 96"),
        ("input_width", 970, r"export.input_width: 970 is not a multiple of 32; the nearest is 960"),
        ("opset_version", 15, r"export.opset_version: 15"),
        ("opset_version", 21, r"export.opset_version: 21"),
        ("batch_size", 0, r"export.batch_size: 0"),
        ("input_channel", 1, r"export.input_channel: "),
    ],
)
def test_settings_that_can_not_be_are_named(checkpoint, tmp_path, key, value, message):
    with pytest.raises(SpecError, match=message):
        spec_of(checkpoint, tmp_path / "model.onnx", **{key: value})


def test_an_onnx_file_is_no_checkpoint(exported, tmp_path):
    with pytest.raises(ModelError, match=r"model.onnx: an ONNX file, not a checkpoint"):
        export.run(spec_of(exported[0], tmp_path / "again.onnx"), Status())
    assert not (tmp_path / "again.onnx").exists()


def test_the_checkpoint_is_not_overwritten_by_its_onnx_file(checkpoint):
    before = checkpoint.read_bytes()
    with pytest.raises(SpecError, match=r"export.onnx_file: .*tiny.pth is the checkpoint itself"):
        export.run(spec_of(checkpoint, checkpoint), Status())
    assert checkpoint.read_bytes() == before
