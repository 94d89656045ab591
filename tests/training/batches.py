"""Batches made by hand for a training of the tiny network, and its weights."""

from __future__ import annotations

import math

import torch

MODEL = {"preset": "tiny", "train_iters": 1, "valid_iters": 1, "stereo_backbone": {"allow_random_backbone": True}}


def make_batch(seed: int, spoilt: bool = False) -> dict:
    generator = torch.Generator().manual_seed(seed)
    left = torch.rand(1, 3, 32, 64, generator=generator) * 255
    if spoilt:
        left[0, 1, 5, 7] = math.nan
    disparity = torch.rand(1, 1, 32, 64, generator=generator) * 20
    return {"left": left, "right": left.flip(2), "disparity": disparity, "valid": disparity > 1,
            "index": torch.tensor([seed]), "source": torch.tensor([0]), "path": [f"pair{seed}.png"]}  # fmt: skip


def copied(module) -> dict:
    return {name: value.clone() for name, value in module.state_dict().items()}
