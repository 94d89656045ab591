"""precision and compile: what is computed how, and when a size is made ready."""

from __future__ import annotations

import logging

import pytest
import torch

from stereo_core.actions.predict import fast, precision
from stereo_core.errors import SpecError
from stereo_core.models import create_model


@pytest.fixture
def model():
    torch.manual_seed(0)
    return create_model(preset="tiny", valid_iters=2).eval()


def pair(height: int, width: int):
    torch.manual_seed(height + width)
    return (torch.rand(1, 3, height, width) * 255 for _ in range(2))


@pytest.mark.parametrize("asked", ["auto", "fp32"])
def test_a_cpu_computes_in_float32(model, asked):
    assert precision.resolved(asked, model, "cpu", "evaluate") == "fp32"


@pytest.mark.parametrize("asked", ["tf32", "fp16", "bf16"])
def test_a_cpu_refuses_what_it_would_not_do(model, asked):
    with pytest.raises(SpecError, match=f"inference.precision: {asked} needs a GPU"):
        precision.resolved(asked, model, "cpu", "inference")


def test_what_is_not_finite_is_computed_again(caplog):
    half = lambda left, right: torch.tensor([1.0, torch.nan])  # noqa: E731
    with caplog.at_level(logging.WARNING):
        found = precision._finite(half, lambda left, right: torch.ones(2), "fp16")(None, None)
    assert torch.equal(found, torch.ones(2))
    assert "not finite in fp16" in caplog.text


def test_sizes_that_pad_to_one_share_what_is_made_ready(model):
    """KITTI's images differ by a few pixels; the second image of such a size is the first to pay for a graph."""
    predict = fast.FastPredict(model, torch.float32, "off")
    for size in ((60, 90), (64, 96), (61, 95), (33, 64)):
        left, right = pair(*size)
        with torch.inference_mode():
            assert torch.allclose(predict(left, right), model(left, right), atol=1e-3)
    assert list(predict.ready) == [(1, 64, 96)]


def test_a_result_is_not_overwritten_by_the_next(model, monkeypatch):
    """A graph writes to one place; tiles and their seams need several results at once."""
    place = torch.zeros(1, 1, 32, 64)
    predict = fast.FastPredict(model, torch.float32, "off")
    monkeypatch.setattr(predict, "eager", lambda left, right: place.copy_(left[:, :1]))
    first, second = (torch.full((1, 3, 32, 64), value) for value in (1.0, 2.0))
    found = predict(first, first)
    predict.seen.clear()
    predict(second, second)
    assert torch.equal(found, first[:, :1])


@pytest.mark.gpu
def test_a_graph_that_is_recorded_without_a_pass_before_it_gives_the_same(model):
    """The first call runs directly, the second records, the third replays, each with other images."""
    predict = fast.FastPredict(model.cuda(), torch.float16, "off")
    for height in (64, 63, 62):
        left, right = (image.cuda() for image in pair(height, 96))
        with torch.inference_mode():
            assert (predict(left, right) - predict.eager(left, right)).abs().max() < 0.01
    assert list(predict.ready) == [(1, 64, 96)]


def test_few_sizes_are_kept_ready(model, monkeypatch):
    monkeypatch.setattr(fast, "GRAPHS", 1)
    predict = fast.FastPredict(model, torch.float32, "off")
    for size in ((32, 64), (32, 64), (64, 64), (64, 64)):
        predict(*pair(*size))
    assert list(predict.ready) == [(1, 64, 64)]


def test_alternating_sizes_are_not_made_ready_each_time(model, monkeypatch):
    monkeypatch.setattr(fast, "GRAPHS", 2)
    monkeypatch.setattr(fast, "PAUSE", 4)
    predict = fast.FastPredict(model, torch.float32, "off")
    made = []
    monkeypatch.setattr(predict, "_made", lambda size, compile: made.append(size[2]) or predict.eager)
    for _ in range(7):
        for width in (32, 64, 96):
            predict(*pair(32, width))
    assert made == [32, 64, 96, 32]  # 96 took the place of 32, which gets another after four direct calls


@pytest.mark.parametrize("asked, made", [("auto", [False, True]), ("off", [False]), ("on", [True])])
def test_when_a_size_is_compiled(model, monkeypatch, asked, made):
    """auto: at the call after which a graph would have cost more than compiling."""
    monkeypatch.setattr(fast, "COMPILE_AFTER", 4)
    monkeypatch.setattr(fast, "COMPILER", "cc")
    predict = fast.FastPredict(model, torch.float32, asked)
    seen = []
    monkeypatch.setattr(predict, "_made", lambda size, compile: seen.append(compile) or predict.eager)
    for _ in range(6):
        predict(*pair(32, 64))
    assert seen == made


def test_without_a_compiler_nothing_is_compiled(model, monkeypatch, caplog):
    monkeypatch.setattr(fast, "COMPILER", None)
    with caplog.at_level(logging.INFO):
        assert fast.FastPredict(model, torch.float32, "on").compile == "off"
    assert "no C compiler" in caplog.text and caplog.records[-1].levelname == "WARNING"


@pytest.mark.parametrize(
    ("keys", "why"), [({}, "precision fp32"), ({"hierarchical": True}, "hierarchical, whose passes are not compiled")]
)
def test_a_request_to_compile_in_vain_draws_a_warning(model, keys, why, caplog):
    for asked in ("auto", "on"):
        precision.network_call(model, "fp32", asked, **keys)
    (said,) = (record for record in caplog.records if record.levelname == "WARNING")
    assert said.getMessage() == f"compile: on has no effect with {why}; only fp16 and bf16 are compiled"
