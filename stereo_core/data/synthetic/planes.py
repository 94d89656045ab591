"""Synthetic stereo scenes with exact sub-pixel disparity and exact occlusion.

A scene is a background plane and a few shapes in front of it, each a slanted plane in disparity space,
d(x, y) = d0 + b * x + c * y over the left image. A surface's texture is piecewise linear along x with knots at whole
pixels of the *right* image: a left pixel (x, y) shows its surface's texture at x - d, which is exactly what linear
interpolation of the right image gives. So warping the right image reproduces the left one to half a grey level
(the rounding of the left image) wherever the pixel is visible.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

SHAPES = 6


@dataclass(frozen=True)
class _Surface:
    """A textured plane over a support in the left image: everything, an ellipse or a rotated rectangle."""

    d0: float
    b: float
    c: float
    texture: np.ndarray  # (H, W + margin, 3) whole grey levels; column k is x = k - margin of the right image
    centre: tuple[float, float] = (0.0, 0.0)
    radii: tuple[float, float] = (0.0, 0.0)
    angle: float = 0.0
    kind: str = "background"

    def disparity(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return self.d0 + self.b * x + self.c * y

    def covers(self, x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.bool_]:
        if self.kind == "background":
            return np.ones(np.broadcast(x, y).shape, bool)
        dx, dy = x - self.centre[0], y - self.centre[1]
        u = (np.cos(self.angle) * dx + np.sin(self.angle) * dy) / self.radii[0]
        v = (np.cos(self.angle) * dy - np.sin(self.angle) * dx) / self.radii[1]
        inside: NDArray[np.bool_] = u * u + v * v <= 1 if self.kind == "ellipse" else np.maximum(abs(u), abs(v)) <= 1
        return inside

    def left_x(self, right_x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """x in the left image of the surface point that the right camera sees at `right_x`."""
        return (right_x + self.d0 + self.c * y) / (1 - self.b)


def make_scene(height: int, width: int, max_disparity: float, seed: int) -> dict[str, np.ndarray]:
    """Render one rectified pair.

    Args:
        height, width: px.
        max_disparity: px; all disparities lie in (0, max_disparity).
        seed: equal seeds give equal scenes.

    Returns:
        left, right: uint8 (H, W, 3), RGB.
        disparity: float32 (H, W), px of the left image, whole thousandths, known everywhere.
        visible: bool (H, W): the right camera sees the left pixel's point, and both right pixels beside it show the
            same surface; False also where the point falls outside the right image.
    """
    rng = np.random.default_rng(seed)
    surfaces = _make_surfaces(height, width, max_disparity, rng)
    margin = surfaces[0].texture.shape[1] - width
    x, y = np.meshgrid(np.arange(width, dtype=np.float64), np.arange(height, dtype=np.float64))

    front = _front(surfaces, [surface.covers(x, y) for surface in surfaces], [s.disparity(x, y) for s in surfaces])
    disparity = np.choose(front, [surface.disparity(x, y) for surface in surfaces])
    # the resolution of an RGB-coded file: the files are as exact as the arrays
    disparity = np.rint(disparity * 1000) / 1000
    right_x = x - disparity
    column = np.floor(right_x).astype(int)
    share = (right_x - column)[..., None]
    textures = np.stack([surface.texture for surface in surfaces])
    rows = y.astype(int)
    before, after = textures[front, rows, column + margin], textures[front, rows, column + 1 + margin]
    left = np.rint((1 - share) * before + share * after).astype(np.uint8)

    right_front = _seen_from_right(surfaces, x, y)
    right = textures[right_front, rows, x.astype(int) + margin].astype(np.uint8)
    return {
        "left": left,
        "right": right,
        "disparity": disparity.astype(np.float32),
        "visible": _visible(surfaces, front, disparity, right_x, y, right_front),
    }


def _front(surfaces: list[_Surface], covered: list[np.ndarray], disparities: list[np.ndarray]) -> np.ndarray:
    """Index of the nearest (largest disparity) surface at each pixel."""
    front: np.ndarray = np.argmax([np.where(c, d, -np.inf) for c, d in zip(covered, disparities, strict=True)], axis=0)
    return front


def _seen_from_right(surfaces: list[_Surface], right_x: np.ndarray, y: np.ndarray) -> np.ndarray:
    points = [surface.left_x(right_x, y) for surface in surfaces]
    covered = [surface.covers(point, y) for surface, point in zip(surfaces, points, strict=True)]
    disparities = [surface.disparity(point, y) for surface, point in zip(surfaces, points, strict=True)]
    return _front(surfaces, covered, disparities)


def _visible(
    surfaces: list[_Surface],
    front: np.ndarray,
    disparity: np.ndarray,
    right_x: np.ndarray,
    y: np.ndarray,
    right_front: np.ndarray,
) -> np.ndarray:
    width = front.shape[1]
    column = np.floor(right_x).astype(int)
    visible: np.ndarray = (right_x >= 0) & (right_x <= width - 1) & (_seen_from_right(surfaces, right_x, y) == front)
    rows = y.astype(int)
    for neighbour in (column, np.where(right_x > column, column + 1, column)):
        visible &= right_front[rows, np.clip(neighbour, 0, width - 1)] == front
    return visible


def _make_surfaces(height: int, width: int, max_disparity: float, rng: np.random.Generator) -> list[_Surface]:
    """A background in the far third of the disparity range and shapes over the rest of it."""
    margin = int(np.ceil(max_disparity)) + 2

    def plane(
        near: float, far: float, cx: float, cy: float, reach_x: float, reach_y: float
    ) -> tuple[float, float, float]:
        """d0, b, c of a plane that stays within (far, near) over its reach around (cx, cy)."""
        middle, swing = (near + far) / 2, (near - far) / 2
        share = rng.uniform(-0.5, 0.5, 2)
        b = np.clip(share[0] * swing / reach_x, -0.4, 0.4)
        c = share[1] * swing / reach_y
        return middle - b * cx - c * cy, b, c

    background = plane(max_disparity * 0.3, max_disparity * 0.04, width / 2, height / 2, width / 2, height / 2)
    surfaces = [_Surface(*background, texture=_texture(height, width + margin, rng))]
    for index in range(SHAPES):
        centre = (rng.uniform(0.1, 1.0) * width, rng.uniform(0.05, 0.95) * height)
        radii = (rng.uniform(0.08, 0.22) * width, rng.uniform(0.08, 0.25) * height)
        reach = float(np.hypot(*radii))
        middle = max_disparity * rng.uniform(0.38, 0.85)
        swing = max_disparity * 0.1
        surfaces.append(
            _Surface(
                *plane(middle + swing, middle - swing, *centre, reach, reach),
                texture=_texture(height, width + margin, rng),
                centre=centre,
                radii=radii,
                angle=rng.uniform(0, np.pi),
                kind=("ellipse", "rectangle")[index % 2],
            )
        )
    return surfaces


def _texture(height: int, width: int, rng: np.random.Generator) -> np.ndarray:
    """Noise of three scales around a colour: structure for a network to match at every level."""
    texture = np.broadcast_to(rng.uniform(70, 185, 3), (height, width, 3)).copy()
    for sigma, strength in ((0.0, 14.0), (1.5, 30.0), (6.0, 25.0)):
        noise: np.ndarray = rng.standard_normal((height, width, 3))
        if sigma:
            noise = cv2.GaussianBlur(noise, (0, 0), sigma)
        texture += strength * noise / noise.std()
    return np.rint(np.clip(texture, 0, 255))
