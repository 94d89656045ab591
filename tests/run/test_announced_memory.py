"""What is said of memory before a pass: once for each larger size, a warning where it is short, never a failure."""

from __future__ import annotations

import logging

import pytest
import torch

from stereo_core.models import create_model
from stereo_core.models.memory import pass_bytes
from stereo_core.run import memory
from stereo_core.run.memory import announced, free_bytes


def images(*size, batch=1):
    return torch.zeros(batch, 3, *size)


def said(caplog):
    return [(r.levelname, r.getMessage()) for r in caplog.records if "memory" in r.getMessage()]


@pytest.fixture
def network(monkeypatch, caplog):
    monkeypatch.setattr(memory, "MOST", 2**30)  # no size is too small for an estimate
    caplog.set_level(logging.DEBUG)
    return create_model(preset="tiny").eval()


@pytest.mark.slow
def test_every_larger_size_is_announced_once(network, monkeypatch, caplog):
    needed = pass_bytes(network, (96, 96), 1)
    monkeypatch.setattr(memory, "free_bytes", lambda device: needed - 1)
    predict = announced(lambda left, right: left[:, 0] + 1, network, "evaluate")
    for size in ((64, 64), (64, 96), (96, 64), (64, 96), (96, 96)):
        assert torch.equal(predict(images(*size), images(*size)), torch.ones(1, *size))
    assert [level for level, _ in said(caplog)] == ["INFO"] * 2 + ["WARNING"]
    assert said(caplog)[2][1].startswith(f"an image of 96 x 96 px needs about {needed / 2**30:.2f} GiB of memory; ")


@pytest.mark.slow
def test_nothing_is_estimated_where_the_largest_network_fits(network, monkeypatch, caplog):
    """An estimate takes seconds, at the start of every run."""
    monkeypatch.undo()
    largest = create_model(encoder="vits", max_disparity=1024).eval()
    assert pass_bytes(largest, (64, 96), 1) < memory.MOST * 64 * 96
    monkeypatch.setattr(memory, "free_bytes", lambda device: memory.MOST * 64 * 96)
    caplog.set_level(logging.DEBUG)
    announced(lambda left, right: left[:, 0], network, "evaluate")(images(64, 96), images(64, 96))
    assert said(caplog) == []


@pytest.mark.parametrize(
    ("verb", "batch", "ways"),
    [
        ("inference", 2, "dataset.infer_dataset.batch_size=1, inference.tile=true"),
        ("inference", 1, "inference.tile=true"),
        ("evaluate", 2, "dataset.test_dataset.batch_size=1"),
        ("evaluate", 1, "smaller images"),
        ("predict", 2, "smaller images (depth_net predict: --scale)"),
    ],
)
def test_too_little_memory_draws_a_warning_with_what_can_be_done(network, monkeypatch, caplog, verb, batch, ways):
    monkeypatch.setattr(memory, "free_bytes", lambda device: 2**20)
    pair = images(64, 96, batch=batch)
    assert announced(lambda left, right: left[:, 0], network, verb)(pair, pair).shape == (batch, 64, 96)
    [(level, text)] = said(caplog)
    assert level == "WARNING" and "0.00 GiB are free" in text and text.endswith(f"To use less memory: {ways}")


def test_an_estimate_that_fails_stops_nothing(caplog, monkeypatch, network):
    predict = announced(lambda left, right: left[:, 0], torch.nn.Linear(1, 1), "inference")
    assert predict(images(64, 96), images(64, 96)).shape == (1, 64, 96)
    assert said(caplog) == [("DEBUG", "the memory estimate failed")]


def test_free_memory_is_some_of_this_machine():
    import os

    assert 2**20 < free_bytes(torch.device("cpu")) < os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
