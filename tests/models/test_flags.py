"""PyTorch's switches hold for the whole process: a verb leaves them as it found them."""

from __future__ import annotations

import pytest
import torch
from torch.backends import cudnn
from torch.utils import deterministic

from stereo_core.models.flags import kept


def switches() -> dict:
    return {
        "cudnn.benchmark": cudnn.benchmark,
        "cudnn.deterministic": cudnn.deterministic,
        "cudnn.allow_tf32": cudnn.allow_tf32,
        "matrix products": torch.get_float32_matmul_precision(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "warn only": torch.is_deterministic_algorithms_warn_only_enabled(),
        "fill": deterministic.fill_uninitialized_memory,
        "threads": torch.get_num_threads(),
    }


def change_all() -> None:
    for name in ("benchmark", "deterministic", "allow_tf32"):
        setattr(cudnn, name, not getattr(cudnn, name))
    torch.set_float32_matmul_precision("medium" if torch.get_float32_matmul_precision() != "medium" else "high")
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(not torch.are_deterministic_algorithms_enabled(), warn_only=not warn_only)
    deterministic.fill_uninitialized_memory = not deterministic.fill_uninitialized_memory
    torch.set_num_threads(torch.get_num_threads() + 1)


def test_every_switch_is_set_back():
    before = switches()
    with kept():
        change_all()
        assert not [name for name, value in switches().items() if value == before[name]]
    assert switches() == before


def test_they_are_set_back_after_an_error_too():
    before = switches()
    with pytest.raises(OSError), kept():
        change_all()
        raise OSError
    assert switches() == before
