"""Differences between two cameras: defocus, highlights, exposure, gamma, noise and a rectification error.

The disparity stays the same, but the warped right image no longer equals the left one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from stereo_core.data.synthetic.render import Rendered

HIGHLIGHTS = 3
BLUR = 7  # px, taps of the largest blur
_PER_VIEW = ("gain_r", "gain_g", "gain_b", "gamma", "noise", "soft", "defocus", "sigma", "vignette")
_SHARED = ("grey", "focus", "depth", "offset", "turn")


def photograph(scenes: Rendered, rngs: Sequence[np.random.Generator], strength: float) -> tuple[Tensor, Tensor]:
    """Both views as two different cameras take them, float32 (B, 3, H, W), 0..255.

    Args:
        scenes: B of them.
        rngs: one per scene, so that the result does not depend on the batch.
        strength: 1 for the differences found in the usual data sets, 0 for no change.
    """
    if not strength:
        return scenes.left_B3HW, scenes.right_B3HW
    device = scenes.left_B3HW.device
    views = (scenes.left_B3HW, scenes.disparity_BHW), (scenes.right_B3HW, scenes.right_disparity_BHW)
    drawn = [_draw(rng, strength) for rng in rngs]
    shared = _columns(_SHARED, [values["shared"] for values in drawn], device)
    lights = torch.tensor(np.stack([values["lights"] for values in drawn]), dtype=torch.float32, device=device)
    images = []
    for side, (image_B3HW, disparity_BHW) in enumerate(views):
        own = _columns(_PER_VIEW, [values["views"][side] for values in drawn], device)
        image = _highlight(image_B3HW, lights[:, side])
        image = torch.lerp(image, image.mean(1, keepdim=True), shared["grey"])
        image = _blur(image, disparity_BHW[:, None], own, shared)
        if side:
            image = _shift_rows(image, shared)
        image = _expose(image, own)
        noise = _noise(image.shape, [int(rng.integers(2**62)) for rng in rngs], device)
        images.append((image + noise * own["noise"] * (0.3 + image / 255).sqrt()).round_().clamp_(0, 255))
    return images[0], images[1]


def _draw(rng: np.random.Generator, strength: float) -> dict[str, np.ndarray]:
    """One scene's random numbers: shared by both cameras, of each camera, and the highlights (side, x, y, size,
    power)."""
    common_gain, common_gamma = rng.normal(0, 0.2), rng.normal(0, 0.15)
    noise, soft, defocus = rng.exponential(2.0), rng.uniform(0, 0.8), rng.exponential(0.4)
    differ = strength * rng.choice([0.2, 1.0])
    views = []
    for _ in range(2):
        gain = np.exp(strength * common_gain + differ * (rng.normal(0, 0.08) + rng.normal(0, 0.03, 3)))
        gamma = np.exp(strength * common_gamma + differ * rng.normal(0, 0.08))
        lens = strength * soft * rng.uniform(0.6, 1.2), strength * defocus, rng.uniform(0.5, 1.6)
        views.append([*gain, gamma, strength * noise, *lens, differ * rng.exponential(0.15)])
    places = np.repeat(rng.uniform(-1, 1, (1, HIGHLIGHTS, 2)), 2, axis=0)
    places[1, :, 0] -= rng.uniform(0, 0.3, HIGHLIGHTS)
    size = np.repeat(np.exp(rng.uniform(-4, -1, (1, HIGHLIGHTS, 1))), 2, axis=0)
    power = strength * rng.choice([0, 1], (1, HIGHLIGHTS, 1), p=[0.6, 0.4]) * rng.uniform(20, 200, (2, HIGHLIGHTS, 1))
    offset, turn = strength * rng.choice([0, 1]) * rng.normal(0, [0.35, 0.15])
    shared = [rng.random() < 0.25 * strength, rng.uniform(0, 1), rng.uniform(0.3, 1.5), offset, turn]
    return {
        "views": np.array(views),
        "shared": np.array(shared, float),
        "lights": np.concatenate([places, size, power], axis=2),
    }


def _columns(names: Sequence[str], rows: Sequence[np.ndarray], device: torch.device) -> dict[str, Tensor]:
    """Each number as a tensor over all scenes, (B, 1, 1, 1)."""
    table = torch.tensor(np.stack(rows), dtype=torch.float32).to(device, non_blocking=True)
    return dict(zip(names, table[:, :, None, None, None].unbind(1), strict=True))


def _axes(image_B3HW: Tensor) -> tuple[Tensor, Tensor]:
    """x (W,) and y (H, 1), both -1..1."""
    H, W = image_B3HW.shape[-2:]
    make: dict[str, Any] = {"device": image_B3HW.device, "dtype": torch.float32}
    return torch.linspace(-1, 1, W, **make), torch.linspace(-1, 1, H, **make)[:, None]


def _highlight(image_B3HW: Tensor, lights_BL4: Tensor) -> Tensor:
    """Highlights that the cameras see in different places, as on a polished surface."""
    x, y = _axes(image_B3HW)
    cx, cy, size, power = lights_BL4[..., None].unbind(2)
    across = torch.exp(-(((x - cx) / size) ** 2))
    down = power * torch.exp(-(((y[:, 0] - cy) / size) ** 2))
    return image_B3HW + torch.einsum("blh,blw->bhw", down, across)[:, None]


def _blur(image_B3HW: Tensor, disparity_B1HW: Tensor, own: dict[str, Tensor], shared: dict[str, Tensor]) -> Tensor:
    """Blur by the lens; it grows with the distance from the focused disparity."""
    nearest = disparity_B1HW.amax((2, 3), keepdim=True)
    out = (disparity_B1HW / nearest - shared["focus"]).abs() / shared["depth"]
    return torch.lerp(
        image_B3HW, _gaussian(image_B3HW, own["sigma"]), (own["soft"] + own["defocus"] * out).clamp(max=1)
    )


def _gaussian(image_B3HW: Tensor, sigma_B111: Tensor) -> Tensor:
    B, C, H, W = image_B3HW.shape
    taps = torch.arange(BLUR, device=image_B3HW.device) - BLUR // 2
    kernel = torch.softmax(-0.5 * (taps / sigma_B111) ** 2, dim=3).expand(B, C, 1, BLUR).reshape(B * C, 1, 1, BLUR)
    half = BLUR // 2
    planes = F.pad(image_B3HW, (half,) * 4, mode="replicate").reshape(1, B * C, H + 2 * half, W + 2 * half)
    planes = F.conv2d(planes, kernel, groups=B * C)
    return F.conv2d(planes, kernel.transpose(2, 3), groups=B * C).reshape(B, C, H, W)


def _shift_rows(image_B3HW: Tensor, shared: dict[str, Tensor]) -> Tensor:
    """Move the image up or down by a fraction of a pixel that varies along the rows."""
    x, _ = _axes(image_B3HW)
    shift = shared["offset"] + shared["turn"] * x
    above, below = (torch.roll(image_B3HW, step, dims=2) for step in (1, -1))
    return torch.lerp(image_B3HW, torch.where(shift > 0, above, below), shift.abs().clamp(max=1))


def _expose(image_B3HW: Tensor, own: dict[str, Tensor]) -> Tensor:
    x, y = _axes(image_B3HW)
    gain = torch.cat([own["gain_r"], own["gain_g"], own["gain_b"]], dim=1)
    return 255 * (image_B3HW / 255).clamp(min=0) ** own["gamma"] * (gain * (1 - own["vignette"] * (x * x + y * y) / 2))


def _noise(shape: torch.Size, seeds: Sequence[int], device: torch.device) -> Tensor:
    made = [torch.Generator(device).manual_seed(seed) for seed in seeds]
    return torch.stack([torch.randn(shape[1:], generator=generator, device=device) for generator in made])
