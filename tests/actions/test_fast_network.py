"""FastFoundationStereo through every verb: by model_type alone from scratch, by its file alone afterwards."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from narrow_network import NARROW

from stereo_core.cli import main
from stereo_core.data.codecs import read_disparity
from stereo_core.data.images import read_image
from stereo_core.engines.files import read_engine
from stereo_core.models import create_model, load_model, save_checkpoint
from stereo_core.models.checkpoints import describe
from stereo_core.run.perform import perform
from stereo_core.spec import spec_from_dict

RANGE = {"max_disparity": 64}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    torch.manual_seed(5)
    path = tmp_path_factory.mktemp("fast") / "fast.pth"
    model = create_model("FastFoundationStereo", widths=NARROW, **RANGE, valid_iters=2, train_iters=2)
    save_checkpoint(model, path)
    return path


def act(verb: str, tree: dict):
    """Perform a verb; its outcome."""
    outcomes = []
    assert perform(verb, spec_from_dict(verb, tree), on_outcome=outcomes.append) == 0
    return outcomes[0]


@pytest.fixture
def train(scenes, split, tmp_path):
    def start(model: dict, **keys):
        dataset = {"max_disparity": 64, "val_dataset": split(scenes / "list.txt", 3)}
        dataset["train_dataset"] = split(scenes / "list.txt", 2) | {"augmentation": {"crop_size": [64, 64]}}
        settings = {"results_dir": str(tmp_path / "train"), "num_epochs": 1, "optim": {"warmup_steps": 0}}
        return act("train", {"dataset": dataset, "model": model, "train": settings | keys})

    return start


@pytest.mark.slow
def test_training_from_scratch_and_fine_tuning(train, checkpoint, tmp_path):
    scratch = {"model_type": "FastFoundationStereo", "train_iters": 2, "valid_iters": 2, "hidden_dims": [16]}
    made = train(scratch | {"n_gru_layers": 1} | RANGE | NARROW).artifacts["checkpoint"]
    found = describe(made)
    assert (found["network"], found["names"], found["max_disparity"]) == ("FastFoundationStereo", "nvlabs", 64)
    assert found["hidden_dims"] == (16,)
    tuned = train({}, pretrained_model_path=str(checkpoint), results_dir=str(tmp_path / "tuned")).artifacts[
        "checkpoint"
    ]
    before, after = load_model(checkpoint), load_model(tuned)
    assert after.config == before.config
    assert not torch.equal(after.proj_cmb.weight, before.proj_cmb.weight)
    unused = "cost_agg.conv_out.0.conv1.0.weight"
    assert torch.equal(after.state_dict()[unused], before.state_dict()[unused])


@pytest.fixture(scope="module")
def onnx(checkpoint, tmp_path_factory):
    """Its ONNX file: any batch, any size."""
    folder = tmp_path_factory.mktemp("onnx")
    file = folder / "fast.onnx"
    export = {"checkpoint": str(checkpoint), "onnx_file": str(file), "input_height": 64, "input_width": 96}
    export |= {"valid_iters": 2, "batch_size": -1, "dynamic_hw": True, "on_cpu": True}
    kpi = act("export", {"results_dir": str(folder), "export": export}).kpi
    assert kpi["check_mean_abs_difference_px"] < 1e-3
    return file


@pytest.mark.slow
def test_from_evaluation_to_the_engine(checkpoint, onnx, scenes, split, tmp_path):
    """The disparities of checkpoint, ONNX file and engine have the same errors."""
    test = {"dataset": {"max_disparity": 64, "test_dataset": split(scenes / "list.txt", 1)}}

    def evaluate(name: str, **keys) -> dict:
        return act("evaluate", test | {"evaluate": {"results_dir": str(tmp_path / name)} | keys}).kpi

    expected = evaluate("checkpoint", checkpoint=str(checkpoint))
    engine = tmp_path / "fast.ort.onnx"
    build = {"onnx_file": str(onnx), "trt_engine": str(engine), "backend": "onnxruntime"}
    act("gen_trt_engine", {"results_dir": str(tmp_path), "gen_trt_engine": build})
    info = read_engine(engine)
    assert (info["encoder"], info["variant"], info["max_disparity"]) == (None, "fast", 64)
    found = evaluate("engine", trt_engine=str(engine))
    assert found["epe"] == pytest.approx(expected["epe"], abs=1e-3)
    infer = {"dataset": {"infer_dataset": split(scenes / "list.txt", 2)}}
    keys = {"results_dir": str(tmp_path / "maps")}
    act("inference", infer | {"inference": {"trt_engine": str(engine), "save_raw_pfm": True} | keys})
    assert len(list((tmp_path / "maps").rglob("*.pfm"))) == 4


@pytest.mark.slow
def test_a_tensorrt_engine_is_built(onnx, tmp_path):
    """Built, not run: no GPU that TensorRT-RTX runs on is here."""
    pytest.importorskip("tensorrt_rtx")
    sizes = {"min_height": 64, "opt_height": 64, "max_height": 96, "min_width": 96, "opt_width": 96, "max_width": 128}
    build = {"onnx_file": str(onnx), "backend": "tensorrt_rtx", "compute_capabilities": ["8.6"]} | sizes
    build["tensorrt"] = {"data_type": "fp16", "max_batch_size": 2}
    outcome = act("gen_trt_engine", {"results_dir": str(tmp_path), "gen_trt_engine": build})
    info = read_engine(outcome.artifacts["engine"])
    assert (info["precision"], info["max_batch"], info["max_height"], info["max_width"]) == ("fp16", 2, 96, 128)


def test_inference_in_two_passes(checkpoint, scenes, split, tmp_path):
    infer = {"dataset": {"infer_dataset": split(scenes / "list.txt", 2)}}
    keys = {"checkpoint": str(checkpoint), "results_dir": str(tmp_path), "hierarchical": True, "save_raw_pfm": True}
    act("inference", infer | {"inference": keys})
    assert len(list(tmp_path.rglob("*.pfm"))) == 4


def test_a_pair_without_a_spec(checkpoint, scenes, tmp_path):
    left, right = (scenes / "scene0" / f"{side}.png" for side in ("left", "right"))
    given = [left, right, "--model", checkpoint, "--output", tmp_path]
    done = CliRunner().invoke(main, ["predict", *map(str, given)])
    assert done.exit_code == 0, done.output
    expected = load_model(checkpoint).infer(read_image(left), read_image(right))
    np.testing.assert_allclose(read_disparity(tmp_path / "disparity_pfm" / "left.pfm")[0], expected, atol=1e-4)


def test_quantized_weights(checkpoint, tmp_path):
    keys = {"model_path": str(checkpoint), "results_dir": str(tmp_path), "backend": "torchao"}
    made = act("quantize", {"quantize": keys}).artifacts["quantized"]
    model, before = load_model(made), load_model(checkpoint)
    assert model.config == before.config
    left, right = (torch.rand(1, 3, 64, 96) * 255 for _ in range(2))
    with torch.no_grad():
        found, wanted = (network.eval()(left, right, 1) for network in (model, before))
    assert 0 < (found - wanted).abs().mean() < 2


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["modelopt.pytorch", "modelopt.onnx"])
def test_quantized_activations(checkpoint, onnx, scenes, split, tmp_path, backend):
    pytest.importorskip("modelopt")
    source = onnx if backend.endswith("onnx") else checkpoint
    pairs = {name: split(scenes / "list.txt", 1) for name in ("train_dataset", "val_dataset")}
    keys = {"model_path": str(source), "results_dir": str(tmp_path), "backend": backend, "device": "cpu"}
    keys |= {"mode": "static_ptq"}
    tree = {"dataset": pairs | {"max_disparity": 64}, "quantize": keys}
    kpi = act("quantize", tree).kpi
    assert kpi["quantized_layers"] > 50
    assert kpi["epe"] == pytest.approx(kpi["epe_before"], abs=2) and kpi["epe"] != kpi["epe_before"]
