"""Training runs as a user starts them: what they leave behind, how they go on, and how they end when they can not."""

from __future__ import annotations

import math
import multiprocessing
import os
import resource
import shutil
import signal
import threading
import time
from itertools import combinations

import numpy as np
import pytest
import torch
import training_runs
from training_runs import MODEL, assert_same, load

from stereo_core.actions.perform import perform
from stereo_core.actions.train import COMPILED, check_fsdp, choose_kernels, tune
from stereo_core.automl.trials import StatusReader
from stereo_core.data.images import write_png
from stereo_core.errors import ModelError, SpecError
from stereo_core.files import sha256_of
from stereo_core.models import create_model, files, load_model, save_checkpoint
from stereo_core.models.checkpoints import to_tao
from stereo_core.models.files import read_sidecar
from stereo_core.report.curves import read_curves
from stereo_core.spec import spec_from_dict
from stereo_core.spec.train import Train
from stereo_core.training.callbacks import StatusLines
from stereo_core.training.checkpoints import AtomicCheckpointIO
from stereo_core.training.distribution import Ranks
from stereo_core.training.module import StereoModule


@pytest.fixture(scope="session")
def train(scenes, split):
    """Start a training run; returns (exit code, Outcome or None)."""

    def start(folder, *, batch_size=2, optim=None, **keys):
        dataset = {"max_disparity": 64, "train_dataset": split(scenes / "list.txt", batch_size)}
        dataset["train_dataset"]["augmentation"] = {"crop_size": [48, 80]}
        dataset["val_dataset"] = split(scenes / "list.txt", 3)
        settings = {"results_dir": str(folder), "optim": {"lr": 1e-3, "warmup_steps": 0} | (optim or {})}
        outcomes = []
        return training_runs.start(dataset, settings | keys, outcomes.append), *(outcomes or [None])

    return start


def checkpoints(folder):
    return sorted(path.name for path in folder.glob("model_epoch_*.pth"))


@pytest.fixture(scope="session")
def finished(train, tmp_path_factory):
    """(folder, outcome) of a run of two epochs, two steps each; for looking at only."""
    folder = tmp_path_factory.mktemp("train")
    code, outcome = train(folder, num_epochs=2)
    assert code == 0
    return folder, outcome


def test_files(finished):
    folder, outcome = finished
    assert checkpoints(folder) == ["model_epoch_000_step_00002.pth", "model_epoch_001_step_00004.pth"]
    assert os.readlink(folder / "dn_model_latest.pth") == "model_epoch_001_step_00004.pth"
    assert outcome.artifacts["checkpoint"] == (folder / "dn_model_best.pth").resolve()
    others = {path.name for path in folder.iterdir()} - set(checkpoints(folder))
    others -= {f"{name}.json" for name in checkpoints(folder)}
    links = {"dn_model_latest.pth", "dn_model_best.pth"}
    assert others == links | {"experiment.yaml", "status.json", "lightning_logs", "validation.png"}
    assert list((folder / "lightning_logs" / "version_1").glob("events.*"))


def test_checkpoint_is_a_lightning_dict_that_load_model_reads(finished):
    folder, _ = finished
    saved = load(folder / "dn_model_latest.pth")
    assert saved["epoch"] == 1 and saved["global_step"] == 4
    assert {"pytorch-lightning_version", "optimizer_states", "lr_schedulers", "loops"} <= saved.keys()
    assert all(name.startswith("model.") for name in saved["state_dict"])
    assert saved["hyper_parameters"]["model"]["preset"] == "tiny"
    model = load_model(folder / "dn_model_latest.pth")
    assert model.config.train_iters == 2
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
    assert shown("train", *finished) == [("Curves", "curves"), ("Last validation", "validation")]


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
    code, _ = train(tmp_path, num_epochs=6, checkpoint_interval=6, validation_interval=6)
    assert code == 0
    losses = [
        line["kpi"]["train_loss"] for line in status_lines(tmp_path) if line["message"].startswith("Train metrics")
    ]
    assert len(losses) == 6 and losses[-1] < 0.5 * losses[0]
    assert checkpoints(tmp_path) == ["model_epoch_005_step_00012.pth"]


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


def test_resume_goes_on(finished, train, tmp_path):
    folder, _ = finished
    first = str(folder / "model_epoch_001_step_00004.pth")
    code, outcome = train(tmp_path, num_epochs=4, resume_training_checkpoint_path=first)
    assert code == 0
    assert checkpoints(tmp_path) == ["model_epoch_002_step_00006.pth", "model_epoch_003_step_00008.pth"]
    saved = load(tmp_path / "dn_model_latest.pth")
    assert (saved["epoch"], saved["global_step"]) == (3, 8)
    assert saved["optimizer_states"][0]["state"][0]["step"] == 8
    assert outcome.kpi["initial_epe"] == finished[1].kpi["initial_epe"] != outcome.kpi["epe"]


def test_resume_equals_an_undisturbed_run(train, tmp_path):
    """At an epoch's end: same samples, same crops, same rates, so the same weights."""
    rates = {"lr_steps": [3], "lr_decay": 0.1}
    keys = {"num_epochs": 2, "optim": rates, "backbone_lr_factor": 0.5}
    assert train(tmp_path / "whole", **keys)[0] == 0
    first = str(tmp_path / "whole" / "model_epoch_000_step_00002.pth")
    assert train(tmp_path / "part", **keys, resume_training_checkpoint_path=first)[0] == 0
    whole, part = (load(tmp_path / name / "model_epoch_001_step_00004.pth") for name in ("whole", "part"))
    assert whole["lr_schedulers"][0]["_last_lr"] == part["lr_schedulers"][0]["_last_lr"]
    assert whole["lr_schedulers"][0]["_last_lr"] == pytest.approx([1e-4, 0.5e-4])
    assert_same(part, whole)


@pytest.fixture(scope="session")
def every_two_steps(train, tmp_path_factory):
    """Folder of a run of two epochs, four steps each, that wrote a checkpoint within and at the end of each."""
    folder = tmp_path_factory.mktemp("steps")
    keys = {"checkpoint_interval": 2, "checkpoint_interval_unit": "step", "num_epochs": 2, "validation_interval": 2}
    assert train(folder, batch_size=1, keep_checkpoints=0, **keys)[0] == 0
    return folder


@pytest.mark.parametrize("start", ["model_epoch_000_step_00002.pth", "model_epoch_000_step_00004.pth"])
def test_resume_from_a_step_checkpoint(every_two_steps, train, tmp_path, status_lines, recwarn, start):
    """Within an epoch and at its end: no sample twice, none left out, so the same weights to the last bit."""
    keys = {"num_epochs": 2, "resume_training_checkpoint_path": str(every_two_steps / start)}
    code, outcome = train(tmp_path, batch_size=1, **keys)
    assert code == 0
    progress = [line for line in status_lines(tmp_path) if line["message"] == "Training loop in progress"]
    assert [(line["epoch"], line["step"]) for line in progress] == [(0, 4), (1, 8)]
    saved = load(tmp_path / "dn_model_latest.pth")
    assert (saved["epoch"], saved["global_step"]) == (1, 8)
    assert saved["optimizer_states"][0]["state"][0]["step"] == 8
    assert math.isfinite(outcome.kpi["train_loss"]) and math.isfinite(outcome.kpi["epe"])
    said = [line["message"] for line in status_lines(tmp_path) if "0 epochs and 2 batches are done" in line["message"]]
    assert bool(said) == (start == "model_epoch_000_step_00002.pth")
    assert_same(saved, load(every_two_steps / "dn_model_latest.pth"))
    assert not [warning for warning in recwarn if "not resumable" in str(warning.message)]


def test_new_rates_hold_from_where_a_run_goes_on(finished, train, tmp_path, caplog):
    """The optimizer's state would bring back the old ones; here beta1 stands where OneCycleLR has left it."""
    content, first = load(finished[0] / "model_epoch_000_step_00002.pth"), str(tmp_path / "cycled.pth")
    for group in content["optimizer_states"][0]["param_groups"]:
        group["betas"] = (0.87, 0.999)
    torch.save(content, first)
    rates = {"lr": 2e-4, "weight_decay": 0.005, "lr_steps": [3], "lr_decay": 0.1}
    code, _ = train(tmp_path, num_epochs=2, optim=rates, backbone_lr_factor=0.5, resume_training_checkpoint_path=first)
    assert code == 0
    saved = load(tmp_path / "dn_model_latest.pth")
    groups = saved["optimizer_states"][0]["param_groups"]
    assert [group["weight_decay"] for group in groups] == [0.005, 0.005]
    assert [group["lr"] for group in groups] == pytest.approx([2e-5, 1e-5])  # after the fourth step
    assert [group["betas"] for group in groups] == [(0.9, 0.999)] * 2
    assert saved["lr_schedulers"][0]["base_lrs"] == [2e-4, 1e-4]
    said = [record.message for record in caplog.records if "the new value holds" in record.message]
    assert said[0] == "lr of the network is 0.0002 and was 0.001: the new value holds from here" and len(said) == 6


def test_another_optimizer_does_not_go_on(finished, train, tmp_path, status_lines):
    first = str(finished[0] / "model_epoch_000_step_00002.pth")
    code, _ = train(tmp_path, num_epochs=2, optim={"optimizer": "SGD"}, resume_training_checkpoint_path=first)
    assert code == 2 and "was trained by AdamW" in status_lines(tmp_path)[-1]["message"]


@pytest.mark.parametrize(("size", "keys", "words"), [
    (2, {}, "batch_size 1, now 2"), (1, {"accumulate": 2}, "accumulate 1, now 2"),
])  # fmt: skip
def test_an_epoch_is_not_cut_anew_in_its_middle(every_two_steps, train, tmp_path, status_lines, size, keys, words):
    within, at_end = (str(every_two_steps / f"model_epoch_000_step_{step:05d}.pth") for step in (2, 4))
    resumed = {"num_epochs": 2, **keys, "resume_training_checkpoint_path": within}
    assert train(tmp_path / "a", batch_size=size, **resumed)[0] == 2
    assert words in status_lines(tmp_path / "a")[-1]["message"]
    resumed["resume_training_checkpoint_path"] = at_end
    assert train(tmp_path / "b", batch_size=size, **resumed)[0] == 0


def test_a_run_that_is_gone_on_with_elsewhere_stays_as_it_is(every_two_steps, train, tmp_path):
    """The validation that its checkpoint has not had is written beside none of its files."""
    before = {path.name: path.read_bytes() for path in every_two_steps.glob("*.json")}
    first = every_two_steps / "model_epoch_000_step_00004.pth"
    assert "metrics" not in read_sidecar(first)
    keys = {"num_epochs": 1, "resume_training_checkpoint_path": str(first)}
    assert train(tmp_path, batch_size=1, **keys)[0] == 2  # all its epochs are done
    assert train(tmp_path, batch_size=1, **keys | {"num_epochs": 2})[0] == 0
    assert {path.name: path.read_bytes() for path in every_two_steps.glob("*.json")} == before


def test_a_run_with_more_epochs_than_are_wanted_does_not_go_on(finished, train, tmp_path, capfd):
    """`auto` takes a finished run as finished, and one that is past the end as a mistake."""
    shutil.copytree(finished[0], tmp_path, dirs_exist_ok=True, symlinks=True)
    code, _ = train(tmp_path, num_epochs=1, resume_training_checkpoint_path="auto")
    assert code == 2
    assert "train.num_epochs: 1, but the checkpoint to resume has 2 already" in capfd.readouterr().err


def test_pretrained_weights_are_the_start(finished, train, tmp_path):
    folder, before = finished
    code, outcome = train(tmp_path, num_epochs=1, pretrained_model_path=str(folder / "dn_model_latest.pth"))
    assert code == 0
    assert outcome.kpi["initial_epe"] == pytest.approx(before.kpi["epe"], rel=1e-5)
    assert checkpoints(tmp_path) == ["model_epoch_000_step_00002.pth"]


def test_step_interval(train, tmp_path, monkeypatch):
    """On the way: each epoch has an order of its own, and what a kill in a write has left is swept up."""
    order = {0: [], 1: []}
    look = lambda self, trainer, module, batch, index: order[trainer.current_epoch].extend(batch["path"])  # noqa: E731
    monkeypatch.setattr(StatusLines, "on_train_batch_start", look, raising=False)
    (tmp_path / ".model_epoch_000_step_00003.abc.pth").touch()
    keys = {"checkpoint_interval": 3, "checkpoint_interval_unit": "step", "num_epochs": 2, "validation_interval": 2}
    assert train(tmp_path, batch_size=1, **keys)[0] == 0
    assert checkpoints(tmp_path) == [
        "model_epoch_000_step_00003.pth",
        "model_epoch_001_step_00006.pth",
        "model_epoch_001_step_00008.pth",  # the end always counts
    ]
    assert len(set(order[0])) == 4 and sorted(order[0]) == sorted(order[1]) and order[0] != order[1]
    assert not list(tmp_path.glob(".model_epoch_*"))


def test_steps_of_several_batches_are_saved_once_each(train, tmp_path, monkeypatch):
    """Two batches a step: the step count stands still for a batch."""
    written = []
    write = AtomicCheckpointIO.save_checkpoint

    def count(self, checkpoint, path, **rest):
        written.append(path.name)
        write(self, checkpoint, path, **rest)

    monkeypatch.setattr(AtomicCheckpointIO, "save_checkpoint", count)
    keys = {"checkpoint_interval": 1, "checkpoint_interval_unit": "step", "accumulate": 2, "num_epochs": 2}
    keys["keep_checkpoints"] = 0
    assert train(tmp_path, batch_size=1, **keys)[0] == 0
    assert written == [f"model_epoch_{(step - 1) // 2:03d}_step_{step:05d}.pth" for step in (1, 2, 3, 4)]
    batches = load(tmp_path / written[0])["loops"]["fit_loop"]["epoch_loop.batch_progress"]["current"]["ready"]
    assert batches == 2
    written.clear()
    resume = str(tmp_path / "model_epoch_001_step_00003.pth")
    assert train(tmp_path, batch_size=1, resume_training_checkpoint_path=resume, **keys)[0] == 0
    assert written == ["model_epoch_001_step_00004.pth"]


def test_bf16_runs(train, tmp_path):
    """With fsdp, which on one device has nothing to share out."""
    code, outcome = train(tmp_path, num_epochs=1, precision="bf16", distributed_strategy="fsdp", ema_decay=0.5)
    assert code == 0 and math.isfinite(outcome.kpi["train_loss"]) and math.isfinite(outcome.kpi["epe"])
    weights = load(tmp_path / "dn_model_latest.pth")["state_dict"].values()
    assert {weight.dtype for weight in weights if weight.is_floating_point()} == {torch.float32}


def test_what_fsdp_can_not_do_is_refused(train, tmp_path, status_lines):
    """Before any process is started; fp16 would be refused here for want of a GPU."""
    assert train(tmp_path, num_gpus=2, distributed_strategy="fsdp", ema_decay=0.5)[0] == 2
    assert "train.ema_decay: fsdp" in status_lines(tmp_path)[-1]["message"]
    with pytest.raises(SpecError, match=r"train\.precision: fp16"):
        check_fsdp(Train(distributed_strategy="fsdp", precision="fp16"))


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


def test_cudnn_does_what_the_spec_says(train, tmp_path, monkeypatch):
    for name in ("benchmark", "deterministic"):
        monkeypatch.setattr(torch.backends.cudnn, name, getattr(torch.backends.cudnn, name))  # set back afterwards
    for wanted in (True, False):
        keys = {"num_epochs": 1, "cudnn": {"benchmark": wanted, "deterministic": not wanted}}
        assert train(tmp_path / f"{wanted}", **keys)[0] == 0
        assert (torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic) == (wanted, not wanted)


@pytest.mark.parametrize(
    ("wanted", "gpu", "expected"), [(True, True, True), (True, False, False), (False, True, False)]
)
def test_deterministic_kernels_are_chosen_where_there_is_a_choice(wanted, gpu, expected):
    try:
        choose_kernels(Train(deterministic=wanted), gpu)
        assert torch.are_deterministic_algorithms_enabled() == expected
    finally:
        choose_kernels(Train(), False)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
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


def test_how_the_network_computes_is_what_the_spec_says():
    one, two = Ranks(local=0), Ranks((0, 1), gpu=True, local=0)

    def tuned(ranks=one, **keys):
        network = create_model(preset="tiny")
        tune(network, Train(**keys), ranks)
        return network

    plain = tuned()
    assert not plain.recompute and all(getattr(plain, name)._compiled_call_impl is None for name in COMPILED)
    assert tuned(activation_checkpoint=True).recompute
    assert all(getattr(tuned(compile="on"), name)._compiled_call_impl for name in COMPILED)
    for strategy, innermost in (("ddp", True), ("fsdp", False)):
        network = tuned(two, distributed_strategy=strategy)
        assert network.proj_cmb.weight.shape[1] > 1
        assert any(isinstance(module, torch.nn.SyncBatchNorm) for module in network.modules())
        convolutions = [p for p in network.parameters() if p.dim() == 4 and min(p.shape[1:]) > 1]
        laid_out = {p.is_contiguous(memory_format=torch.channels_last) for p in convolutions}
        assert laid_out == {innermost}


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


@pytest.mark.slow
@pytest.mark.parametrize("hook", ["on_train_batch_end", "on_validation_batch_start"])
def test_whatever_ends_a_run_its_last_step_is_there(finished, train, tmp_path, monkeypatch, hook):
    """A tracker that can not be reached, say, right after a step, or a validation that fails after the epoch's last."""
    keys = {"num_epochs": 2, "checkpoint_interval": 2}

    def fail(self, trainer, *_):
        if trainer.global_step == 2:
            raise ConnectionError("the tracker is gone")

    with monkeypatch.context() as patched:
        patched.setattr(StatusLines, hook, fail, raising=False)
        assert train(tmp_path, **keys)[0] == 1
    assert checkpoints(tmp_path) == ["model_epoch_000_step_00002.pth"]
    assert train(tmp_path, **keys, resume_training_checkpoint_path="auto")[0] == 0
    assert_same(*(load(folder / "dn_model_latest.pth") for folder in (tmp_path, finished[0])))


def test_ground_truth_beyond_the_cost_volume_draws_a_warning(finished, caplog, scenes, split, tmp_path):
    """TAO's item 26: nothing ties the two keys there."""
    dataset = {"max_disparity": 65, "train_dataset": split(scenes / "list.txt", 2)}
    dataset["train_dataset"]["augmentation"] = {"crop_size": [32, 64]}
    assert training_runs.start(dataset, {"results_dir": str(tmp_path), "num_epochs": 1}) == 0
    assert "dataset.max_disparity: ground truth up to 65 px counts" in caplog.text and "ends at 64 px" in caplog.text


def test_validation_without_ground_truth_ends_the_run(scenes, split, tmp_path, status_lines):
    """A wrong coding or mask: no metric, no best checkpoint, and the latest would be handed on."""
    dataset = {f"{name}_dataset": split(scenes / "list.txt", 2) for name in ("train", "val")}
    dataset["train_dataset"]["augmentation"] = {"crop_size": [32, 64]}
    assert training_runs.start(dataset | {"max_disparity": 1}, {"results_dir": str(tmp_path)}) == 2
    said = status_lines(tmp_path)[-1]["message"]
    assert "dataset.val_dataset: none of the 4 images has a valid ground-truth pixel" in said


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
    said = [record.getMessage() for record in caplog.records if "no valid ground-truth pixel" in record.getMessage()]
    assert len(said) == 1 and said[0].startswith("1 of 2 validation images") and "scene0/left.png" in said[0]


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
    assert last["status"] == "FAILURE" and "the loss is nan at step 1 of epoch 0" in last["message"]
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


def test_what_can_not_be_resumed(finished, train, tiny_checkpoint, tmp_path, status_lines):
    assert train(tmp_path, resume_training_checkpoint_path=str(tiny_checkpoint))[0] == 2
    assert "no state of a training run" in status_lines(tmp_path)[-1]["message"]
    latest = str(finished[0] / "dn_model_latest.pth")
    assert train(tmp_path, num_epochs=2, resume_training_checkpoint_path=latest)[0] == 2
    assert "the checkpoint to resume has 2 already" in status_lines(tmp_path)[-1]["message"]


def test_a_step_checkpoint_at_the_end_of_the_run_can_not_be_resumed(every_two_steps, train, tmp_path, status_lines):
    latest = str(every_two_steps / "model_epoch_001_step_00008.pth")
    assert train(tmp_path, batch_size=1, num_epochs=2, resume_training_checkpoint_path=latest)[0] == 2
    assert "the checkpoint to resume has 2 already" in status_lines(tmp_path)[-1]["message"]


def test_a_run_of_other_software_can_not_be_resumed(finished, train, tmp_path, status_lines):
    """TAO's names: its weights load, its optimizer state goes by the number of the weight."""
    content = load(finished[0] / "model_epoch_000_step_00002.pth")
    named = {f"model.{to_tao(name.removeprefix('model.'))}": value for name, value in content["state_dict"].items()}
    assert named.keys() != content["state_dict"].keys()
    torch.save(content | {"state_dict": named}, tmp_path / "tao.pth")
    keys = {"num_epochs": 2, "resume_training_checkpoint_path": str(tmp_path / "tao.pth")}
    assert train(tmp_path / "run", **keys)[0] == 2
    message = status_lines(tmp_path / "run")[-1]["message"]
    assert "tao.pth" in message and "train.pretrained_model_path" in message


def test_plain_numbers_in_a_checkpoint_do_not_hinder_resuming(finished, train, tmp_path):
    content = load(finished[0] / "model_epoch_000_step_00002.pth") | {"best": np.float64(1.5)}
    torch.save(content, tmp_path / "best.pth")
    keys = {"num_epochs": 2, "resume_training_checkpoint_path": str(tmp_path / "best.pth")}
    assert train(tmp_path / "run", **keys)[0] == 0


@pytest.mark.skipif(torch.cuda.is_available(), reason="fp16 works on a GPU")
def test_fp16_needs_a_gpu(train, tmp_path, status_lines):
    assert train(tmp_path, precision="fp16")[0] == 2
    assert "train.precision: fp16 needs a GPU" in status_lines(tmp_path)[-1]["message"]


def test_a_batch_larger_than_the_data_set_is_told_before_any_work(train, tmp_path, status_lines, caplog):
    caplog.set_level("INFO")
    assert train(tmp_path, batch_size=5)[0] == 2
    assert "4 samples, but a batch takes 5" in status_lines(tmp_path)[-1]["message"]
    assert "million parameters" not in caplog.text  # which is said of the network that was made


def test_dry_run_leaves_no_checkpoint(train, tmp_path):
    code, outcome = train(tmp_path, num_epochs=2, is_dry_run=True)
    assert code == 0 and outcome.artifacts == {}
    assert checkpoints(tmp_path) == [] and not (tmp_path / "dn_model_latest.pth").is_symlink()


def test_full_disk_keeps_the_previous_checkpoint(train, tmp_path, status_lines):
    """A file-size limit stands for the full disk: the write fails in the middle of the file."""
    assert train(tmp_path, num_epochs=1)[0] == 0
    first = tmp_path / "model_epoch_000_step_00002.pth"
    before = first.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) // 2, hard))
    try:
        code, _ = train(tmp_path, num_epochs=2, resume_training_checkpoint_path=str(first))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert code == 1
    last = status_lines(tmp_path)[-1]
    assert last["status"] == "FAILURE" and "could not be written" in last["message"] and "are intact" in last["message"]
    assert checkpoints(tmp_path) == [first.name] and first.read_bytes() == before
    assert os.readlink(tmp_path / "dn_model_latest.pth") == first.name
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_finishes_the_step_and_leaves_a_checkpoint(train, tmp_path, status_lines, number, code):
    sent = []

    def stop_once_it_runs():
        while "Train metrics" not in (tmp_path / "status.json").read_text():
            time.sleep(0.05)
        sent.append(time.monotonic())
        os.kill(os.getpid(), number)

    (tmp_path / "status.json").touch()
    killer = threading.Thread(target=stop_once_it_runs, daemon=True)
    killer.start()
    before = signal.getsignal(number)
    assert train(tmp_path, num_epochs=1000, checkpoint_interval=1000, validation_interval=1000)[0] == code
    assert time.monotonic() - sent[0] < 30  # what Kubernetes gives a pod
    assert signal.getsignal(number) == before
    last = status_lines(tmp_path)[-1]
    assert last["status"] == "FAILURE" and "resume_training_checkpoint_path=auto goes on from it" in last["message"]
    (name,) = checkpoints(tmp_path)
    saved = load(tmp_path / "dn_model_latest.pth")
    assert saved["global_step"] >= 2 and name.endswith(f"step_{saved['global_step']:05d}.pth")


@pytest.mark.parametrize(
    ("hook", "step"), [("on_train_batch_end", 2), ("on_validation_batch_start", 4), ("on_train_epoch_end", 4)]
)
def test_resume_after_sigterm(train, tmp_path, monkeypatch, hook, step):
    """SIGTERM within the first epoch's four steps, in the validation after them, or at the epoch's end."""
    keys = {"num_epochs": 3, "checkpoint_interval": 3, "keep_checkpoints": 0}
    with monkeypatch.context() as patched:

        def stop(self, trainer, *_):
            if trainer.global_step == step:
                os.kill(os.getpid(), signal.SIGTERM)

        patched.setattr(StatusLines, hook, stop, raising=False)
        assert train(tmp_path, batch_size=1, **keys)[0] == 143
    (name,) = checkpoints(tmp_path)
    assert name == f"model_epoch_000_step_{step:05d}.pth"
    latest = str(tmp_path / "dn_model_latest.pth")
    assert train(tmp_path, batch_size=1, resume_training_checkpoint_path=latest, **keys)[0] == 0
    assert {name, "model_epoch_002_step_00012.pth"} <= set(checkpoints(tmp_path))
    saved = load(tmp_path / "dn_model_latest.pth")
    assert (saved["epoch"], saved["global_step"]) == (2, 12)
    assert saved["optimizer_states"][0]["state"][0]["step"] == 12


def test_auto_goes_on_only_where_there_is_something(finished, train, tmp_path, status_lines, monkeypatch, capfd):
    """TAO's item 27: there a run resumes because a file lies there. Here it is asked to, says so, and may be over. The
    file, which may have gigabytes, is checked once."""
    keys = {"num_epochs": 2, "resume_training_checkpoint_path": "auto"}
    assert train(tmp_path, num_epochs=1)[0] == 0
    before = {path.name: path.read_bytes() for path in tmp_path.glob("*.pth*")}
    record = [(tmp_path / name).read_bytes() for name in ("experiment.yaml", "status.json")]
    elsewhere = str(finished[0] / "model_epoch_000_step_00002.pth")
    for other in ({}, {"is_dry_run": True}, {"resume_training_checkpoint_path": elsewhere}):  # not asked to go on
        assert train(tmp_path, num_epochs=2, **other)[0] == 2
        said = capfd.readouterr().err
        assert f"{tmp_path} holds checkpoints of another training" in said and "_path=auto goes on with that" in said
        assert [(tmp_path / name).read_bytes() for name in ("experiment.yaml", "status.json")] == record
    assert {path.name: path.read_bytes() for path in tmp_path.glob("*.pth*")} == before
    checked = []
    monkeypatch.setattr(files, "sha256_of", lambda path: checked.append(path.name) or sha256_of(path))
    code, outcome = train(tmp_path, **keys)
    assert checked == ["model_epoch_000_step_00002.pth"]
    assert code == 0 and outcome.kpi["initial_epe"] != outcome.kpi["epe"]
    messages = [line["message"] for line in status_lines(tmp_path)]
    said = f"Resuming training from checkpoint: {tmp_path / 'model_epoch_000_step_00002.pth'} "
    assert [message for message in messages if message.startswith(said)]
    before = (tmp_path / "dn_model_latest.pth").read_bytes()
    code, outcome = train(tmp_path, **keys)
    assert code == 0 and "2 epochs, 4 steps" in outcome.message
    assert (tmp_path / "dn_model_latest.pth").read_bytes() == before
    code, _ = train(tmp_path / "new", num_epochs=1, resume_training_checkpoint_path="auto")
    assert code == 0
    assert f"No checkpoint in {tmp_path / 'new'}: a new run." in [x["message"] for x in status_lines(tmp_path / "new")]


def test_two_trainings_at_once_in_one_folder(train, tmp_path, monkeypatch, capfd):
    """The second is refused before it writes anything; when the first has ended, its folder is free again."""
    second = []

    def start_another(self, trainer, *_):
        record = [(tmp_path / name).read_bytes() for name in ("experiment.yaml", "status.json")]
        second.append(train(tmp_path, num_epochs=2, resume_training_checkpoint_path="auto")[0])
        assert [(tmp_path / name).read_bytes() for name in ("experiment.yaml", "status.json")] == record

    with monkeypatch.context() as patched:
        patched.setattr(StatusLines, "on_train_epoch_start", start_another)
        assert train(tmp_path, num_epochs=1)[0] == 0
    assert second == [2]
    assert f"another training is running in {tmp_path}" in capfd.readouterr().err
    assert train(tmp_path, num_epochs=2, resume_training_checkpoint_path="auto")[0] == 0


@pytest.mark.parametrize("damage", ["truncated", "one bit"])
def test_a_damaged_checkpoint_is_never_taken(every_two_steps, train, tmp_path, caplog, status_lines, damage):
    """auto falls back to the one before it, loudly, and ends where the undisturbed run did; naming it is an error."""
    names = ["model_epoch_000_step_00002.pth", "model_epoch_000_step_00004.pth"]
    for name in names:
        for copied in (name, f"{name}.json"):
            shutil.copy(every_two_steps / copied, tmp_path / copied)
    (tmp_path / "dn_model_latest.pth").symlink_to(names[1])
    content = bytearray((tmp_path / names[1]).read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / names[1]).write_bytes(content[: len(content) // 2] if damage == "truncated" else content)
    keys = {"num_epochs": 2, "validation_interval": 2, "checkpoint_interval": 2}
    with pytest.raises(ModelError, match="damaged"):
        load_model(tmp_path / "dn_model_latest.pth")
    named = str(tmp_path / "dn_model_latest.pth")
    assert train(tmp_path, batch_size=1, **keys, resume_training_checkpoint_path=named)[0] == 2
    assert "damaged" in status_lines(tmp_path)[-1]["message"]
    assert train(tmp_path, batch_size=1, **keys, resume_training_checkpoint_path="auto")[0] == 0
    errors = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    errors = [message for message in errors if "before it is tried" in message]
    assert len(errors) == 1 and names[1] in errors[0]
    assert_same(load(tmp_path / "dn_model_latest.pth"), load(every_two_steps / "dn_model_latest.pth"))
    for name in names:
        (tmp_path / name).write_bytes(b"PK\x03\x04")
    (tmp_path / "dn_model_latest.pth").unlink()
    for path in tmp_path.glob("model_epoch_001*"):
        path.unlink()
    assert train(tmp_path, batch_size=1, **keys, resume_training_checkpoint_path="auto")[0] == 2
    assert "none of its 2 checkpoints is whole" in status_lines(tmp_path)[-1]["message"]


@pytest.mark.parametrize("stopped_after", [None, 2, 5])
def test_the_newest_and_the_best_are_kept(train, tmp_path, status_lines, monkeypatch, stopped_after):
    """Five epochs, a rate that first teaches and then spoils: the best stays although it is old. The same where the run
    was stopped in an epoch's validation and went on; each validation stands at its own step."""
    keys = {"num_epochs": 5, "keep_checkpoints": 2, "optim": {"lr": 3e-3, "warmup_steps": 0}, "monitor": "val/rmse"}
    if stopped_after:
        with monkeypatch.context() as patched:

            def stop(self, trainer, *_):
                if trainer.state.fn == "fit" and trainer.current_epoch + 1 == stopped_after:
                    os.kill(os.getpid(), signal.SIGTERM)

            patched.setattr(StatusLines, "on_validation_batch_start", stop, raising=False)
            assert train(tmp_path, **keys)[0] == 143
    code, outcome = train(tmp_path, resume_training_checkpoint_path="auto", **keys)
    assert code == 0
    values = [x["kpi"]["val/rmse"] for x in status_lines(tmp_path) if x["message"].startswith("Eval metrics generated")]
    values = values[1:]  # before training
    assert len(values) == 5
    lines = [x for x in status_lines(tmp_path) if x["message"] == "Training loop in progress"]
    assert [(x["epoch"], x["step"], x["max_epoch"]) for x in lines] == [(n, 2 * n + 2, 4) for n in range(5)]
    assert list(read_curves(tmp_path)["val/rmse"]) == [0, 2, 4, 6, 8, 10]
    reader = StatusReader(tmp_path / "status.json", "val/rmse")
    assert list(reader.validations()) == list(enumerate(values, start=1))
    best = f"model_epoch_{values.index(min(values)):03d}_step_{2 * values.index(min(values)) + 2:05d}.pth"
    newest = ["model_epoch_003_step_00008.pth", "model_epoch_004_step_00010.pth"]
    assert os.readlink(tmp_path / "dn_model_best.pth") == best
    assert checkpoints(tmp_path) == sorted({best, *newest})
    assert {path.name for path in tmp_path.glob("*.pth.json")} == {f"{name}.json" for name in checkpoints(tmp_path)}
    assert outcome.artifacts["checkpoint"] == tmp_path / best and best in outcome.message
    assert read_sidecar(tmp_path / best)["metrics"]["val/rmse"] == pytest.approx(min(values), rel=1e-6)
    assert outcome.kpi["rmse"] == pytest.approx(min(values), rel=1e-6) != values[-1], "of the checkpoint handed on"


def test_the_best_is_kept_between_two_checkpoints(train, tmp_path, status_lines):
    """One checkpoint in three epochs, but each is validated: a better one is written at once."""
    keys = {"num_epochs": 3, "checkpoint_interval": 3, "optim": {"lr": 3e-3, "warmup_steps": 0}}
    assert train(tmp_path, **keys)[0] == 0
    values = [x["kpi"]["epe"] for x in status_lines(tmp_path) if x["message"].startswith("Eval metrics generated")][1:]
    epoch = values.index(min(values))
    assert os.readlink(tmp_path / "dn_model_best.pth").startswith(f"model_epoch_{epoch:03d}")


def test_sigterm_within_a_step_of_several_batches(train, tmp_path, monkeypatch):
    """The step is finished, not cut: half of its gradients would be lost."""
    keys = {"num_epochs": 1, "accumulate": 2, "ema_decay": 0.5}
    assert train(tmp_path / "whole", batch_size=1, **keys)[0] == 0
    with monkeypatch.context() as patched:

        def stop(self, trainer, module, outputs, batch, batch_index):
            if batch_index == 0:
                os.kill(os.getpid(), signal.SIGTERM)

        patched.setattr(StatusLines, "on_train_batch_end", stop, raising=False)
        assert train(tmp_path / "run", batch_size=1, **keys)[0] == 143
    assert checkpoints(tmp_path / "run") == ["model_epoch_000_step_00001.pth"]
    assert train(tmp_path / "run", batch_size=1, **keys, resume_training_checkpoint_path="auto")[0] == 0
    assert_same(*(load(tmp_path / name / "dn_model_latest.pth") for name in ("run", "whole")))


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


def test_sigterm_to_all_processes_at_once(scenes, split, tmp_path, monkeypatch):
    """As timeout(1) and Slurm send it: loader processes go on until the step, here of three batches, is at its end."""

    def stop_all(self, trainer, *_):
        if not self.stopped:
            for child in multiprocessing.active_children():
                os.kill(child.pid, signal.SIGTERM)
            time.sleep(0.3)
            os.kill(os.getpid(), signal.SIGTERM)
            self.stopped = True

    monkeypatch.setattr(StatusLines, "stopped", False, raising=False)
    monkeypatch.setattr(StatusLines, "on_train_batch_start", stop_all, raising=False)
    dataset = {"max_disparity": 64, "train_dataset": split(scenes / "list.txt", 1) | {"workers": 1}}
    dataset["train_dataset"]["augmentation"] = {"crop_size": [32, 64]}
    keys = {"results_dir": str(tmp_path), "num_epochs": 20, "accumulate": 3}
    assert training_runs.start(dataset, keys) == 143
    assert checkpoints(tmp_path) == ["model_epoch_000_step_00001.pth"]


@pytest.mark.slow
def test_a_run_stopped_in_every_step_is_the_run_that_never_stopped(train, tmp_path, monkeypatch):
    """A resumed run is resumed again and again; two batches a step, a validation after every second epoch, averages."""
    keys = {"num_epochs": 3, "accumulate": 2, "ema_decay": 0.7, "validation_interval": 2, "keep_checkpoints": 0}
    keys |= {"checkpoint_interval": 1, "checkpoint_interval_unit": "step"}
    assert train(tmp_path / "whole", batch_size=1, **keys)[0] == 0
    with monkeypatch.context() as patched:
        patched.setattr(
            StatusLines, "on_train_batch_start", lambda *_: os.kill(os.getpid(), signal.SIGTERM), raising=False
        )
        for _ in range(6):
            assert train(tmp_path / "run", batch_size=1, **keys, resume_training_checkpoint_path="auto")[0] == 143
    code, outcome = train(tmp_path / "run", batch_size=1, **keys, resume_training_checkpoint_path="auto")
    assert code == 0 and "3 epochs, 6 steps" in outcome.message
    assert checkpoints(tmp_path / "run") == checkpoints(tmp_path / "whole")
    for name in checkpoints(tmp_path / "whole"):
        assert_same(load(tmp_path / "run" / name), load(tmp_path / "whole" / name))
    assert os.readlink(tmp_path / "run" / "dn_model_best.pth") == os.readlink(tmp_path / "whole" / "dn_model_best.pth")


def test_a_missing_choice_is_never_replaced(finished, tmp_path):
    """TAO's item 24: best or an epoch that is not there falls back to the latest."""
    wanted = finished[0] / "model_epoch_007_step_00016.pth"
    evaluate = {"checkpoint": str(wanted), "results_dir": str(tmp_path)}
    with pytest.raises(SpecError) as error:
        spec_from_dict("evaluate", {"model": MODEL, "evaluate": evaluate})
    names = ", ".join(checkpoints(finished[0]))
    assert f"evaluate.checkpoint: no such file: {wanted}; the folder holds {names}" in str(error.value)


@pytest.mark.slow
def test_the_compiled_parts_compute_the_same():
    """One graph each, without a break, however many iterations; the names of the weights stay. The tracing is real, the
    code generator is left out: it needs a compiler or a GPU."""
    gradients = []
    for compiled in (False, True):
        torch.manual_seed(1)
        model = create_model(preset="tiny", train_iters=3).double().train()
        names = list(model.state_dict())
        for name in COMPILED if compiled else ():
            getattr(model, name).compile(backend="aot_eager", fullgraph=True)
        left, right = (torch.rand(1, 3, 64, 96).double() * 255 for _ in range(2))
        torch.manual_seed(2)
        start, disparities = model(left, right)
        (start.mean() + sum(d.abs().mean() for d in disparities)).backward()
        assert list(model.state_dict()) == names
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-7, atol=1e-9)
