"""Every stored tensor of the reference network, stage by stage, within GOLDENS.md's tolerances.

The weights are those of `fill.py`; the tolerances are the noise measured on the reference itself times about ten.
"""

from __future__ import annotations

import parity
import pytest
import torch

from stereo_core.models import create_model
from stereo_core.models.checkpoints import to_tao
from stereo_core.models.foundation_stereo.model import normalise


def filled(weights, **settings):
    model = create_model(encoder="vits", max_disparity=128, **settings).eval()
    model.load_state_dict(weights)
    return model


def stages(golden, model, pair, monkeypatch) -> dict:
    info = golden.info
    left, right, gt = map(torch.from_numpy, pair.make_pair(info["H"], info["W"], 40.0, info["image_seed"]))
    seen = parity.Recorder(model, monkeypatch).run(left, right, info["iters"])
    return seen | {"gt_disp": gt}


def check_in_order(golden, seen: dict) -> None:
    """The first stage that misses is named, with its place among the stages that matched."""
    for number, name in enumerate(golden.names()):
        fault = parity.misses(golden, name, seen[name])
        assert fault is None, f"stage {number} of {len(golden.names())}, after {golden.names()[number - 1]}: {fault}"


def test_all_intermediates_of_a_forward(golden, weights, pair, monkeypatch):
    reference = golden("shared_vits_128x160_d128_it4")
    assert len(reference.names()) == 81
    check_in_order(reference, stages(reference, filled(weights), pair, monkeypatch))


@pytest.mark.slow
def test_attention_over_heads(golden, weights, pair, monkeypatch):
    reference = golden("shared_vits_128x160_d128_it4_attheads")
    check_in_order(reference, stages(reference, filled(weights, disparity_attention="heads"), pair, monkeypatch))


@pytest.mark.slow
def test_tao_variant(golden, fill, pair, monkeypatch):
    """Its weights are filled by TAO's names, so the names are tested too."""
    reference = golden("shared_tao_vits_128x160_d128_it4")
    model = create_model(encoder="vits", max_disparity=128, variant="tao").eval()
    named = {to_tao(key): (key, value) for key, value in model.state_dict().items()}
    values = fill.deterministic_state_dict({name: value for name, (_, value) in named.items()}, 0)
    model.load_state_dict({named[name][0]: value for name, value in values.items()})
    check_in_order(reference, stages(reference, model, pair, monkeypatch))


@pytest.mark.slow
@pytest.mark.parametrize("attention", ["disparity", "heads"])
def test_22_iterations(golden, weights, pair, monkeypatch, attention):
    suffix = "_attheads" if attention == "heads" else ""
    reference = golden(f"shared_vits_192x320_d128_it22{suffix}")
    check_in_order(reference, stages(reference, filled(weights, disparity_attention=attention), pair, monkeypatch))


def test_public_forward_is_the_golden(golden, weights, pair):
    """`model(left, right)` from 0..255 images, and `core` from normalised ones."""
    reference = golden("shared_vits_128x160_d128_it4")
    left, right, _ = map(torch.from_numpy, pair.make_pair(128, 160, 40.0, reference.info["image_seed"]))
    model = filled(weights)
    with torch.no_grad():
        disp = model(left, right, iters=4)
        assert parity.misses(reference, "disp", disp) is None
        assert torch.equal(model.core(normalise(left), normalise(right), 4), disp)
