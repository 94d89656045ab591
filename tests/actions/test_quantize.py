"""A quantised model is smaller, says what it lost, and does what was measured when others take it."""

from __future__ import annotations

import csv
import json
import logging
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from stereo_core.actions import evaluate, export, quantize
from stereo_core.data.codecs import write_pfm
from stereo_core.data.images import read_image
from stereo_core.engines.files import read_onnx
from stereo_core.errors import ModelError, SpecError
from stereo_core.models import load_model
from stereo_core.run.perform import perform
from stereo_core.run.status import StatusLog
from stereo_core.spec import load_spec, spec_from_dict
from stereo_core.spec.effects import without_effect

STATUS = StatusLog(None)
STATIC = {"backend": "modelopt.pytorch", "device": "cpu"}


@pytest.fixture
def spec(scenes, tiny_checkpoint, split, tmp_path):
    """(more dataset sections, keys of quantize) -> the checked spec, with two pairs to calibrate and evaluate on."""
    pairs = tmp_path / "pairs.txt"
    lines = (scenes / "list.txt").read_text().splitlines()[:2]
    pairs.write_text("\n".join(" ".join(str(scenes / name) for name in line.split()) for line in lines) + "\n")

    def make(dataset: dict | None = None, **keys):
        sections = {"train_dataset": split(pairs), "val_dataset": split(pairs), "max_disparity": 64} | (dataset or {})
        keys = {"model_path": str(tiny_checkpoint), "device": "cpu"} | keys
        tree = {
            "results_dir": str(tmp_path / "out"),
            "dataset": sections,
            "quantize": keys,
            "model": {"preset": "tiny"},
        }
        return spec_from_dict("quantize", tree)

    return make


def run(spec):
    (Path(spec.results_dir) / "quantize").mkdir(parents=True, exist_ok=True)
    return quantize.run(spec, STATUS)


def evaluated(spec, **model) -> dict:
    """The kpi of evaluate itself on the validation data."""
    spec = spec.model_copy(deep=True)
    spec.dataset.test_dataset = spec.dataset.val_dataset
    for key, value in model.items():
        setattr(spec.evaluate, key, str(value))
    (Path(spec.results_dir) / "evaluate").mkdir(exist_ok=True)
    return evaluate.run(spec, STATUS).kpi


@pytest.mark.parametrize(
    ("dtype", "kind"), [("int8", torch.int8), pytest.param("fp8", torch.float8_e4m3fn, marks=pytest.mark.slow)]
)
def test_torchao_weights_alone(spec, tiny_checkpoint, shown, dtype, kind):
    pytest.importorskip("torchao")
    checked = spec(layers=[{"module_name": "", "weights": {"dtype": dtype}}])
    outcome = run(checked)
    pairs = shown("quantize", Path(checked.results_dir) / "quantize", outcome)  # before and after, side by side
    assert [name.split("/")[-2:] for name in sorted(pairs)] == [["scene0", "left"], ["scene1", "left"]]
    out, kpi = outcome.artifacts["quantized"], outcome.kpi
    assert out.name == "quantized_model_torchao.pth" and out.stat().st_size == kpi["bytes_after"]
    assert kpi["bytes_after"] < 0.35 * kpi["bytes_before"] and kpi["quantized_weight_share"] == 1
    state = torch.load(out, weights_only=True)["model"]
    rows = list(csv.DictReader((out.parent / "layers.csv").open()))
    assert len(rows) == kpi["quantized_layers"] and {row["activations_format"] for row in rows} == {"fp32"}
    assert all(state[f"{row['layer']}.weight"].dtype == kind for row in rows)
    before, after = load_model(tiny_checkpoint), load_model(out)
    weight, low = before.cnet.conv1.weight, after.cnet.conv1.weight
    assert 0 < (weight - low).abs().max() < 0.07 * weight.abs().max()
    assert evaluated(checked, checkpoint=out)["epe"] == pytest.approx(kpi["epe"], abs=1e-9)
    assert evaluated(checked, checkpoint=tiny_checkpoint)["epe"] == pytest.approx(kpi["epe_before"], abs=1e-9)
    assert kpi["epe_increase"] == kpi["epe"] - kpi["epe_before"] != 0
    assert outcome.metadata["quantized"]["kind"] == "checkpoint"


@pytest.fixture
def costly(split, scenes, tiny_checkpoint, tmp_path) -> dict:
    """Validation data whose ground truth is the float network's own disparity, so that every change is a loss."""
    pytest.importorskip("torchao")
    images = [scenes / "scene0" / f"{side}.png" for side in ("left", "right")]
    left, right = (torch.from_numpy(read_image(i).astype("float32").transpose(2, 0, 1))[None] for i in images)
    with torch.no_grad():
        write_pfm(tmp_path / "own.pfm", load_model(tiny_checkpoint).eval()(left, right)[0, 0].numpy())
    (tmp_path / "own.txt").write_text(f"{images[0]} {images[1]} {tmp_path / 'own.pfm'}\n")
    return {"val_dataset": split(tmp_path / "own.txt")}


def test_a_loss_above_the_limit_leaves_nothing(spec, costly, status_lines, capsys, caplog):
    """max_epe_increase below what the run costs: exit 1, FAILURE, no result, the older one gone too."""
    kpi = run(spec(costly)).kpi
    assert kpi["epe_before"] < 1e-4 < kpi["epe_increase"]
    checked = spec(costly, max_epe_increase=kpi["epe_increase"] / 2)
    assert perform("quantize", checked) == 1
    folder = Path(checked.results_dir) / "quantize"
    last = status_lines(folder)[-1]
    said = "by more than quantize.max_epe_increase"
    assert last["status"] == "FAILURE" and said in last["message"]
    assert f"are in {folder}: before, after and layers.csv" in last["message"]
    output = capsys.readouterr()
    assert output.err.count(said) == 1 and "Traceback" not in output.err + caplog.text and said not in caplog.text
    assert all((folder / name).exists() for name in ("before", "after", "layers.csv"))
    assert not [path for path in folder.rglob("*") if path.suffix == ".pth"]


@pytest.mark.slow
def test_a_loss_below_the_limit_is_told(spec, costly, status_lines):
    increase = run(spec(costly)).kpi["epe_increase"]
    allowed = spec(costly, max_epe_increase=increase * 2)
    assert perform("quantize", allowed) == 0
    folder = Path(allowed.results_dir) / "quantize"
    assert status_lines(folder)[-1]["kpi"]["epe_increase"] == pytest.approx(increase)
    assert [path for path in folder.rglob("*") if path.suffix == ".pth"]


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ["minmax", "entropy"])
def test_modelopt_pytorch_rounds_activations(spec, algorithm):
    pytest.importorskip("modelopt")
    both = {"weights": {"dtype": "int8"}, "activations": {"dtype": "int8"}}
    layers = [] if algorithm == "minmax" else [{"module_name": "feature.stages.0.*", **both}]
    checked = spec(**STATIC, algorithm=algorithm, layers=layers)
    outcome = run(checked)
    out = outcome.artifacts["quantized"]
    assert out.name == "quantized_model_modelopt.pytorch.pth"
    quantization = torch.load(out, weights_only=True)["quantization"]
    names = set(quantization["weight_scales"])
    assert not [name for name in names if name.startswith(("update_block", "classifier", "spx"))]
    assert any(name.startswith("feature.stages.0") for name in quantization["activation_scales"])
    assert evaluated(checked, checkpoint=out)["epe"] == pytest.approx(outcome.kpi["epe"], abs=1e-9)
    assert outcome.kpi["epe"] != outcome.kpi["epe_before"]


@pytest.mark.slow
def test_modelopt_pytorch_is_what_modelopt_itself_computes(spec, tiny_checkpoint):
    """The same network quantised by `mtq.quantize`, with the same pairs: every layer's scale and result agree."""
    mtq = pytest.importorskip("modelopt.torch.quantization")
    checked = spec(**STATIC)
    ours = load_model(run(checked).artifacts["quantized"]).eval()
    pairs = list(quantize._image_pairs(checked, torch.device("cpu"), STATUS))
    theirs = load_model(tiny_checkpoint).eval()
    theirs.cost_agg.conv_patch[0].__class__ = torch.nn.Conv3d  # ModelOpt knows no classes of ours
    scales = torch.load(Path(checked.results_dir) / "quantize/quantized_model_modelopt.pytorch.pth", weights_only=True)
    active = scales["quantization"]["activation_scales"]
    config = [{"quantizer_name": "*", "enable": False}]
    for name in active:
        axis = 1 if "Transpose" in type(theirs.get_submodule(name)).__name__ else 0
        config += [
            {"quantizer_name": f"{name}.weight_quantizer", "cfg": {"num_bits": 8, "axis": axis}, "enable": True},
            {"quantizer_name": f"{name}.input_quantizer", "cfg": {"num_bits": 8, "axis": None}, "enable": True},
        ]
    with torch.no_grad():
        mtq.quantize(theirs, {"quant_cfg": config, "algorithm": "max"}, lambda m: [m(*pair) for pair in pairs])
        for name, scale in active.items():
            assert theirs.get_submodule(name).input_quantizer.amax.item() / 127 == pytest.approx(scale.item(), rel=1e-5)
        seen = {}
        for name in active:

            def keep(layer, given, result, name=name):
                seen[name] = given[0], result

            theirs.get_submodule(name).register_forward_hook(keep)
        theirs(*pairs[0])
        for name, (given, expected) in seen.items():
            found = ours.get_submodule(name)(given)
            # a value halfway between two steps may fall to either side
            assert (found - expected).abs().mean() < 1e-3 * expected.abs().mean(), name
    assert len(seen) == len(active) > 200


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "opset"), [("int8", 17), ("fp8_e4m3fn", 19)])
def test_a_statically_quantised_checkpoint_exports_q_and_dq(spec, tmp_path, dtype, opset):
    pytest.importorskip("modelopt")
    layers = [{"weights": {"dtype": dtype}, "activations": {"dtype": dtype}}]
    out = run(spec(**STATIC, layers=layers)).artifacts["quantized"]
    onnx_file = tmp_path / "q.onnx"
    keys = {"checkpoint": str(out), "onnx_file": str(onnx_file), "input_height": 64, "input_width": 96}
    keys |= {"valid_iters": 2, "opset_version": opset, "on_cpu": True}
    tree = {"results_dir": str(tmp_path), "model": {"preset": "tiny"}, "export": keys}
    export.run(spec_from_dict("export", tree), STATUS)
    assert read_onnx(onnx_file)["precision"] == dtype[: 4 if dtype == "int8" else 3]
    nodes = [node.op_type for node in onnx.load(onnx_file).graph.node]
    assert nodes.count("QuantizeLinear") > 200


def test_calibration_images_beyond_the_onnx_file_are_told_once(caplog):
    """Scaled down, they have other disparities than the images that the engine gets."""
    views = [(np.zeros((height, width, 3), np.uint8),) * 2 for height, width in ((96, 128), (80, 100))]

    def sizes(height: int | None, width: int | None) -> list[tuple[int, ...]]:
        caplog.clear()
        info = {"max_height": height, "max_width": width}
        return [left.shape[2:] for left, _ in quantize._normalised_pairs(views, info)]

    told = "calibration images of 128 x 96 px exceed the ONNX file's 96 x 64 px"
    assert sizes(64, 96) == [(64, 96)] * 2 and caplog.text.count(told) == 1
    for height, width in ((96, 128), (128, 128)):
        assert sizes(height, width) == [(height, width)] * 2 and "exceed" not in caplog.text
    views.append((np.zeros((97, 60, 3), np.uint8),) * 2)
    assert sizes(None, None) == [(128, 128)] * 3 and "exceed" not in caplog.text, "an open file takes them whole"
    assert sizes(96, None) == [(96, 128)] * 3 and "images of 60 x 97 px exceed" in caplog.text


@pytest.mark.slow
def test_modelopt_onnx(spec, tiny_checkpoint, tmp_path):
    """int8 QDQ with the metadata of its source; the engine of it gives the reported figure."""
    pytest.importorskip("modelopt.onnx")
    from stereo_core.engines import BuildSettings, build_engine

    source = tmp_path / "float.onnx"
    keys = {"checkpoint": str(tiny_checkpoint), "onnx_file": str(source), "input_height": 64, "input_width": 96}
    keys |= {"valid_iters": 2, "on_cpu": True}
    tree = {"results_dir": str(tmp_path), "model": {"preset": "tiny"}, "export": keys}
    export.run(spec_from_dict("export", tree), STATUS)
    checked = spec(backend="modelopt.onnx", model_path=str(source))
    outcome = run(checked)
    out = outcome.artifacts["quantized"]
    assert out.name.endswith("_named.onnx") and list(out.parent.glob("*.onnx")) == [out]
    before, after = read_onnx(source), read_onnx(out)
    assert after == before | {"precision": "int8"} and after["encoder"] == "vitt"
    rows = list(csv.DictReader((out.parent / "layers.csv").open()))
    done = [row["layer"] for row in rows if row["weights_format"] == "int8"]
    assert len(done) == outcome.kpi["quantized_layers"] > 50
    assert outcome.kpi["bytes_after"] < 1.2 * outcome.kpi["bytes_before"]  # shared weights are not copied
    assert not [name for name in done if "update_block" in name or "classifier" in name]
    engine = tmp_path / "q.ort.onnx"
    build_engine(out, engine, BuildSettings(backend="onnxruntime", precision="int8", verify=False))
    checked.evaluate.resize = "pad"
    assert evaluated(checked, trt_engine=engine)["epe"] == pytest.approx(outcome.kpi["epe"], abs=1e-6)
    with pytest.raises(ModelError, match=r"is already quantised \(int8\)"):
        run(spec(backend="modelopt.onnx", model_path=str(out), results_dir=str(tmp_path / "again")))


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"mode": "static_ptq"}, r"quantize.mode: static_ptq: torchao supports only weight_only_ptq"),
        (
            {"backend": "modelopt.onnx", "mode": "weight_only_ptq"},
            r"quantize.mode: .*modelopt.onnx supports only static_ptq",
        ),
        ({**STATIC, "algorithm": "awq_clip"}, r"quantize.algorithm: awq_clip is for 4-bit .* minmax, max, entropy"),
        ({**STATIC, "device": "trt"}, r"quantize.device: trt works only with modelopt.onnx"),
        ({"model_path": "nowhere.pth"}, r"quantize.model_path: no such file: nowhere.pth"),
    ],
)
def test_settings_that_can_not_be(spec, keys, message):
    with pytest.raises(SpecError, match=message):
        spec(**keys)


def test_no_calibration_data(spec, tmp_path):
    with pytest.raises(
        SpecError, match=r"images_dir: modelopt.pytorch needs calibration images; set this, or dataset.train"
    ):
        spec({"train_dataset": {}}, **STATIC)
    with pytest.raises(SpecError, match=r"images_dir: no such folder or archive: gone"):
        spec({"quant_calibration_dataset": {"images_dir": "gone"}}, **STATIC)
    with pytest.raises(SpecError, match=r"max_epe_increase: needs pairs to measure on; set dataset.val"):
        spec({"val_dataset": {}}, max_epe_increase=0.1)


def test_calibration_images_without_partners(spec, tmp_path, scenes):
    (tmp_path / "images" / "left").mkdir(parents=True)
    (tmp_path / "images" / "left" / "1.png").write_bytes((scenes / "scene0" / "left.png").read_bytes())
    checked = spec({"quant_calibration_dataset": {"images_dir": str(tmp_path / "images")}}, **STATIC)
    pytest.importorskip("modelopt")
    assert perform("quantize", checked) == 2
    lines = (Path(checked.results_dir) / "quantize" / "status.json").read_text().splitlines()
    assert "left/1.png (no right/1.png)" in json.loads(lines[-1])["message"]


def test_the_wrong_kind_of_file_names_the_way(spec, tmp_path, tiny_checkpoint):
    pytest.importorskip("modelopt")
    with pytest.raises(
        ModelError, match=r"tiny.pth: this is a checkpoint, but modelopt.onnx quantises an ONNX file; export it"
    ):
        run(spec(backend="modelopt.onnx"))
    node = onnx.helper.make_node("Identity", ["x"], ["y"])
    value = [onnx.helper.make_tensor_value_info(name, 1, [1]) for name in "xy"]
    onnx.save(onnx.helper.make_model(onnx.helper.make_graph([node], "g", value[:1], value[1:])), tmp_path / "m.onnx")
    with pytest.raises(ModelError, match=r"m.onnx: this is an ONNX file, but torchao quantises a checkpoint"):
        run(spec(model_path=str(tmp_path / "m.onnx")))


def test_an_open_onnx_file_of_another_maker_needs_a_size(spec, tmp_path):
    pytest.importorskip("modelopt")
    value = onnx.helper.make_tensor_value_info
    names = ("left_image", "right_image", "disparity")
    images = [value(name, 1, [1, channels, "h", "w"]) for name, channels in zip(names, (3, 3, 1), strict=True)]
    graph = onnx.helper.make_graph([onnx.helper.make_node("Sub", names[:2], names[2:])], "g", images[:2], images[2:])
    onnx.save(onnx.helper.make_model(graph), tmp_path / "open.onnx")
    with pytest.raises(ModelError, match=r"open.onnx: height and width are dynamic, .* traced size; export"):
        run(spec(backend="modelopt.onnx", mode="static_ptq", model_path=str(tmp_path / "open.onnx")))


def test_a_missing_library_names_the_extra(spec, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchao", None)
    with pytest.raises(SpecError, match=r"torchao needs torchao, .* pip install 'stereo-pipelines\[quantize\]'"):
        run(spec())
    monkeypatch.setitem(sys.modules, "modelopt", None)
    with pytest.raises(SpecError, match=r"pip install 'stereo-pipelines\[modelopt\]'"):
        run(spec(**STATIC))


def test_keys_that_the_library_does_not_take_draw_a_warning(tmp_path, tiny_checkpoint):
    path = tmp_path / "spec.yaml"
    path.write_text(
        f"results_dir: {tmp_path}\nmodel: {{preset: tiny}}\nquantize:\n  model_path: {tiny_checkpoint}\n"
        "  algorithm: entropy\n  backend_kwargs: {opset: 20}\n  layers:\n"
        "  - {module_name: Linear, weights: {dtype: int8, quant_axis: 1, observer_or_fake_quant: x},"
        " activations: {dtype: int8}}\n"
    )
    named = {key for key, _ in without_effect("quantize", load_spec("quantize", path, []))}
    rule = "quantize.layers[0]"
    assert named == {
        "quantize.algorithm",
        "quantize.backend_kwargs",
        f"{rule}.weights.quant_axis",
        f"{rule}.weights.observer_or_fake_quant",
        f"{rule}.activations.dtype",
    }


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_a_device_that_is_set_is_not_another(spec, tiny_checkpoint, caplog):
    pytest.importorskip("torchao")
    with pytest.raises(SpecError, match=r"quantize.device: cuda: this machine has 0 GPUs; set it to cpu"):
        run(spec(device="cuda"))
    unset = spec_from_dict("quantize", {"results_dir": "r", "quantize": {"model_path": str(tiny_checkpoint)}}).quantize
    with caplog.at_level(logging.INFO):
        assert quantize._device(unset) == torch.device("cpu")
    assert "quantize.device is not set and this machine has no GPU" in caplog.text


@pytest.mark.slow
def test_an_onnx_file_of_open_size_is_measured_at_the_images_own(spec, tiny_checkpoint, tmp_path, caplog):
    """Traced at 32 x 64, measured at 64 x 96: the error is the checkpoint's own, not that of reduced images."""
    pytest.importorskip("modelopt.onnx")
    source = tmp_path / "open.onnx"
    keys = {"checkpoint": str(tiny_checkpoint), "onnx_file": str(source), "input_height": 32, "input_width": 64}
    keys |= {"valid_iters": 3, "on_cpu": True, "dynamic_hw": True}
    tree = {"results_dir": str(tmp_path), "model": {"preset": "tiny"}, "export": keys}
    export.run(spec_from_dict("export", tree), STATUS)
    checked = spec(backend="modelopt.onnx", model_path=str(source))
    kpi = run(checked).kpi
    assert evaluated(checked, checkpoint=tiny_checkpoint)["epe"] == pytest.approx(kpi["epe_before"], abs=0.01)
    assert "scaled" not in caplog.text
