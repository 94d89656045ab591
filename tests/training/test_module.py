"""The training step by itself: real network, real trainer, batches made by hand."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import get_args

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.plugins.precision import MixedPrecision

from stereo_core.errors import DataError
from stereo_core.metrics import METRICS
from stereo_core.models import create_model, load_model
from stereo_core.spec import spec_from_dict
from stereo_core.spec.train import Monitor
from stereo_core.training.checkpoints import AtomicCheckpointIO
from stereo_core.training.module import StereoModule
from stereo_core.training.nonfinite import MAX_SKIPPED, MAX_SKIPPED_IN_A_ROW, MAX_WRITTEN, NonFiniteLossError
from stereo_core.training.schedules import one_cycle_momentum

MODEL = {"preset": "tiny", "train_iters": 1, "valid_iters": 1, "stereo_backbone": {"allow_random_backbone": True}}


def make_batch(seed: int, spoilt: bool = False) -> dict:
    generator = torch.Generator().manual_seed(seed)
    left = torch.rand(1, 3, 32, 64, generator=generator) * 255
    if spoilt:
        left[0, 1, 5, 7] = math.nan
    disparity = torch.rand(1, 1, 32, 64, generator=generator) * 20
    return {"left": left, "right": left.flip(2), "disparity": disparity, "valid": disparity > 1,
            "index": torch.tensor([seed]), "path": [f"pair{seed}.png"]}  # fmt: skip


@pytest.fixture
def fit(tmp_path):
    """Train the tiny network on batches; returns its module. Hooks: functions of the module, called before training."""

    def run(batches, hook=None, **keys):
        source = tmp_path / "list.txt"
        source.touch()
        dataset = {"max_disparity": 64, "train_dataset": {"data_sources": [{"data_file": str(source)}]}}
        optim = {"lr": 1e-3, "warmup_steps": 0} | keys.pop("optim", {})
        train = {"results_dir": str(tmp_path), "num_epochs": 1, "optim": optim} | keys
        spec = spec_from_dict("train", {"dataset": dataset, "model": MODEL, "train": train})
        torch.manual_seed(0)
        module = StereoModule(create_model(preset="tiny", train_iters=1), spec)
        if hook:
            hook(module)
        trainer = pl.Trainer(
            accelerator="cpu", max_epochs=1, accumulate_grad_batches=spec.train.accumulate, logger=False,
            enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
            gradient_clip_val=0.1, use_distributed_sampler=False,
            plugins=[AtomicCheckpointIO(), *getattr(module, "plugins", [])],
        )  # fmt: skip
        module.trained_by = trainer
        trainer.fit(module, torch.utils.data.DataLoader(batches, batch_size=None))
        return module

    return run


def copied(module) -> dict:
    return {name: value.clone() for name, value in module.state_dict().items()}


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_a_step_that_is_not_finite_fails_the_run_and_leaves_its_inputs(fit, tmp_path, what):
    """TAO's item 1. The gradient alone: everything before it is finite."""

    def spoil(module):
        weight = module.model.proj_cmb.weight
        weight.register_hook(lambda g: g * math.inf if module.global_step == 1 else g)

    batches = [make_batch(seed, what == "loss" and seed == 1) for seed in range(3)]
    with pytest.raises(NonFiniteLossError, match=r"at step 1 of epoch 0, for the images pair1\.png"):
        fit(batches, spoil if what == "gradient" else None)
    (path,) = (tmp_path / "nonfinite").glob("*.pth")
    saved = torch.load(path, weights_only=True)
    torch.testing.assert_close(saved["left"], batches[1]["left"], equal_nan=True, rtol=0, atol=0)
    report = json.loads(path.with_suffix(".json").read_text())
    assert report["index"] == [1] and report["path"] == ["pair1.png"] and report["step"] == 1
    assert report["inputs"]["left"]["finite"] == pytest.approx(1 - (what == "loss") / left_size(batches))
    assert (report["loss"] is None) == (what == "loss")
    bad = report["nonfinite_gradients"]
    assert bad == ["proj_cmb.weight"] if what == "gradient" else "proj_cmb.weight" in bad


def left_size(batches) -> int:
    return batches[0]["left"].numel()


def test_a_skipped_step_leaves_no_trace(fit, caplog):
    """Neither in the weights nor in the optimizer nor in batch normalisation; with two batches a step both are lost.
    Only the bad one is named."""
    states = []

    def watch(module):
        module.on_train_batch_end = lambda *_: states.append(copied(module))

    batches = [make_batch(seed, seed == 2) for seed in range(6)]
    module = fit(batches, watch, nonfinite="skip", accumulate=2, ema_decay=0.5)
    before, after, last = states[1], states[3], states[5]
    trained = [name for name, p in module.named_parameters() if p.requires_grad]
    assert all(torch.equal(before[name], after[name]) for name in trained)
    assert any(not torch.equal(after[name], last[name]) for name in trained)
    assert all(value.isfinite().all() for value in last.values())
    assert module.kpi() == {"skipped_steps": 1}
    assert re.findall(r"step skipped: .*, for the images (\S+);", caplog.text) == ["pair2.png"]
    counts = {int(state["step"]) for state in module.trained_by.optimizers[0].state.values()}
    assert counts == {2}
    assert math.isfinite(module.trained_by.callback_metrics["train_loss_epoch"])


def test_skipping_has_an_end(fit, tmp_path, caplog):
    """Only files that are there are named, whatever lies there of earlier runs."""
    (tmp_path / "nonfinite").mkdir()
    for number in range(MAX_WRITTEN):
        (tmp_path / "nonfinite" / f"epoch_{number}.json").touch()
    batches = [make_batch(0, True)] * round(2 * MAX_SKIPPED_IN_A_ROW / MAX_SKIPPED)
    with pytest.raises(NonFiniteLossError, match=f"{MAX_SKIPPED_IN_A_ROW + 1} steps in a row"):
        fit(batches, nonfinite="skip")
    named = re.findall(r"see (\S+\.json);", caplog.text)
    assert len(named) == MAX_WRITTEN and all(Path(path).stat().st_size for path in named)
    assert caplog.text.count("step skipped") == MAX_SKIPPED_IN_A_ROW + 1


def test_skipping_here_and_there_has_an_end(fit):
    """TAO's item 1 by another door: most of a run's steps could be skipped."""
    batches = [make_batch(seed, seed % 2 == 1) for seed in range(12)]
    with pytest.raises(NonFiniteLossError, match=r"4 of this epoch's 12 steps, more than 10%, .* step 7;"):
        fit(batches, nonfinite="skip")


def test_an_epoch_without_ground_truth_is_an_error(fit):
    """A wrong coding or mask; the loss is 0 then. One pixel far out of range counts as little as none."""
    batches = [make_batch(seed) for seed in range(2)]
    for batch in batches:
        batch["disparity"] += 64
    with pytest.raises(DataError, match="not one pixel of epoch 0"):
        fit(batches)
    batches[1]["disparity"][..., :8, :8] = 5
    fit(batches)


@pytest.mark.parametrize("optimizer", ["AdamW", "SGD"])
def test_one_cycle_sets_the_momentum(fit, optimizer):
    """As torch's does by default: of SGD its momentum, of AdamW the first beta."""
    seen = []

    def watch(module):
        def look(*_):
            group = module.optimizers().param_groups[1]
            seen.append(group["betas"][0] if optimizer == "AdamW" else group["momentum"])

        module.on_train_batch_end = look

    optim = {"optimizer": optimizer, "lr_scheduler": "OneCycleLR"}
    fit([make_batch(seed) for seed in range(4)], watch, optim=optim)
    assert seen == [one_cycle_momentum(step, 4) for step in range(4)] and len(set(seen)) == 3


def test_fp16_leaves_out_steps_but_not_all(fit, tmp_path):
    """A scale that overflows once is halved, and the step is in no average; gradients that overflow at any scale end
    the run."""
    averages = []

    def spoil(module, steps):
        module.plugins = [MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=8.0))]
        module.model.proj_cmb.weight.register_hook(lambda g: g * math.inf if module.steps_seen in steps else g)
        module.steps_seen = 0

        def count(*_):
            module.steps_seen += 1
            averages.append(module.averages.values["proj_cmb.weight"].clone())

        module.on_train_batch_end = count

    module = fit([make_batch(seed) for seed in range(3)], lambda m: spoil(m, {1}), precision="fp16", ema_decay=0.5)
    assert module.trained_by.precision_plugin.scaler.get_scale() == 4
    assert torch.equal(averages[0], averages[1]) and not torch.equal(averages[1], averages[2])
    with pytest.raises(NonFiniteLossError, match=r"however fp16 .* at step 3 .* images pair3\.png; see .*\.json"):
        fit([make_batch(seed) for seed in range(6)], lambda m: spoil(m, range(9)), precision="fp16", ema_decay=0.5)
    (path,) = (tmp_path / "nonfinite").glob("*.json")
    assert json.loads(path.read_text())["nonfinite_gradients"] == ["proj_cmb.weight"]


def test_the_backbone_has_a_rate_of_its_own(fit):
    """Factor 0: EdgeNeXt and its side of the ViT stay, everything else moves."""
    before = {}
    module = fit(
        [make_batch(0)],
        lambda m: before.update(copied(m)),
        backbone_lr_factor=0.0,
        optim={"optimizer": "SGD", "lr": 1e-2},
    )
    moved = {name for name, value in module.state_dict().items() if not torch.equal(value, before[name])}
    moved &= {name for name, _ in module.named_parameters()}
    assert moved and not [name for name in moved if name.startswith("model.feature.")]
    groups = module.trained_by.optimizers[0].param_groups
    assert [group["lr"] for group in groups] == [1e-2, 0]
    in_groups = sum(len(group["params"]) for group in groups)
    assert in_groups == sum(p.requires_grad for p in module.parameters())


def test_averaged_weights(fit, tmp_path):
    """average = decay * average + (1 - decay) * weight after every step; evaluate loads it, a resumed run does not."""
    states = []

    def watch(module):
        states.append(copied(module))
        module.on_train_batch_end = lambda *_: states.append(copied(module))

    module = fit([make_batch(seed) for seed in range(3)], watch, ema_decay=0.6)
    names = ["proj_cmb.weight", "cnet.layer1.0.norm1.running_mean", "cost_agg.conv_patch.1.running_var"]
    names = [name for name in names if name in module.averages.values]
    assert len(names) >= 2
    module.eval()
    with torch.no_grad():  # as Lightning validates
        sample = {key: value[0] if key != "index" else 0 for key, value in make_batch(9).items()}
        module.validation_step([sample], 0)
    assert not module.training and all(isinstance(p, torch.nn.Parameter) for p in module.parameters())
    assert {name for name, _ in module.named_parameters()} <= states[0].keys()
    module.trained_by.save_checkpoint(tmp_path / "model.pth")
    saved = torch.load(tmp_path / "model.pth", weights_only=True)
    loaded = load_model(tmp_path / "model.pth").state_dict()
    for name in names:
        average = states[0][f"model.{name}"]
        for state in states[1:]:
            average = 0.6 * average + 0.4 * state[f"model.{name}"]
        torch.testing.assert_close(module.averages.values[name], average, rtol=1e-5, atol=1e-7)
        assert torch.equal(loaded[name], module.averages.values[name])
        assert torch.equal(saved["state_dict"][f"model.{name}"], states[-1][f"model.{name}"])
    twins = [(name, name.replace(".norm3.", ".downsample.1.")) for name in loaded if ".norm3." in name]
    twins = [(one, other) for one, other in twins if one != other and other in loaded]
    assert twins and all(torch.equal(loaded[one], loaded[other]) for one, other in twins)


def test_every_metric_can_be_monitored():
    known = {f"val/{name}{suffix}" for name in METRICS for suffix in ("", "_pixel")}
    assert set(get_args(Monitor)) == known | {"val_loss", "val/loss"}
