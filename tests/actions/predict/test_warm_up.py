"""A GPU is started beside the reading of weights; what goes wrong there is left to its caller."""

from __future__ import annotations

import logging
import subprocess
import sys
import threading

import pytest
import torch

from stereo_core.actions.predict.warm_up import warmed_up

MISSING = 99  # the index of a GPU that no machine has


class BrokenError(Exception):
    """What a test breaks with."""


def test_an_error_of_the_thread_is_neither_raised_nor_shown(monkeypatch, caplog):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: MISSING + 1)
    with caplog.at_level(logging.DEBUG), warmed_up(MISSING, "auto"):
        pass
    [record] = [one for one in caplog.records if "warming up" in one.getMessage()]
    assert record.levelno == logging.DEBUG and record.exc_info


def test_the_thread_ends_with_the_block_even_if_that_fails(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: MISSING + 1)
    before = threading.enumerate()
    with pytest.raises(BrokenError), warmed_up(MISSING, "fp32"):
        raise BrokenError
    assert threading.enumerate() == before


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["auto", "fp32"])
def test_cudnn_is_loaded_afterwards(precision):
    """In a process of its own, because the other tests load it too."""
    code = f"""
import torch
from pathlib import Path
from stereo_core.actions.predict.warm_up import warmed_up
def loaded():
    return "libcudnn_engines" in Path("/proc/self/maps").read_text()
assert not loaded() and not torch.cuda.is_initialized()
with warmed_up(0, {precision!r}):
    pass
assert loaded() and torch.cuda.is_initialized()
"""
    subprocess.run([sys.executable, "-c", code], check=True)
