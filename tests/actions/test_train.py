"""Training runs as a user starts them: what they do with the spec and the data, and what they leave behind."""

from __future__ import annotations

import math
import multiprocessing
import os
from itertools import combinations

import numpy as np
import pytest
import torch
import training_runs
from training_runs import MODEL, assert_same, checkpoints, load

from stereo_core.data.images import write_png
from stereo_core.models import create_model, load_model, save_checkpoint
from stereo_core.run.perform import perform
from stereo_core.spec import spec_from_dict
from stereo_core.training.callbacks import StatusLines
from stereo_core.training.module import StereoModule


def test_files(finished):
    folder, outcome = finished
    assert checkpoints(folder) == ["model_epoch_000_step_00002.pth", "model_epoch_001_step_00004.pth"]
    assert os.readlink(folder / "dn_model_latest.pth") == "model_epoch_001_step_00004.pth"
    assert outcome.artifacts["checkpoint"] == (folder / "dn_model_best.pth").resolve()
    others = {path.name for path in folder.iterdir()} - set(checkpoints(folder))
    others -= {f"{name}.json" for name in checkpoints(folder)}
    validation = {"validation.png", "validation.json"}
    links = {"dn_model_latest.pth", "dn_model_best.pth"}
    assert others == links | {"experiment.yaml", "status.json", "lightning_logs"} | validation
    assert list((folder / "lightning_logs" / "version_1").glob("events.*"))


def test_checkpoint_is_a_lightning_dict_that_load_model_reads(finished):
    folder, _ = finished
    saved = load(folder / "dn_model_latest.pth")
    assert saved["epoch"] == 1 and saved["global_step"] == 4
    assert {"pytorch-lightning_version", "optimizer_states", "lr_schedulers", "loops"} <= saved.keys()
    assert all(name.startswith("model.") for name in saved["state_dict"])
    assert saved["hyper_parameters"]["model"]["preset"] == "tiny"
    model = load_model(folder / "dn_model_latest.pth")
    assert model.config.train_iters == training_runs.MODEL["train_iters"]
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, saved["state_dict"][f"model.{name}"]), name


def test_status_lines(finished, status_lines):
    folder, _ = finished
    lines = status_lines(folder)
    messages = [line["message"] for line in lines]
    epoch = ["Eval metrics generated.", "Training loop in progress", "Train metrics generated."]
    start = messages.index("Starting Training Loop.")
    assert messages[start + 1 :][:7] == [*epoch, *epoch, "Training loop complete."]
    assert lines[start]["status"] == "STARTED" and lines[-1]["status"] == "SUCCESS"
    progress = [line for line in lines if line["message"] == "Training loop in progress"]
    assert [(line["epoch"], line["step"], line["max_epoch"], line["max_step"]) for line in progress] == [
        (0, 2, 1, 4),
        (1, 4, 1, 4),
    ]
    assert all({"time_per_epoch", "time_per_step", "eta"} <= line.keys() for line in progress)
    evaluated = lines[start + 1]["kpi"]
    assert {"val_loss", "val/loss", "val/epe", "epe", "val/bp1", "val/d1", "val/rmse"} <= evaluated.keys()
    assert math.isfinite(lines[start + 3]["kpi"]["train_loss"])


def test_the_page_of_a_training_shows_its_curves_and_its_last_validation(finished, shown):
    *pairs, curves = shown("train", *finished)  # the worst first
    assert curves == "curves" and sorted(pairs) == ["scene0/left", "scene1/left", "scene2/left", "scene3/left"]


def test_validation_is_what_evaluate_says(finished, scenes, split, tmp_path):
    """Whole images, no augmentation, the same metrics: those of a training equal evaluate on its checkpoint."""
    _, outcome = finished
    evaluate = {"checkpoint": str(outcome.artifacts["checkpoint"]), "results_dir": str(tmp_path)}
    dataset = {"max_disparity": 64, "test_dataset": split(scenes / "list.txt", 4)}
    found = []
    spec = spec_from_dict("evaluate", {"dataset": dataset, "model": MODEL, "evaluate": evaluate})
    assert perform("evaluate", spec, on_outcome=found.append) == 0
    for name in ("epe", "bp3", "d1", "rmse", "epe_pixel"):
        assert outcome.kpi[name] == pytest.approx(found[0].kpi[name], rel=1e-5), name


def test_loss_falls(train, status_lines, tmp_path):
    code, _ = train(tmp_path, num_epochs=3, checkpoint_interval=3, validation_interval=3)
    assert code == 0
    losses = [
        line["kpi"]["train_loss"] for line in status_lines(tmp_path) if line["message"].startswith("Train metrics")
    ]
    assert len(losses) == 3 and losses[-1] < 0.5 * losses[0]
    assert checkpoints(tmp_path) == ["model_epoch_002_step_00006.pth"]


@pytest.mark.slow
def test_epe_falls(train, tmp_path):
    """Long enough for the running statistics of batch normalisation to follow the weights."""
    code, outcome = train(tmp_path, num_epochs=25, checkpoint_interval=25, validation_interval=25)
    assert code == 0
    assert outcome.kpi["epe"] < 0.5 * outcome.kpi["initial_epe"]


def test_only_trained_weights_move(finished, scenes):
    """The ViT stays what it was; what is trained has moved."""
    folder, _ = finished
    saved = load(folder / "model_epoch_000_step_00002.pth")["state_dict"]
    after = load(folder / "model_epoch_001_step_00004.pth")["state_dict"]
    moved = {name for name in saved if not torch.equal(saved[name], after[name])}
    frozen = {name for name in saved if ".depth_anything." in name}
    assert frozen and not moved & frozen
    assert any(".update_block." in name for name in moved)


def test_pretrained_weights_are_the_start(finished, train, tmp_path, status_lines):
    folder, before = finished
    code, outcome = train(tmp_path, num_epochs=1, pretrained_model_path=str(folder / "dn_model_latest.pth"))
    assert code == 0
    assert outcome.kpi["initial_epe"] == pytest.approx(before.kpi["epe"], rel=1e-5)
    assert outcome.message.endswith(f"({before.kpi['epe']:.3f} px before training)")
    told = [line["message"] for line in status_lines(tmp_path) if "no epoch was better" in line["message"]]
    assert bool(told) == (outcome.kpi["epe"] >= outcome.kpi["initial_epe"])
    assert checkpoints(tmp_path) == ["model_epoch_000_step_00002.pth"]


@pytest.mark.slow
def test_bf16_runs(train, tmp_path):
    """With fsdp, which on one device has nothing to share out."""
    code, outcome = train(tmp_path, num_epochs=1, precision="bf16", distributed_strategy="fsdp", ema_decay=0.5)
    assert code == 0 and math.isfinite(outcome.kpi["train_loss"]) and math.isfinite(outcome.kpi["epe"])
    weights = load(tmp_path / "dn_model_latest.pth")["state_dict"].values()
    assert {weight.dtype for weight in weights if weight.is_floating_point()} == {torch.float32}


def test_what_fsdp_can_not_do_is_refused(train, tmp_path, status_lines):
    """Before any process is started."""
    assert train(tmp_path, num_gpus=2, distributed_strategy="fsdp", ema_decay=0.5)[0] == 2
    assert "set train.distributed_strategy=ddp, or remove train.ema_decay" in status_lines(tmp_path)[-1]["message"]


@pytest.mark.slow
def test_sgd_with_accumulation_and_clipping_by_value(train, tmp_path):
    keys = {"num_epochs": 1, "accumulate": 2, "clip_grad_value": 1e-4}
    code, _ = train(tmp_path, batch_size=1, optim={"optimizer": "SGD", "momentum": 0.8, "lr": 1e-2}, **keys)
    assert code == 0
    saved = load(tmp_path / "dn_model_latest.pth")
    assert saved["global_step"] == 2  # four batches
    group = saved["optimizer_states"][0]["param_groups"][0]
    assert group["momentum"] == 0.8
    largest = max(
        float(state["momentum_buffer"].abs().max()) for state in saved["optimizer_states"][0]["state"].values()
    )
    # Two clipped steps: at most 1.8 * 1e-4, and weight decay (1e-4) times a weight on top.
    assert largest < 1e-3


@pytest.mark.parametrize("keys", [{"clip_grad_norm": 0.01}, {"clip_grad_value": 1e-4}])
def test_gradients_are_clipped_by_norm_or_by_value(train, tmp_path, monkeypatch, keys):
    """TAO's item 12: there clip_grad_norm clips by value."""
    seen = []

    def look(module, *_):
        gradients = torch.cat([p.grad.flatten() for p in module.parameters() if p.grad is not None]).double()
        seen.append((float(gradients.norm()), float(gradients.abs().max()), float(gradients.abs().median())))

    monkeypatch.setattr(StereoModule, "on_train_batch_end", look)
    assert train(tmp_path, num_epochs=1, **keys)[0] == 0
    for norm, largest, middle in seen:
        if "clip_grad_norm" in keys:
            assert norm == pytest.approx(0.01, rel=1e-3) and largest > 100 * middle
        else:
            assert largest == pytest.approx(1e-4) and norm > 0.01
    assert len(seen) == 2


@pytest.mark.slow
@pytest.mark.parametrize("wanted", [True, False])
def test_cudnn_does_what_the_spec_says_while_it_trains(train, tmp_path, monkeypatch, wanted):
    cudnn, seen = torch.backends.cudnn, []
    before = cudnn.benchmark, cudnn.deterministic
    monkeypatch.setattr(
        StereoModule, "on_train_batch_end", lambda *_: seen.append((cudnn.benchmark, cudnn.deterministic))
    )
    keys = {"num_epochs": 1, "cudnn": {"benchmark": wanted, "deterministic": not wanted}}
    assert train(tmp_path, **keys)[0] == 0
    assert set(seen) == {(wanted, not wanted)}
    assert (cudnn.benchmark, cudnn.deterministic) == before, "another verb of this process chooses for itself"


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_two_runs_on_a_gpu_are_equal(train, tmp_path, precision):
    """Kernels that add up in any order differ in the last bits, and after some steps in more. One of the two is stopped
    and goes on, with fp16 its scaler too."""
    keys = {"precision": precision, "deterministic": True}
    assert train(tmp_path / "one", num_epochs=4, **keys)[0] == 0
    assert train(tmp_path / "two", num_epochs=2, **keys)[0] == 0
    assert train(tmp_path / "two", num_epochs=4, resume_training_checkpoint_path="auto", **keys)[0] == 0
    one, two = (load(tmp_path / name / "dn_model_latest.pth") for name in ("one", "two"))
    assert ("MixedPrecision" in one) == (precision == "fp16") and one.get("MixedPrecision") == two.get("MixedPrecision")
    assert_same(one, two)


@pytest.mark.slow
def test_an_image_that_breaks_in_a_later_epoch(train, tmp_path, monkeypatch, status_lines, scenes):
    """The run ends with its name; no step before it is lost, and once it is mended the run goes on as if nothing had
    been. Two batches a step, and the image is in the second batch of one: half a step is no step."""
    keys = {"num_epochs": 3, "accumulate": 2, "ema_decay": 0.5, "checkpoint_interval": 3, "validation_interval": 3}
    assert train(tmp_path / "whole", batch_size=1, **keys)[0] == 0
    content = {}

    def break_it(self, trainer, module, outputs, batch, batch_index):
        if (trainer.current_epoch, batch_index) == (1, 2):
            order = [index for index, _ in trainer.train_dataloader.sampler]
            image = scenes / f"scene{order[3]}" / "right.png"
            content[image] = image.read_bytes()
            image.write_bytes(content[image][:1000])

    try:
        with monkeypatch.context() as patched:
            patched.setattr(StatusLines, "on_train_batch_end", break_it, raising=False)
            assert train(tmp_path / "run", batch_size=1, **keys)[0] == 2
    finally:
        for image in content:
            image.write_bytes(content[image])
    last = status_lines(tmp_path / "run")[-1]
    assert last["status"] == "FAILURE" and str(image) in last["message"]
    assert checkpoints(tmp_path / "run") == ["model_epoch_001_step_00003.pth"]
    assert train(tmp_path / "run", batch_size=1, **keys, resume_training_checkpoint_path="auto")[0] == 0
    assert_same(*(load(tmp_path / name / "dn_model_latest.pth") for name in ("run", "whole")))


def test_ground_truth_beyond_the_cost_volume_draws_a_warning(finished, caplog, scenes, split, tmp_path):
    """TAO's item 26: nothing ties the two keys there."""
    dataset = {"max_disparity": 65, "train_dataset": split(scenes / "list.txt", 2)}
    dataset["train_dataset"]["augmentation"] = {"crop_size": [32, 64]}
    assert training_runs.start(dataset, {"results_dir": str(tmp_path), "num_epochs": 1}) == 0
    assert "dataset.max_disparity: ground truth up to 65 px is used" in caplog.text and "ends at 64 px" in caplog.text


@pytest.mark.parametrize(("warm_up", "told"), [(2, True), (1, False)])
def test_a_warm_up_that_takes_the_whole_run_draws_a_warning(train, tmp_path, caplog, warm_up, told):
    assert train(tmp_path, num_epochs=1, optim={"warmup_steps": warm_up})[0] == 0
    assert ("train.optim.warmup_steps: the warm-up takes 2 steps, but the run has only 2" in caplog.text) == told


def test_validation_without_ground_truth_ends_the_run(scenes, split, tmp_path, status_lines):
    """A wrong coding or mask: no metric, no best checkpoint, and the latest would be handed on."""
    dataset = {f"{name}_dataset": split(scenes / "list.txt", 2) for name in ("train", "val")}
    dataset["val_dataset"]["data_sources"][0]["disparity_scale"] = 1e-3  # all beyond max_disparity
    dataset["train_dataset"]["augmentation"] = {"crop_size": [32, 64]}
    assert training_runs.start(dataset | {"max_disparity": 64}, {"results_dir": str(tmp_path)}) == 2
    said = status_lines(tmp_path)[-1]["message"]
    assert "dataset.val_dataset.data_sources[0] (" in said and "none of its pairs (4) has a valid pixel" in said


def test_a_validation_image_without_ground_truth_is_told_once(scenes, split, tmp_path, caplog):
    write_png(tmp_path / "nothing.png", np.zeros((64, 96), np.uint8))
    lines = (scenes / "list.txt").read_text().splitlines()
    lines[0] = lines[0].replace("scene0/mask.png", str(tmp_path / "nothing.png"))
    (tmp_path / "val.txt").write_text("\n".join(lines) + "\n")
    dataset = {"max_disparity": 64, "train_dataset": split(scenes / "list.txt", 1)}
    dataset["train_dataset"]["augmentation"] = {"crop_size": [32, 64]}
    dataset["val_dataset"] = split(tmp_path / "val.txt", 2, data_root=str(scenes))
    keys = {"results_dir": str(tmp_path), "num_epochs": 1, "is_dry_run": True}  # validates one batch, twice
    assert training_runs.start(dataset, keys) == 0
    said = [record.getMessage() for record in caplog.records if "without valid ground truth" in record.getMessage()]
    [text] = said
    assert text.startswith("validation images without valid ground truth: 1 of 2;") and "scene0/left.png" in text


def test_lost_weights_end_the_run_before_its_first_step(train, tmp_path, status_lines, scenes):
    """TAO's item 1: a NaN loss ends in PASS there."""
    model = create_model(preset="tiny")
    with torch.no_grad():
        model.proj_cmb.weight.fill_(math.nan)
    save_checkpoint(model, tmp_path / "nan.pth")
    code, _ = train(tmp_path / "run", num_epochs=2, pretrained_model_path=str(tmp_path / "nan.pth"))
    assert code == 1
    last = status_lines(tmp_path / "run")[-1]
    assert last["status"] == "FAILURE" and "4 of 4 validation images" in last["message"]
    assert str(scenes) in last["message"] and "left.png" in last["message"]
    assert checkpoints(tmp_path / "run") == []


def spoil(step):
    """A hook for StatusLines.on_train_batch_start: the left images of one step hold a NaN."""

    def hook(self, trainer, module, batch, batch_index):
        if trainer.global_step == step:
            batch["left"][0, 0, 0, 0] = math.nan

    return hook


def test_a_step_that_is_not_finite_ends_the_run(train, tmp_path, status_lines, monkeypatch):
    """TAO's item 1, from the command's side: exit 1, a line that says why, and the step's inputs."""
    monkeypatch.setattr(StatusLines, "on_train_batch_start", spoil(1), raising=False)
    code, outcome = train(tmp_path, num_epochs=1)
    assert code == 1 and outcome is None and checkpoints(tmp_path) == []
    last, name = status_lines(tmp_path)[-1], "epoch_000_step_00001_batch_00001"
    assert last["status"] == "FAILURE" and "the loss is nan at step 1 of epoch 1" in last["message"]
    assert f"see {tmp_path / 'nonfinite' / name}.json" in last["message"]
    assert not torch.load(tmp_path / "nonfinite" / f"{name}.pth", weights_only=True)["left"].isfinite().all()


def test_what_was_skipped_is_counted_in_the_end(scenes, split, tmp_path, status_lines, monkeypatch):
    """One unreadable pair in twelve, and one step of four."""
    (tmp_path / "broken.png").write_bytes(b"no image")
    lines = (scenes / "list.txt").read_text().splitlines() * 3
    lines[5] = lines[5].replace("scene1/left.png", str(tmp_path / "broken.png"))
    (tmp_path / "list.txt").write_text("\n".join(lines) + "\n")
    monkeypatch.setattr(StatusLines, "on_train_batch_start", spoil(2), raising=False)
    dataset = {"max_disparity": 64, "on_error": "skip"}
    dataset["train_dataset"] = split(tmp_path / "list.txt", 3, data_root=str(scenes))
    dataset["train_dataset"]["augmentation"] = {"crop_size": [32, 64]}
    keys = {"results_dir": str(tmp_path), "num_epochs": 1, "nonfinite": "skip"}
    assert training_runs.start(dataset, keys) == 0
    last = status_lines(tmp_path)[-1]
    assert last["status"] == "SUCCESS"
    assert (last["kpi"]["skipped_steps"], last["kpi"]["skipped_samples"]) == (1, 1)


@pytest.mark.slow
def test_lost_statistics_end_the_run(train, tmp_path, status_lines, monkeypatch):
    """The loss never sees running statistics, only a validation does; the checkpoint before them stays the latest."""

    def spoil(module, outputs, batch, batch_index):
        if module.current_epoch == 1:
            module.model.cost_agg.conv_patch[1].running_var.fill_(math.nan)

    monkeypatch.setattr(StereoModule, "on_train_batch_end", spoil)
    code, outcome = train(tmp_path, num_epochs=3)
    assert code == 1 and outcome is None
    last = status_lines(tmp_path)[-1]
    assert last["status"] == "FAILURE" and "validation images is not finite" in last["message"]
    assert (tmp_path / "dn_model_latest.pth").resolve().name == "model_epoch_000_step_00002.pth"
    assert load_model(tmp_path / "dn_model_best.pth").cost_agg.conv_patch[1].running_var.isfinite().all()


@pytest.mark.skipif(torch.cuda.is_available(), reason="fp16 works on a GPU")
def test_fp16_needs_a_gpu(train, tmp_path, status_lines):
    assert train(tmp_path, precision="fp16")[0] == 2
    assert "train.precision: fp16 needs a GPU" in status_lines(tmp_path)[-1]["message"]


def test_a_batch_larger_than_the_data_set_is_told_before_any_work(train, tmp_path, status_lines, caplog):
    caplog.set_level("INFO")
    assert train(tmp_path, batch_size=5)[0] == 2
    assert "4 samples, but one step needs 5" in status_lines(tmp_path)[-1]["message"]
    assert "million parameters" not in caplog.text  # which is said of the network that was made


def test_dry_run_leaves_no_checkpoint(train, tmp_path):
    code, outcome = train(tmp_path, num_epochs=2, is_dry_run=True)
    assert code == 0 and outcome.artifacts == {}
    assert checkpoints(tmp_path) == [] and not (tmp_path / "dn_model_latest.pth").is_symlink()


@pytest.mark.slow
def test_two_runs_are_equal_and_another_seed_is_not(train, tmp_path):
    """A negative seed is another one each time, drawn once a run: one that goes on keeps it."""
    runs = {"one": {"seed": 5}, "two": {"seed": 5}, "three": {"seed": 6}, "four": {"seed": -1}, "five": {"seed": -1}}
    for name, keys in runs.items():
        assert train(tmp_path / name, num_epochs=2, keep_checkpoints=0, **keys)[0] == 0
    first = str(tmp_path / "four" / "model_epoch_000_step_00002.pth")
    assert train(tmp_path / "on", num_epochs=2, seed=-1, resume_training_checkpoint_path=first)[0] == 0
    found = {name: load(tmp_path / name / "dn_model_latest.pth") for name in (*runs, "on")}
    assert_same(found["one"], found["two"])
    assert_same(found["four"], found["on"])
    weights = [found[name]["state_dict"]["model.proj_cmb.weight"] for name in ("one", "three", "four", "five")]
    assert not any(torch.equal(one, other) for one, other in combinations(weights, 2))


def test_a_loader_process_that_dies_ends_the_run(scenes, split, tmp_path, status_lines, monkeypatch):
    """As the kernel ends it when memory is short."""

    def kill_a_loader(self, trainer, *_):
        children = multiprocessing.active_children()
        assert len(children) == 1
        children[0].kill()

    monkeypatch.setattr(StatusLines, "on_train_batch_start", kill_a_loader, raising=False)
    dataset = {"max_disparity": 64, "train_dataset": split(scenes / "list.txt", 1) | {"workers": 1}}
    dataset["train_dataset"]["augmentation"] = {"crop_size": [32, 64]}
    assert training_runs.start(dataset, {"results_dir": str(tmp_path), "num_epochs": 20}) == 1
    last = status_lines(tmp_path)[-1]
    assert last["status"] == "FAILURE"
    assert "DataLoader worker" in last["message"] and "dataset.train_dataset.workers" in last["message"]
