"""A bank of tileable textures, from smooth to busy, with mip pyramid, for the surfaces of rich scenes.

Every texel has four channels: the texture's value (mean 0, standard deviation 1 at the finest level), an independent
value for colour, one for soft shadows and one for holes (leaves). Made from a fixed seed, without photographs.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

COUNT = 36
SIZE = 256  # texels a side at the finest level
LEVELS = 7
CHANNELS = 4
_SEED = 20240601


class Bank(NamedTuple):
    """All texels in one table, ordered by level, texture and row."""

    texels: Tensor  # (sum over levels of COUNT * (SIZE >> level)**2, CHANNELS) float32
    starts: Tensor  # (LEVELS,) int32, the first row of each level


@lru_cache(maxsize=4)
def texture_bank(device: torch.device) -> Bank:
    """The bank on a device."""
    texels = torch.from_numpy(_all_levels()).to(device)
    counts = [COUNT * (SIZE >> level) ** 2 for level in range(LEVELS)]
    return Bank(texels, torch.tensor(np.cumsum([0, *counts[:-1]]), device=device, dtype=torch.int32))


@lru_cache(maxsize=1)
def _all_levels() -> NDArray[np.float32]:
    rng = np.random.default_rng(_SEED)
    finest = np.stack([_texture(index, rng) for index in range(COUNT)]).astype(np.float32)
    levels = [finest]
    for _ in range(LEVELS - 1):
        side = levels[-1].shape[1] // 2
        levels.append(levels[-1].reshape(COUNT, side, 2, side, 2, CHANNELS).mean((2, 4)))
    return np.concatenate([level.reshape(-1, CHANNELS) for level in levels])


def _texture(index: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """(SIZE, SIZE, CHANNELS): the value from the kinds in turn, the other channels noise."""
    value = _KINDS[index % len(_KINDS)](rng)
    colour = _noise(rng, rng.uniform(1.0, 2.5))
    if rng.random() < 0.5:
        colour = _flatten(colour, rng)
    return np.stack([_normal(value), _normal(colour), _noise(rng, 2.2), _band(rng, 3, 24)], axis=-1)


def _normal(values: NDArray[np.float64]) -> NDArray[np.float64]:
    normal: NDArray[np.float64] = np.clip((values - values.mean()) / (values.std() + 1e-9), -3, 3)
    return normal


def _spectrum(rng: np.random.Generator, gain: NDArray[np.float64]) -> NDArray[np.float64]:
    """Tileable noise with the given gain per frequency."""
    white = np.fft.rfft2(rng.standard_normal((SIZE, SIZE)))
    return _normal(np.fft.irfft2(white * gain, s=(SIZE, SIZE)))


def _frequency() -> NDArray[np.float64]:
    """Cycles per tile of each rfft2 coefficient; the constant one counts as 1 to avoid division by zero."""
    y, x = np.fft.fftfreq(SIZE) * SIZE, np.fft.rfftfreq(SIZE) * SIZE
    frequency: NDArray[np.float64] = np.maximum(np.hypot(y[:, None], x[None]), 1)
    return frequency


def _noise(rng: np.random.Generator, power: float) -> NDArray[np.float64]:
    """Noise whose amplitude falls as frequency**-power: about 1 in photographs, about 2 in clouds."""
    return _spectrum(rng, _frequency() ** -power)


def _band(rng: np.random.Generator, low: float, high: float) -> NDArray[np.float64]:
    frequency = _frequency()
    return _spectrum(rng, (frequency >= low) * (frequency <= high) / frequency)


def _flatten(values: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.float64]:
    """A few levels with sharp edges between them."""
    return np.digitize(values, np.sort(rng.uniform(-1.2, 1.2, rng.integers(1, 5)))).astype(float)


def _photograph(rng: np.random.Generator) -> NDArray[np.float64]:
    return _noise(rng, rng.uniform(0.8, 1.4))


def _cloud(rng: np.random.Generator) -> NDArray[np.float64]:
    return _noise(rng, rng.uniform(1.5, 2.2))


def _grain(rng: np.random.Generator) -> NDArray[np.float64]:
    return _normal(_noise(rng, rng.uniform(0.2, 0.7))) + _normal(_noise(rng, 1.5))


def _patches(rng: np.random.Generator) -> NDArray[np.float64]:
    return _normal(_flatten(_noise(rng, rng.uniform(1.2, 1.8)), rng)) + 0.2 * _noise(rng, 0.8)


def _spots(rng: np.random.Generator) -> NDArray[np.float64]:
    low = rng.uniform(5, 30)
    return (_band(rng, low, 2 * low) > rng.uniform(0.3, 1.2)) + 0.1 * _noise(rng, 1.0)


def _lines(rng: np.random.Generator) -> NDArray[np.float64]:
    """Stripes, planks or bricks with signs of wear."""
    y, x = np.mgrid[0:SIZE, 0:SIZE] / SIZE
    across = (y * rng.choice([4, 8, 16, 32])) % 1
    along = (x * rng.choice([2, 4, 8, 16]) + 0.5 * np.floor(y * 8 % 2)) % 1
    width = rng.uniform(0.06, 0.5)
    kind = rng.integers(3)
    marks = (across < width) if kind == 0 else (across < width / 2) | (along < width / 3)
    if kind == 2:
        marks = (across < 0.5) ^ (along < 0.5)
    pattern: NDArray[np.float64] = marks + rng.uniform(0.05, 0.6) * _noise(rng, 1.0)
    return pattern


def _brushed(rng: np.random.Generator) -> NDArray[np.float64]:
    """Wood, metal, grass: noise that is long in one direction."""
    y, x = np.abs(np.fft.fftfreq(SIZE) * SIZE), np.fft.rfftfreq(SIZE) * SIZE
    stretched = np.maximum(np.hypot(y[:, None], x[None] * rng.uniform(4, 20)), 1)
    return _spectrum(rng, stretched ** -rng.uniform(0.8, 1.3))


def _marks(rng: np.random.Generator) -> NDArray[np.float64]:
    """Print, posters, shelves: overlapping rectangles of every size."""
    values = np.zeros((SIZE, SIZE))
    for size in np.geomspace(96, 3, 160):
        height, width = (int(max(1, size * rng.uniform(0.2, 1))) for _ in range(2))
        y, x = rng.integers(0, SIZE - height), rng.integers(0, SIZE - width)
        values[y : y + height, x : x + width] = rng.normal()
    return values + 0.1 * _noise(rng, 1.0)


_KINDS = (_photograph, _patches, _cloud, _lines, _grain, _marks, _photograph, _brushed, _spots)
