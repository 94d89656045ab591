"""What tests of training runs share."""

from __future__ import annotations

from pathlib import Path

import torch
from torch.utils._pytree import keystr, tree_flatten_with_path

from stereo_core.run.perform import perform
from stereo_core.spec import spec_from_dict

MODEL = {"preset": "tiny", "train_iters": 1, "valid_iters": 1, "stereo_backbone": {"allow_random_backbone": True}}

LOWER_LAST = {"lr_steps": [3]}
"""`optim` of a run of two epochs, two steps each, whose last step has a lower rate."""


def start(dataset: dict, settings: dict, on_outcome=None) -> int:
    """Run a training of the tiny network; returns its exit code."""
    spec = spec_from_dict("train", {"dataset": dataset, "model": MODEL, "train": settings})
    return perform("train", spec, on_outcome=on_outcome)


def checkpoints(folder: Path) -> list[str]:
    """The names of a training's checkpoints."""
    return sorted(path.name for path in folder.glob("model_epoch_*.pth"))


def load(path):
    return torch.load(path, map_location="cpu", weights_only=True)


def assert_same(one: dict, other: dict) -> None:
    """Two checkpoints agree in every bit of what training goes on from."""
    assert (one["epoch"], one["global_step"]) == (other["epoch"], other["global_step"])
    parts = ("state_dict", "optimizer_states", "lr_schedulers", "ema_state_dict", "rng")
    leaves = [tree_flatten_with_path([c.get(part) for part in parts])[0] for c in (one, other)]
    for (name, value), (_, same) in zip(*leaves, strict=True):
        assert torch.equal(value, same) if isinstance(value, torch.Tensor) else value == same, keystr(name)
