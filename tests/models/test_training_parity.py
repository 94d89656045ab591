"""Loss, gradients and BatchNorm statistics of a training step against the reference's.

Float32 gradients with batch statistics are ill-conditioned in the reference itself (GOLDENS.md), so gradients are
compared in float64: loss 1e-8, gradients 1e-5 rel-L2, norms 1e-6.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from stereo_core.models import create_model
from stereo_core.training.losses import stereo_loss

pytestmark = pytest.mark.slow


def train_step(info: dict, weights, pair, dtype: torch.dtype, iters: int):
    model = create_model(encoder="vits", max_disparity=128).train()
    model.load_state_dict(weights)
    model.to(dtype)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        if info["batchnorm"].startswith("frozen") and isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            module.eval()
    left, right, gt = pair.make_pair(info["H"], info["W"], 40.0, info["image_seed"], info["batch"])
    gt[:, :, :16, :16] = info["max_disp"] + 10
    chance = np.random.Generator(np.random.Philox(key=info["image_seed"] + 1000)).random((info["batch"], *gt.shape[2:]))
    left, right, gt = (torch.from_numpy(x).to(dtype) for x in (left, right, gt))
    valid = torch.from_numpy(chance < 0.9)[:, None]
    init, disparities = model(left, right, iters=iters)
    loss = stereo_loss(init, disparities, gt, valid, info["max_disp"])
    loss.backward()
    return model, init, disparities, loss.item()


@pytest.mark.parametrize("frozen", ["", "_frozenbn"])
def test_float64_gradients(golden, weights, pair, frozen):
    reference = golden(f"shared_train_f64{frozen}_vits_96x128_d128_it3")
    info = reference.info
    model, init, disparities, loss = train_step(info, weights, pair, torch.float64, 3)
    assert loss == pytest.approx(info["loss"], rel=1e-8)
    assert reference.compare("init_disp", init)["rel_l2"] < 1e-6  # stored as float32
    for i, disparity in enumerate(disparities, start=1):
        assert reference.compare(f"disp_up.iter{i}", disparity)["rel_l2"] < 1e-6
    parameters = dict(model.named_parameters())
    for name in reference.names():
        if name.startswith("grad."):
            assert reference.compare(name, parameters[name.removeprefix("grad.")].grad)["rel_l2"] < 1e-5, name
    state = model.state_dict()
    for name in reference.names():
        if name.startswith("after."):
            assert reference.compare(name, state[name.removeprefix("after.")])["rel_l2"] < 1e-6, name
    norms = {name: p.grad.norm().item() for name, p in parameters.items() if p.grad is not None}
    assert norms.keys() == info["all_grad_norms"].keys()
    for name, wanted in info["all_grad_norms"].items():
        # Some gradients are zero in exact arithmetic (a bias before a norm): theirs is rounding noise.
        assert norms[name] == pytest.approx(wanted, rel=1e-6, abs=1e-9), name


def test_float32_loss_and_statistics(golden, weights, pair):
    reference = golden("shared_train_vits_128x160_d128_it4")
    info = reference.info
    model, _, _, loss = train_step(info, weights, pair, torch.float32, 4)
    assert loss == pytest.approx(info["loss"], rel=1e-4)
    unused = [name for name, p in model.named_parameters() if p.grad is None and ".depth_anything." not in name]
    assert not any(p.requires_grad for name, p in model.named_parameters() if name in unused)
    assert sorted(unused) == sorted(info["no_grad_params"])
    state = model.state_dict()
    for name in reference.names():
        if name.startswith("after."):
            assert reference.compare(name, state[name.removeprefix("after.")])["rel_l2"] < 1e-4, name
