"""The ONNX file computes what the checkpoint computes, keeps TAO's contract, and appears whole or not at all."""

from __future__ import annotations

import json

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import helper

from stereo_core.actions import export
from stereo_core.data.images import read_image
from stereo_core.engines.files import read_onnx
from stereo_core.engines.verify import synthetic_pair
from stereo_core.errors import ModelError, SpecError
from stereo_core.files import sha256_of
from stereo_core.models import create_model, save_checkpoint
from stereo_core.report.describe import describe
from stereo_core.run.perform import perform
from stereo_core.run.status import warnings_in
from stereo_core.spec import spec_from_dict
from stereo_core.spec.deploy import Export

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


def test_a_gpu_that_is_not_there_is_refused():
    """The export was traced on the CPU, or failed in torch."""
    with pytest.raises(SpecError, match=r"export\.gpu_id: GPU 63 is requested, but this machine has"):
        export._device(Export(gpu_id=63))
    assert export._device(Export(gpu_id=63, on_cpu=True)).type == "cpu"


@pytest.mark.slow
def test_iterations_are_the_checkpoint_s_unless_the_spec_sets_them(tmp_path):
    """As in evaluate and inference; TAO's default of 22 would make a network for 8 slower and its disparity another."""
    save_checkpoint(create_model(preset="tiny", valid_iters=1), tmp_path / "tiny.pth")
    size = {"input_height": 64, "input_width": 64, "batch_size": 1, "check": False, "on_cpu": True}
    files = {"checkpoint": str(tmp_path / "tiny.pth"), "onnx_file": str(tmp_path / "tiny.onnx")}
    told = {}
    for name, keys in (("unset", {}), ("set", {"valid_iters": 2})):
        tree = {"results_dir": str(tmp_path / name), "export": files | size | keys}
        assert perform("export", spec_from_dict("export", tree)) == 0
        warned = warnings_in(tmp_path / name / "export")
        told[name] = read_onnx(tmp_path / "tiny.onnx")["valid_iters"], [text.split(";")[0] for text in warned]
    other = (
        "export.valid_iters is 2, but evaluate and inference make 1 iteration with this checkpoint, so that the "
        "engine's disparity differs from theirs"
    )
    assert told == {"unset": (1, []), "set": (2, [other])}


# Opset, batch, open sizes: every opset, the first both ways.
OPSETS = [(16, 1, False), (16, -1, True), (17, 1, False), (18, -1, True), (19, 1, False), (20, -1, True)]


@pytest.mark.slow
@pytest.mark.parametrize(("opset", "batch", "open_hw"), OPSETS)
def test_every_opset_with_fixed_and_open_shapes(checkpoint, tmp_path, opset, batch, open_hw):
    out = tmp_path / "model.onnx"
    # on_cpu: false traces on the CPU too where there is no CUDA
    keys = {"opset_version": opset, "batch_size": batch, "dynamic_hw": open_hw, "on_cpu": batch == 1}
    export.run(spec_of(checkpoint, out, **keys), Status())
    model = onnx.load(out)
    assert opset_of(model) == [opset]
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_value == max(batch, 0)
    assert_disparity_is_the_checkpoints(checkpoint, out, 3 if batch == -1 else batch)


@pytest.mark.slow
@pytest.mark.parametrize("size", [(64, 64), (96, 128)])
def test_small_images_export(checkpoint, tmp_path, size):
    height, width = size
    out = tmp_path / "model.onnx"
    keys = {"input_height": height, "input_width": width, "batch_size": 1}
    outcome = export.run(spec_of(checkpoint, out, **keys), Status())
    assert outcome.kpi["check_max_abs_difference_px"] < 1e-3
    assert (read_onnx(out)["min_height"], read_onnx(out)["max_width"]) == size


@pytest.fixture(scope="module")
def any_size(checkpoint, tmp_path_factory):
    """(file, outcome, status) of an export with an open batch, height and width."""
    out, status = tmp_path_factory.mktemp("open") / "model.onnx", Status()
    return out, export.run(spec_of(checkpoint, out, dynamic_hw=True), status), status


@pytest.mark.parametrize(
    ("batch", "height", "width"),
    [
        (1, 64, 96),
        (2, 128, 160),
        pytest.param(1, 224, 64, marks=pytest.mark.slow),
        pytest.param(1, 64, 1440, marks=pytest.mark.slow),  # the ViT sees no side above 1344
        pytest.param(1, 1376, 64, marks=pytest.mark.slow),
    ],
)
def test_one_file_for_any_size(checkpoint, any_size, batch, height, width):
    generator = torch.Generator().manual_seed(height + width)
    left, right = (torch.randn((batch, 3, height, width), generator=generator).numpy() for _ in range(2))
    session = onnxruntime.InferenceSession(any_size[0], providers=["CPUExecutionProvider"])
    found = session.run(["disparity"], {"left_image": left, "right_image": right})[0]
    expected = eager(checkpoint, left, right, ITERS)
    np.testing.assert_allclose(found, expected, atol=1e-4)
    assert expected.std() > 0.1


def test_a_file_for_any_size_says_so_and_is_checked_at_two(any_size):
    out, outcome, status = any_size
    info = read_onnx(out)
    sizes = ("input_height", "input_width", "min_height", "max_height", "min_width", "max_width")
    assert [info[key] for key in sizes] == [HEIGHT, WIDTH, None, None, None, None]
    graph = onnx.load(out).graph
    for value, channels in ((graph.input[0], 3), (graph.input[1], 3), (graph.output[0], 1)):
        shape = [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]
        assert shape == ["batch_size", channels, "height", "width"]
    checks = [line for line in status.lines if line.startswith("Comparing")]
    assert len(checks) == 2 and "at 96 x 64 px " in checks[0] and "at 192 x 128 px " in checks[1]
    assert 0 <= outcome.kpi["check_max_abs_difference_px"] < 1e-3


def traced(path):
    """What tracing wrote of an exported file, without what was added."""
    model = onnx.load(path)
    del model.metadata_props[:]
    return model


def test_a_size_baked_into_the_graph_is_found_by_the_check(checkpoint, any_size, tmp_path, monkeypatch):
    """The defect: a disparity that is right only at the traced width."""

    def trace(graph, out, section, device):
        model = traced(any_size[0])
        model.graph.node[-1].output[0] = "right"
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.float32(WIDTH), "traced"))
        model.graph.node.extend(
            [
                helper.make_node("Shape", ["left_image"], ["width"], start=3),
                helper.make_node("Cast", ["width"], ["columns"], to=onnx.TensorProto.FLOAT),
                helper.make_node("Sub", ["columns", "traced"], ["beyond"]),
                helper.make_node("Add", ["right", "beyond"], ["disparity"]),
            ]
        )
        onnx.save(model, out)

    monkeypatch.setattr(export, "_trace", trace)
    with pytest.raises(RuntimeError, match="px on average"):
        export.run(spec_of(checkpoint, tmp_path / "model.onnx", dynamic_hw=True), Status())
    assert list(tmp_path.iterdir()) == []


def test_equal_nodes_are_merged_and_outputs_keep_their_names():
    value = helper.make_tensor("value", onnx.TensorProto.FLOAT, [], [2.0])
    nodes = [
        helper.make_node("Identity", ["w"], ["w0"]),
        helper.make_node("Constant", [], ["two"], value=value),
        helper.make_node("Constant", [], ["two_again"], value=value),
        helper.make_node("Mul", ["x", "two"], ["a"]),
        helper.make_node("Mul", ["x", "two_again"], ["b"]),
        helper.make_node("Clip", ["a", "", "w0"], ["c"]),
        helper.make_node("Clip", ["b", "w0", ""], ["d"]),  # other inputs
        helper.make_node("Softmax", ["c"], ["e"], axis=0),
        helper.make_node("Softmax", ["c"], ["f"], axis=1),  # another attribute
        helper.make_node("Concat", ["d", "e", "f"], ["y"], axis=0),
        helper.make_node("Concat", ["d", "e", "f"], ["z"], axis=0),  # an output of the graph
    ]
    graph = helper.make_graph(
        nodes, "g", [], [helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, None) for n in "yz"]
    )
    export.merge_equal_nodes(graph)
    assert [(node.op_type, list(node.input), list(node.output)) for node in graph.node] == [
        ("Constant", [], ["two"]),
        ("Mul", ["x", "two"], ["a"]),
        ("Clip", ["a", "", "w"], ["c"]),
        ("Clip", ["a", "w", ""], ["d"]),
        ("Softmax", ["c"], ["e"]),
        ("Softmax", ["c"], ["f"]),
        ("Concat", ["d", "e", "f"], ["y"]),
        ("Concat", ["d", "e", "f"], ["z"]),
    ]


def test_inputs_and_outputs_of_the_graph(exported):
    model = onnx.load(exported[0])
    shapes = {
        value.name: [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]
        for value in (*model.graph.input, *model.graph.output)
    }
    assert shapes["left_image"] == shapes["right_image"] == ["batch_size", 3, HEIGHT, WIDTH]
    assert shapes["disparity"] == ["batch_size", 1, HEIGHT, WIDTH]
    assert opset_of(model) == [17]


def test_the_graph_has_no_operator_that_engines_lack_and_each_weight_once(exported):
    out = exported[0]
    operators = {node.op_type for node in onnx.load(out).graph.node}
    assert not operators & {"ScatterND", "ScatterElements", "Loop", "If", "NonZero", "Identity"}
    weights = sum(p.numel() * p.element_size() for p in create_model(preset="tiny").parameters())
    assert out.stat().st_size < 1.2 * weights


def test_the_file_says_what_it_is(exported, checkpoint):
    out, outcome, _ = exported
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
    model = onnx.load(out)
    assert describe(out)["checkpoint_sha256"] == sha256_of(checkpoint)
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


def test_a_file_that_differs_from_pytorch_never_gets_its_name(checkpoint, exported, tmp_path, monkeypatch):
    """The defect: an iteration more in PyTorch than in the file."""
    monkeypatch.setattr(export, "_trace", lambda graph, out, section, device: onnx.save(traced(exported[0]), out))
    out = tmp_path / "model.onnx"
    out.write_bytes(b"an older file")
    with pytest.raises(RuntimeError, match="px on average"):
        export.run(spec_of(checkpoint, out, valid_iters=ITERS + 1), Status())
    assert out.read_bytes() == b"an older file"
    assert [p.name for p in tmp_path.iterdir()] == ["model.onnx"]


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("input_height", 100, r"export.input_height: 100 is not a multiple of 32; the next larger one is 128"),
        ("input_width", 970, r"export.input_width: 970 is not a multiple of 32; the next larger one is 992"),
        ("opset_version", 15, r"export.opset_version: 15"),
        ("opset_version", 21, r"export.opset_version: 21"),
        ("batch_size", 0, r"export.batch_size: 0"),
        ("input_channel", 1, r"export.input_channel: "),
    ],
)
def test_settings_that_can_not_be_are_named(checkpoint, tmp_path, key, value, message):
    with pytest.raises(SpecError, match=message):
        spec_of(checkpoint, tmp_path / "model.onnx", **{key: value})


def test_an_onnx_file_that_exists_is_taken_over_with_the_settings_it_has(exported, tmp_path):
    """What follows need not ask which it was given; the key says 224, the file keeps its own size."""
    out = tmp_path / "again.onnx"
    outcome = export.run(spec_of(exported[0], out, input_height=224), Status())
    assert read_onnx(out) == read_onnx(exported[0])
    pair = synthetic_pair(HEIGHT, WIDTH, 1)
    runs = [onnxruntime.InferenceSession(path) for path in (exported[0], out)]
    before, after = (run.run(None, dict(zip(("left_image", "right_image"), pair, strict=True)))[0] for run in runs)
    assert np.array_equal(before, after)
    assert outcome.metadata["onnx"]["input_height"] == HEIGHT and "copied, runs" in outcome.message


def test_a_foreign_onnx_file_is_refused(exported, tmp_path):
    model = onnx.load(exported[0])
    model.graph.input[0].name = "image"
    onnx.save(model, tmp_path / "other.onnx")
    with pytest.raises(ModelError, match=r"other.onnx: the graph has inputs image, right_image"):
        export.run(spec_of(tmp_path / "other.onnx", tmp_path / "again.onnx"), Status())
    assert not (tmp_path / "again.onnx").exists()


def test_the_checkpoint_is_not_overwritten_by_its_onnx_file(checkpoint):
    before = checkpoint.read_bytes()
    with pytest.raises(SpecError, match=r"export.onnx_file: .*tiny.pth is also the name of the checkpoint"):
        export.run(spec_of(checkpoint, checkpoint), Status())
    assert checkpoint.read_bytes() == before
