"""What is left of a training step whose loss or gradient is NaN or infinite."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor

from stereo_core.files import atomic_path
from stereo_core.values import plain


class NonFiniteLossError(RuntimeError):
    """A loss, its gradient or a validation became NaN or infinite: the run is lost from here on and stops."""


def write_step(folder: Path, name: str, batch: dict, facts: dict, gradients: Iterable[tuple[str, Tensor]]) -> Path:
    """Write the step's inputs as `<name>.pth` (read by `torch.load(..., weights_only=True)`) and what is known of it as
    `<name>.json`: the facts, each input's range and share of finite values, the gradients that are not finite.

    Returns:
        The path of the .json.
    """
    path = folder / f"{name}.json"
    inputs = {key: value.cpu() if isinstance(value, Tensor) else value for key, value in batch.items()}
    with atomic_path(path.with_suffix(".pth")) as temporary:
        torch.save(inputs, temporary)
    report = facts | {
        "index": inputs.get("index"),
        "path": inputs.get("path"),
        "inputs": {key: statistics(value) for key, value in inputs.items() if isinstance(value, Tensor)},
        "nonfinite_gradients": [key for key, value in gradients if not torch.isfinite(value).all()],
    }
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(plain(report), indent=2) + "\n", encoding="utf-8")
    return path


def statistics(values: Tensor) -> dict:
    """Shape, share of finite values (0..1), and least, mean and largest of those."""
    finite = values[torch.isfinite(values)].double()
    found = {"shape": list(values.shape), "finite": finite.numel() / max(1, values.numel())}
    if finite.numel():
        found |= {"min": finite.min(), "mean": finite.mean(), "max": finite.max()}
    return found
