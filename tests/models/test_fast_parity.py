"""FastFoundationStereo: every stored tensor of the reference networks, stage by stage, and its gradients in float64.

The weights are those of `fill.py`, filled under the names of the layout that the golden was made with.
"""

from __future__ import annotations

import json

import fast_parity
import numpy as np
import pytest
import torch

from stereo_core.models import create_model
from stereo_core.models.foundation_stereo.model import normalise
from stereo_core.training.losses import stereo_loss


@pytest.fixture(scope="module")
def renames(shared) -> dict[str, str]:
    return json.loads((shared / "model" / "state_dict_ffs_bp2_serialize.json").read_text())["rename_to_tao"]


@pytest.fixture
def filled(fill, renames):
    """A network whose weights were filled under the names of a layout: unpruned, serialize or tao."""

    def make(layout: str, **settings):
        topology = "unpruned" if layout == "unpruned" else "bp2"
        model = create_model("FastFoundationStereo", topology=topology, **settings).eval()
        named = {key: renames.get(key, key) if layout == "tao" else key for key in model.state_dict() if key != "dx"}
        shapes = [(named[key], value.shape, "float32" if value.is_floating_point() else "int64")
                  for key, value in model.state_dict().items() if key != "dx"]  # fmt: skip
        values = fill.deterministic_state_dict(shapes, 0)
        model.load_state_dict({key: values[name] for key, name in named.items()})
        return model

    return make


def check_in_order(golden, model, pair, monkeypatch, noise: float = 1.0) -> None:
    """The first stage that misses is named, with its place among the stages that matched."""
    info, bp2 = golden.info, model.config.topology == "bp2"
    left, right, gt = map(torch.from_numpy, pair.make_pair(info["H"], info["W"], 40.0, info["image_seed"]))
    seen = fast_parity.Recorder(model, monkeypatch).run(normalise(left), normalise(right), info["iters"])
    seen |= {"gt_disp": gt, "input.left": left, "input.right": right}
    for number, name in enumerate(golden.names()):
        fault = fast_parity.misses(golden, name, seen[name], bp2, noise)
        assert fault is None, f"stage {number} of {len(golden.names())}, after {golden.names()[number - 1]}: {fault}"


@pytest.mark.parametrize(
    ("layout", "name", "stages"),
    [
        ("unpruned", "fast_unpruned_128x160_d192_it4", 79),
        ("tao", "fast_bp2_tao_128x160_d192_it4", 82),
        ("serialize", "fast_bp2_serialize_128x160_d192_it4", 8),
    ],
)
def test_stages_of_a_forward(golden, filled, pair, monkeypatch, layout, name, stages):
    reference = golden(name)
    assert len(reference.names()) == stages
    check_in_order(reference, filled(layout), pair, monkeypatch)


def test_correlation_that_is_not_normalised(golden, filled, pair, monkeypatch):
    """Without the norms the volume is larger and float32 coarser: the golden's init_disp is 0.0010 px from this
    network's in float64, the whole limit; in float32 an AMD EPYC is 0.0014 px from it, Xeons are within the limit."""
    model = filled("unpruned", gwc_feature_normalize=False)
    check_in_order(golden("fast_unpruned_unnormalized_128x160_d192_it4"), model, pair, monkeypatch, noise=3)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("layout", "name"), [("unpruned", "fast_unpruned_192x320_d192_it8"), ("tao", "fast_bp2_tao_192x320_d192_it8")]
)
def test_8_iterations(golden, filled, pair, monkeypatch, layout, name):
    check_in_order(golden(name), filled(layout), pair, monkeypatch)


def test_public_forward_and_hierarchical(golden, filled, pair):
    """`model(left, right)` from 0..255 images, and two passes."""
    model = filled("serialize")
    for call, name in ((model, "fast_bp2_serialize_128x160_d192_it4"),
                       (model.hierarchical, "fast_hier_bp2_serialize_160x256_d192_it4")):  # fmt: skip
        reference = golden(name)
        info = reference.info
        left, right, _ = map(torch.from_numpy, pair.make_pair(info["H"], info["W"], 40.0, info["image_seed"]))
        with torch.no_grad():
            assert fast_parity.misses(reference, "disp", call(left, right, iters=4), bp2=True) is None


@pytest.mark.slow
def test_float64_gradients(golden, filled, pair, renames):
    reference = golden("fast_train_f64_frozenbn_bp2_tao_96x128_d192_it3")
    info = reference.info
    model = filled("tao").train().double()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            module.eval()
    left, right, gt = pair.make_pair(info["H"], info["W"], 40.0, info["image_seed"], info["batch"])
    gt[:, :, :16, :16] = info["max_disp"] + 10
    chance = np.random.Generator(np.random.Philox(key=info["image_seed"] + 1000)).random((info["batch"], *gt.shape[2:]))
    left, right, gt = (torch.from_numpy(x).double() for x in (left, right, gt))
    init, disparities = model(left, right, iters=info["iters"])
    loss = stereo_loss(init, disparities, gt, torch.from_numpy(chance < 0.9)[:, None], info["max_disp"])
    loss.backward()
    assert loss.item() == pytest.approx(info["loss"], rel=1e-8)
    assert reference.compare("init_disp", init)["rel_l2"] < 1e-6  # stored as float32
    for i, disparity in enumerate(disparities, start=1):
        assert reference.compare(f"disp_up.iter{i}", disparity)["rel_l2"] < 1e-6
    parameters = {renames.get(name, name): p for name, p in model.named_parameters()}
    for name in reference.names():
        if name.startswith("grad."):
            assert reference.compare(name, parameters[name.removeprefix("grad.")].grad)["rel_l2"] < 1e-5, name
    assert sorted(name for name, p in parameters.items() if p.grad is None) == sorted(info["no_grad"])
    for name, wanted in info["all_grad_norms"].items():
        # Some gradients are zero in exact arithmetic (a bias before a norm): theirs is rounding noise.
        assert parameters[name].grad.norm().item() == pytest.approx(wanted, rel=1e-6, abs=1e-9), name
