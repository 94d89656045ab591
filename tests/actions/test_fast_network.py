"""FastFoundationStereo through every verb: by model_type alone from scratch, by its file alone afterwards."""

from __future__ import annotations

import pytest
import torch

from stereo_core.models import create_model, load_model, save_checkpoint
from stereo_core.models.checkpoints import describe
from stereo_core.run.perform import perform
from stereo_core.spec import spec_from_dict

NARROW = {
    "motion_encoder_widths": [16, 16, 8, 8],
    "motion_encoder_final": 12,
    "gru_hidden": 16,
    "gru_gating_conv_widths": [24, 32],
    "disp_head_intermediate": 12,
    "disp_head_pwconv1_widths": [24, 24],
    "mask_widths": [16, 8],
    "stem_2_widths": [8, 8],
    "spx_2_gru_widths": [8, 8, 8, 16],
    "cnet_conv04_widths": [16, 16],
    "cam_mid_channels": 4,
}
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


@pytest.mark.slow
def test_from_evaluation_to_the_engine(checkpoint, scenes, split, tmp_path):
    """The disparities of checkpoint, ONNX file and engine have the same errors."""
    test = {"dataset": {"max_disparity": 64, "test_dataset": split(scenes / "list.txt", 1)}}

    def evaluate(name: str, **keys) -> dict:
        return act("evaluate", test | {"evaluate": {"results_dir": str(tmp_path / name)} | keys}).kpi

    expected = evaluate("checkpoint", checkpoint=str(checkpoint))
    onnx = tmp_path / "fast.onnx"
    export = {"checkpoint": str(checkpoint), "onnx_file": str(onnx), "input_height": 64, "input_width": 96}
    open_axes = {"valid_iters": 2, "batch_size": -1, "dynamic_hw": True, "on_cpu": True}
    kpi = act("export", {"results_dir": str(tmp_path), "export": export | open_axes}).kpi
    assert kpi["check_mean_abs_difference_px"] < 1e-3
    engine = tmp_path / "fast.ort.onnx"
    build = {"onnx_file": str(onnx), "trt_engine": str(engine), "backend": "onnxruntime"}
    act("gen_trt_engine", {"results_dir": str(tmp_path), "gen_trt_engine": build})
    found = evaluate("engine", trt_engine=str(engine))
    assert found["epe"] == pytest.approx(expected["epe"], abs=1e-3)


def test_inference_in_two_passes(checkpoint, scenes, split, tmp_path):
    infer = {"dataset": {"infer_dataset": split(scenes / "list.txt", 2)}}
    keys = {"checkpoint": str(checkpoint), "results_dir": str(tmp_path), "hierarchical": True, "save_raw_pfm": True}
    act("inference", infer | {"inference": keys})
    assert len(list(tmp_path.rglob("*.pfm"))) == 4


def test_quantized_weights(checkpoint, tmp_path):
    keys = {"model_path": str(checkpoint), "results_dir": str(tmp_path), "backend": "torchao"}
    made = act("quantize", {"quantize": keys}).artifacts["quantized"]
    model, before = load_model(made), load_model(checkpoint)
    assert model.config == before.config
    left, right = (torch.rand(1, 3, 64, 96) * 255 for _ in range(2))
    with torch.no_grad():
        found, wanted = (network.eval()(left, right, 1) for network in (model, before))
    assert 0 < (found - wanted).abs().mean() < 2
