"""Averaged weights: made after every step, validated, saved under every name of a weight."""

from __future__ import annotations

import pytest
import torch
from batches import copied, make_batch

from stereo_core.models import load_model
from stereo_core.training.averages import Averages

DECAY = 0.6
NAMES = ("proj_cmb.weight", "cnet.layer1.0.norm1.running_mean", "cost_agg.conv_patch.1.running_var")


@pytest.fixture
def averaged(fit):
    """(module, its weights before training and after each of three steps)."""
    states = []

    def watch(module):
        states.append(copied(module))
        module.on_train_batch_end = lambda *_: states.append(copied(module))

    return fit([make_batch(seed) for seed in range(3)], watch, ema_decay=DECAY), states


def names_of(module) -> list[str]:
    names = [name for name in NAMES if name in module.averages.values]
    assert len(names) >= 2
    return names


def test_an_average_is_the_decayed_one_and_a_share_of_the_weight_after_every_step(averaged):
    module, states = averaged
    for name in names_of(module):
        average = states[0][f"model.{name}"]
        for state in states[1:]:
            average = DECAY * average + (1 - DECAY) * state[f"model.{name}"]
        torch.testing.assert_close(module.averages.values[name], average, rtol=1e-5, atol=1e-7)


def test_a_validation_sees_the_averages_and_leaves_the_weights_alone(averaged):
    module, states = averaged
    module.eval()
    sample = {key: value[0] if key != "index" else 0 for key, value in make_batch(9).items()}
    with torch.no_grad():  # as Lightning validates
        seen = module.validation_step([sample], 0)[0]
        without = module.model(sample["left"][None], sample["right"][None])[0, 0]
    assert not torch.equal(seen, without)
    assert not module.training and all(isinstance(p, torch.nn.Parameter) for p in module.parameters())
    assert {name for name, _ in module.named_parameters()} <= states[0].keys()
    assert all(torch.equal(value, states[-1][name]) for name, value in module.state_dict().items())


@pytest.fixture
def saved(averaged, tmp_path):
    """The checkpoint of such a training."""
    averaged[0].trained_by.save_checkpoint(tmp_path / "model.pth")
    return tmp_path / "model.pth"


def test_a_checkpoint_has_the_weights_to_go_on_with_and_loads_as_the_averages(averaged, saved):
    module, states = averaged
    loaded, content = load_model(saved).state_dict(), torch.load(saved, weights_only=True)
    for name in names_of(module):
        assert torch.equal(loaded[name], module.averages.values[name])
        assert torch.equal(content["state_dict"][f"model.{name}"], states[-1][f"model.{name}"])


def test_a_weight_of_two_names_is_averaged_under_both(saved):
    loaded = load_model(saved).state_dict()
    twins = [(name, name.replace(".norm3.", ".downsample.1.")) for name in loaded if ".norm3." in name]
    twins = [(one, other) for one, other in twins if one != other and other in loaded]
    assert twins and all(torch.equal(loaded[one], loaded[other]) for one, other in twins)


@pytest.mark.parametrize(("decay", "warned"), [(DECAY, False), (None, True)])
def test_a_resumed_run_does_not_drop_the_averages_in_silence(averaged, saved, caplog, decay, warned):
    averages = Averages(averaged[0].model, decay)
    averages.load(torch.load(saved, weights_only=True))
    assert bool(averages.values) != warned
    assert ("train.ema_decay is no longer set" in caplog.text) == warned
