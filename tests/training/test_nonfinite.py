"""Steps whose loss or gradient is not finite: the run ends, or leaves them out, and says so."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import pytest
import torch
from batches import copied, make_batch
from pytorch_lightning.plugins.precision import MixedPrecision

from stereo_core.training.nonfinite import (
    MAX_SKIPPED,
    MAX_SKIPPED_IN_A_ROW,
    MAX_WRITTEN,
    NonFiniteLossError,
    PendingCopy,
)


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_a_step_that_is_not_finite_fails_the_run_and_leaves_its_inputs(fit, tmp_path, what):
    """TAO's item 1. The gradient alone: everything before it is finite."""

    def spoil(module):
        weight = module.model.proj_cmb.weight
        weight.register_hook(lambda g: g * math.inf if module.global_step == 1 else g)

    batches = [make_batch(seed, what == "loss" and seed == 1) for seed in range(3)]
    with pytest.raises(NonFiniteLossError, match=r"at step 1 of epoch 1 for the images pair1\.png"):
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


@pytest.mark.parametrize("saved", [True, False])
def test_no_weights_of_a_lost_run_are_kept(fit, tmp_path, saved):
    """The last step's neither, which no other one follows."""

    def save(module):
        if saved:
            name = "step_{}.pth".format
            module.on_train_batch_end = lambda *_: module.trainer.save_checkpoint(tmp_path / name(module.global_step))

    with pytest.raises(NonFiniteLossError, match="at step 1 of epoch 1"):
        fit([make_batch(0), make_batch(1, spoilt=True)], save)
    assert [path.name for path in tmp_path.glob("step_*.pth")] == ["step_1.pth"] * saved


@pytest.mark.gpu
def test_what_is_on_its_way_comes_before_later_work_is_done():
    sent = PendingCopy(torch.ones((), device="cuda"))
    torch.cuda._sleep(2**31)  # cycles: a second
    assert sent.get() == 1
    assert not torch.cuda.current_stream().query()


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
    assert re.findall(r"skipped a step: .* for the images (\S+);", caplog.text) == ["pair2.png"]
    counts = {int(state["step"]) for state in module.trained_by.optimizers[0].state.values()}
    assert counts == {2}
    assert math.isfinite(module.trained_by.callback_metrics["train_loss_epoch"])


@pytest.mark.slow
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
    assert caplog.text.count("skipped a step") == MAX_SKIPPED_IN_A_ROW + 1


def test_skipping_here_and_there_has_an_end(fit):
    """TAO's item 1 by another door: most of a run's steps could be skipped."""
    batches = [make_batch(seed, seed % 2 == 1) for seed in range(12)]
    with pytest.raises(NonFiniteLossError, match=r"4 of this epoch's 12 steps, more than 10%, .* step 7,"):
        fit(batches, nonfinite="skip")


def test_a_run_that_skips_each_step_fails(fit):
    """Few enough for an epoch's limits, and too many for a run that says that it has trained."""
    with pytest.raises(NonFiniteLossError, match=r"each step of the run \(2\) .* the weights that the run began with"):
        fit([make_batch(0, True), make_batch(1, True)], nonfinite="skip")


def overflowing(module, steps, averages=None) -> None:
    """Scale the loss of a training in fp16 by 8; let the gradients of some steps overflow at any scale.

    Args:
        averages: a list that takes the average of a weight after every step.
    """
    module.plugins = [MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=8.0))]
    module.model.proj_cmb.weight.register_hook(lambda g: g * math.inf if module.steps_seen in steps else g)
    module.steps_seen = 0

    def count(*_):
        module.steps_seen += 1
        if averages is not None:
            averages.append(module.averages.values["proj_cmb.weight"].clone())

    module.on_train_batch_end = count


def test_fp16_leaves_out_a_step_that_overflows_and_halves_its_scale(fit):
    """The step is in no average either."""
    averages = []
    batches = [make_batch(seed) for seed in range(3)]
    module = fit(batches, lambda m: overflowing(m, {1}, averages), precision="fp16", ema_decay=0.5)
    assert module.trained_by.precision_plugin.scaler.get_scale() == 4
    assert torch.equal(averages[0], averages[1]) and not torch.equal(averages[1], averages[2])


@pytest.mark.slow
def test_gradients_that_overflow_in_fp16_at_any_scale_end_the_run(fit, tmp_path):
    with pytest.raises(NonFiniteLossError, match=r"fp16 loss scale, .* at step 3 .* images pair3\.png; see .*\.json"):
        fit([make_batch(seed) for seed in range(6)], lambda m: overflowing(m, range(9)), precision="fp16")
    (path,) = (tmp_path / "nonfinite").glob("*.json")
    assert json.loads(path.read_text())["nonfinite_gradients"] == ["proj_cmb.weight"]
