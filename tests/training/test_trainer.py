"""How kernels, network and trainer are set up."""

from __future__ import annotations

import contextlib

import pytest
import torch

from stereo_core.errors import SpecError
from stereo_core.models import create_model
from stereo_core.models.flags import kept
from stereo_core.spec.train import Train
from stereo_core.training import trainer
from stereo_core.training.distribution import Ranks
from stereo_core.training.trainer import (
    COMPILED,
    WORTH_COMPILING,
    check_compiler,
    check_fsdp,
    choose_kernels,
    compiled_parts,
    tune,
)


@pytest.mark.parametrize(
    ("wanted", "gpu", "expected"), [(True, True, True), (True, False, False), (False, True, False)]
)
def test_deterministic_kernels_are_chosen_where_there_is_a_choice(wanted, gpu, expected):
    with kept():
        choose_kernels(Train(deterministic=wanted), gpu)
        assert torch.are_deterministic_algorithms_enabled() == expected


@pytest.mark.parametrize("compile", ["on", "auto"])
def test_a_missing_compiler_is_told_before_the_first_step(compile, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    refused = pytest.raises(SpecError, match=r"on needs a C\+\+ compiler, but there is none on the PATH; install g\+\+")
    with refused if compile == "on" else contextlib.nullcontext():
        check_compiler(Train(compile=compile), gpu=False)


def test_how_the_network_computes_is_what_the_spec_says():
    one, two = Ranks(local=0), Ranks((0, 1), gpu=True, local=0)

    def tuned(ranks=one, **keys):
        network = create_model(preset="tiny")
        tune(network, Train(**keys), ranks, 2)
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


@pytest.mark.parametrize(
    ("keys", "gpu", "steps", "said"),
    [
        ({}, False, 10**6, "auto: nothing is compiled, and no CUDA graph is used"),
        ({}, True, WORTH_COMPILING - 1, "auto: nothing is compiled; after 2 steps the next one is recorded as a CUDA"),
        ({"compile": "off"}, True, 10**6, "off: nothing is compiled, and no CUDA graph is used"),
        ({"compile": "on"}, False, 1, "on: the first step compiles update_block, which takes up to a minute, and no"),
        ({"compile": "on"}, True, 1, "on: the first step compiles update_block, which takes up to a minute; after 2"),
    ],
)
def test_the_log_says_how_steps_are_computed(keys, gpu, steps, said, caplog):
    with caplog.at_level("INFO"):
        tune(create_model(preset="tiny"), Train(**keys), Ranks(local=0, gpu=gpu), steps)
    assert f"train.compile: {said}" in caplog.text


@pytest.mark.parametrize(("triton", "captured", "steps", "parts"), [
    (True, True, WORTH_COMPILING, COMPILED), (True, True, WORTH_COMPILING - 1, ()), (True, False, 10**6, ()),
    (False, True, 10**6, ()),
])  # fmt: skip
def test_auto_compiles_what_pays(triton, captured, steps, parts, monkeypatch):
    """Without a C compiler `triton` is None."""
    monkeypatch.setattr(trainer, "triton", object() if triton else None)
    assert compiled_parts(Train(), captured, steps) == parts


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


def test_fp16_is_refused_with_fsdp():
    with pytest.raises(SpecError, match=r"train\.precision: fp16"):
        check_fsdp(Train(distributed_strategy="fsdp", precision="fp16"))
