"""Fixtures of the model tests."""

from __future__ import annotations

from pathlib import Path

import parity
import pytest
import torch

from stereo_core.models import create_model


@pytest.fixture(scope="session")
def fill(shared: Path):
    return parity.load(shared, "fill")


@pytest.fixture(scope="session")
def weights(fill) -> dict:
    """The deterministic state dict of vits, variant nvlabs: a pure function of its names and shapes."""
    with torch.device("meta"):
        model = create_model(encoder="vits")
    return fill.deterministic_state_dict(model, 0)


@pytest.fixture(scope="session")
def pair(shared: Path):
    return parity.load(shared, "pair")


@pytest.fixture(scope="session")
def golden(shared: Path):
    """Name of a golden file without suffix -> the golden."""
    reader = parity.load(shared, "golden_io")
    return lambda name: reader.Golden(shared / "model" / "golden" / f"{name}.npz")


@pytest.fixture
def tiny():
    torch.manual_seed(0)
    return create_model(preset="tiny").eval()


def images(height: int, width: int, batch: int = 1, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Random smooth pair, the right image moved by 4 px."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(batch, 3, height // 8 + 2, width // 8 + 3, generator=generator) * 255
    wide = torch.nn.functional.interpolate(coarse, size=(height, width + 4), mode="bicubic").clamp(0, 255)
    return wide[..., :width].contiguous(), wide[..., 4:].contiguous()


@pytest.fixture(name="images")
def images_fixture():
    return images
