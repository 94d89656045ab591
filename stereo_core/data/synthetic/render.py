"""Render rich scenes with torch, in batches, on a CPU or a GPU. Shapes: B scenes, S surfaces, M pixels.

First, find the front surface at every pixel of either view. Then draw the right image, whose pixels show their
surface's texture in whole grey levels. A left pixel that both cameras see shows what linear interpolation of the right
image gives at x - d; the others show their own surface's texture, interpolated in the same way. So warping the right
image reproduces the left one to half a grey level wherever both cameras see the pixel.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from stereo_core.data.synthetic.layout import BACKGROUNDS, KINDS, PAINT, SHAPE, Layout
from stereo_core.data.synthetic.textures import LEVELS, SIZE, texture_bank

THOUSANDTHS = 1000  # disparities are whole thousandths of a pixel, as RGB-coded files hold them
Window = tuple[int, int, int, int, int]
_NEWTON_STEPS = 3  # a bent surface's slope is small: the third step ends below a ten-thousandth of a pixel


class Rendered(NamedTuple):
    """B scenes.

    Attributes:
        left_B3HW, right_B3HW: float32, whole grey levels 0..255, RGB.
        disparity_BHW: float32, px of the left image, whole thousandths, known everywhere.
        right_disparity_BHW: float32, px, of the surface at each right pixel.
        visible_BHW: bool: the right camera sees the left pixel's point: both neighbouring right pixels, inside the
            image, show the same surface.
    """

    left_B3HW: Tensor
    right_B3HW: Tensor
    disparity_BHW: Tensor
    right_disparity_BHW: Tensor
    visible_BHW: Tensor


@torch.no_grad()
def render(layouts: Sequence[Layout], height: int, width: int, device: torch.device) -> Rendered:
    """Render scenes of one size; the same layout gives the same pixels on a CPU in any batch."""
    shape_BSP = _to(np.stack([layout.shape for layout in layouts]), device)
    paint_PM = _to(np.concatenate([layout.paint.T for layout in layouts], axis=1), device)
    windows = _windows(layouts, height, width)
    surfaces = {place: _Surface(KINDS[place], shape_BSP[:, place]) for place in windows}
    front_BHW, d_BHW = _seen(surfaces, windows, (len(layouts), height, width), device, right=False)
    right_front_BHW, right_d_BHW = _seen(surfaces, windows, (len(layouts), height, width), device, right=True)
    thousandths = torch.round(d_BHW * THOUSANDTHS).long().clamp_(min=1)
    x_W = torch.arange(width, device=device)
    place = x_W * THOUSANDTHS - thousandths
    column = torch.div(place, THOUSANDTHS, rounding_mode="floor")
    share = (place - column * THOUSANDTHS).float() / THOUSANDTHS
    inside = (place >= 0) & (column + (share > 0) < width)
    beside = [column.clamp(0, width - 1), (column + (share > 0)).clamp(0, width - 1)]
    visible = inside
    for side in beside:
        visible = visible & (right_front_BHW.gather(2, side) == front_BHW)
    right_B3HW = _paint_right(paint_PM, right_front_BHW)
    left_B3HW = torch.lerp(_gather(right_B3HW, beside[0]), _gather(right_B3HW, beside[1]), share[:, None])
    _paint_hidden(left_B3HW, ~visible, paint_PM, front_BHW, column, share)
    return Rendered(left_B3HW.round_(), right_B3HW, thousandths.float() / THOUSANDTHS, right_d_BHW, visible)


def _to(array: np.ndarray, device: torch.device) -> Tensor:
    tensor = torch.from_numpy(array)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor


def _gather(image_B3HW: Tensor, column_BHW: Tensor) -> Tensor:
    return image_B3HW.gather(3, column_BHW[:, None].expand(-1, 3, -1, -1))


def _windows(layouts: Sequence[Layout], height: int, width: int) -> dict[int, Window]:
    """For each surface of any scene: rows and left columns (top, bottom, first, last), and its largest disparity.

    A window covers all scenes of the batch; in the right image it reaches further left by the disparity.
    """
    names = ("top", "bottom", "first", "last", "most")
    table = np.stack([layout.shape[:, [SHAPE.index(name) for name in names]] for layout in layouts])
    present = np.stack([layout.present for layout in layouts])
    windows: dict[int, Window] = {}
    for place in np.flatnonzero(present.any(axis=0)):
        chosen = table[present[:, place], place]
        (top, first), (bottom, last) = chosen[:, [0, 2]].min(axis=0), chosen[:, [1, 3]].max(axis=0)
        rows = max(0, int(top)), min(height, int(min(bottom, height)) + 2)
        columns = int(max(first, 0)), int(min(last, 4 * width)) + 2
        if rows[0] < rows[1] and columns[0] < columns[1]:
            windows[int(place)] = (*rows, *columns, int(chosen[:, 4].max()) + 1)
    return windows


def _seen(
    surfaces: dict[int, _Surface],
    windows: dict[int, Window],
    size: tuple[int, int, int],
    device: torch.device,
    right: bool,
) -> tuple[Tensor, Tensor]:
    """The front surface at each pixel of a view, (B, H, W) int64, and its disparity, px."""
    height, width = size[1:]
    front = torch.zeros(size, dtype=torch.int64, device=device)
    nearest = torch.zeros(size, device=device)
    rows = torch.arange(height, device=device, dtype=torch.float32)[:, None]
    columns = torch.arange(width, device=device, dtype=torch.float32)
    for place, (top, bottom, first, last, most) in windows.items():
        first, last = max(0, first - most if right else first), min(width, last)
        if first >= last:
            continue
        surface, y, x = surfaces[place], rows[top:bottom], columns[first:last]
        if right:
            x = surface.left_x(x, y)
        own = surface.own(x, y)
        d = surface.disparity(x, y, own)
        window = (slice(None), slice(top, bottom), slice(first, last))
        better = surface.covers(*own) & (d > nearest[window])
        nearest[window] = torch.where(better, d, nearest[window])
        front[window].masked_fill_(better, place)
    return front, nearest


class _Surface:
    """One surface in all scenes of a batch; its parameters have shape (B, 1, 1)."""

    def __init__(self, kind: str, shape_BP: Tensor) -> None:
        self.kind = kind
        self.p = dict(zip(SHAPE, shape_BP[:, :, None, None].unbind(1), strict=True))
        self.everywhere = torch.ones((), dtype=torch.bool, device=shape_BP.device)
        self.bulges, self.waves = kind in ("ellipse", "blob", "ring"), kind in ("box", "back")

    def own(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Own coordinates: -1..1 over the outline."""
        p = self.p
        return p["ux"] * x + (p["uy"] * y + p["u1"]), p["vx"] * x + (p["vy"] * y + p["v1"])

    def disparity(self, x: Tensor, y: Tensor, own: tuple[Tensor, Tensor]) -> Tensor:
        d = self.p["b"] * x + (self.p["c"] * y + self.p["d1"])
        return (d + self._bend(*own) if self.bulges or self.waves else d).minimum(self.p["most"])

    def left_x(self, right_x: Tensor, y: Tensor) -> Tensor:
        """x in the left image of the point that the right camera sees at right_x, by Newton's method."""
        p = self.p
        x = (right_x + p["c"] * y + p["d1"]) / (1 - p["b"])
        if not (self.bulges or self.waves):
            return x.minimum(right_x + p["most"])  # the surface is flat where its disparity is clipped
        for _ in range(_NEWTON_STEPS):
            own = self.own(x, y)
            error = x - self.disparity(x, y, own) - right_x
            x = x - error / (1 - p["b"] - self._bend_slope(*own)).clamp_(min=0.3)
        return x

    def _bend(self, u: Tensor, v: Tensor) -> Tensor:
        p = self.p
        return p["bulge"] * (1 - u * u - v * v) if self.bulges else p["wave"] * torch.sin(p["turns"] * u + p["phase"])

    def _bend_slope(self, u: Tensor, v: Tensor) -> Tensor:
        """The derivative of the bend along x, per pixel."""
        p = self.p
        if self.bulges:
            return (-2 * p["bulge"] * p["ux"]) * u + (-2 * p["bulge"] * p["vx"]) * v
        return (p["wave"] * p["turns"] * p["ux"]) * torch.cos(p["turns"] * u + p["phase"])

    def covers(self, u: Tensor, v: Tensor) -> Tensor:
        """Whether the surface covers a point, given in own coordinates."""
        if self.kind in BACKGROUNDS:
            return self.everywhere
        form1, form2, form3 = (self.p[name] for name in ("form1", "form2", "form3"))
        if self.kind == "pole":
            return ((u + form1 * torch.sin(form2 * v + form3)).abs() <= 1) & (v.abs() <= 1)
        if self.kind in ("box", "fence"):
            box = (u.abs() <= 1) & (v.abs() <= 1)
            return box if self.kind == "box" else box & ((u * form1 % 1 < form2) | ((v.abs() - form3).abs() < 0.1))
        square = u * u + v * v
        if self.kind == "blob":
            return square <= (1 + form1 * torch.sin(form2 * torch.atan2(v, u) + form3)) ** 2
        if self.kind == "ring":
            return (square <= 1) & (square >= form1 * form1)
        disc = square <= 1
        return disc & (_holes(u * form1 + form3, v * form1 + form3) > form2) if self.kind == "leaves" else disc


def _holes(u: Tensor, v: Tensor) -> Tensor:
    """The hole channel of the first texture at the nearest texel."""
    row = ((v.floor().int() & (SIZE - 1)) * SIZE) + (u.floor().int() & (SIZE - 1))
    return texture_bank(u.device).texels[:, 3][row]


def _paint_right(paint_PM: Tensor, front_BHW: Tensor) -> Tensor:
    """(B, 3, H, W): what the right camera sees."""
    B, H, W = front_BHW.shape
    surface = _surface_rows(front_BHW).reshape(-1)
    x = torch.arange(W, device=front_BHW.device, dtype=torch.float32).expand(B, H, W).reshape(-1)
    y = torch.arange(H, device=front_BHW.device, dtype=torch.float32)[:, None].expand(B, H, W).reshape(-1)
    return _colour(paint_PM, surface, x, y).reshape(B, H, W, 3).permute(0, 3, 1, 2).contiguous()


def _paint_hidden(
    left_B3HW: Tensor, hidden_BHW: Tensor, paint_PM: Tensor, front_BHW: Tensor, column: Tensor, share: Tensor
) -> None:
    """Paint the pixels hidden from the right camera with their surface's colour, interpolated between its knots."""
    b, y, x = hidden_BHW.nonzero(as_tuple=True)
    surface = _surface_rows(front_BHW)[b, y, x]
    knot, rows, part = column[b, y, x].float(), y.float(), share[b, y, x, None]
    colour = torch.lerp(_colour(paint_PM, surface, knot, rows), _colour(paint_PM, surface, knot + 1, rows), part)
    left_B3HW.permute(0, 2, 3, 1)[b, y, x] = colour


def _surface_rows(front_BHW: Tensor) -> Tensor:
    """The surface's row in the paint table of all scenes."""
    scene = torch.arange(len(front_BHW), device=front_BHW.device)[:, None, None]
    return front_BHW + scene * len(KINDS)


def _colour(paint_PM: Tensor, surface_M: Tensor, x_M: Tensor, y_M: Tensor) -> Tensor:
    """(M, 3) whole grey levels of surfaces at right pixels (x, y)."""
    p = dict(zip(PAINT, paint_PM.index_select(1, surface_M).unbind(0), strict=True))
    d = (p["g0"] + p["gx"] * x_M + p["gy"] * y_M).clamp_(min=0.02)
    u = (p["sx"] * x_M + p["sy"] * y_M + p["s1"]) / d
    v = (p["tx"] * x_M + p["ty"] * y_M + p["t1"]) / d
    # The number of texels per pixel selects the pyramid level without aliasing.
    wide = ((p["sx"] - u * p["gx"]) / d).square() + ((p["tx"] - v * p["gx"]) / d).square()
    high = ((p["sy"] - u * p["gy"]) / d).square() + ((p["ty"] - v * p["gy"]) / d).square()
    step = wide.maximum(high).clamp_(min=1e-12)
    u, v = u + p["s0"], v + p["t0"]
    base = _smooth(p["base"].int(), u, v, step)
    detail = _nearest(p["detail"].int(), u * p["ratio"], v * p["ratio"], step * p["ratio"].square())
    value, hue = torch.lerp(base[:, :2], detail[:, :2], p["share"][:, None]).unbind(1)
    shadow = 1 - p["dark"] * torch.sigmoid(12 * (base[:, 2] - p["shadow"]))
    shade = (p["shade_1"] + p["shade_x"] * x_M + p["shade_y"] * y_M).clamp_(0.3, 1.5) * shadow
    channels = [
        (p[colour] + p[light] * value + p[tint] * hue) * shade
        for colour, light, tint in zip(PAINT[15:18], PAINT[18:21], PAINT[21:24], strict=True)
    ]
    return torch.stack(channels, dim=1).round_().clamp_(0, 255)


def _level(step_squared: Tensor) -> Tensor:
    """The pyramid level for a squared step in texels."""
    return (0.5 * torch.log2(step_squared)).round_().clamp_(0, LEVELS - 1).int()


def _nearest(texture: Tensor, u: Tensor, v: Tensor, step_squared: Tensor) -> Tensor:
    bank = texture_bank(u.device)
    level = _level(step_squared)
    side = SIZE >> level
    scale = torch.exp2(-level.float())
    column, row = (u * scale).floor().int() & (side - 1), (v * scale).floor().int() & (side - 1)
    return bank.texels.index_select(0, bank.starts[level] + (texture * side + row) * side + column)


def _smooth(texture: Tensor, u: Tensor, v: Tensor, step_squared: Tensor) -> Tensor:
    """Bilinear interpolation within a level."""
    bank = texture_bank(u.device)
    level = _level(step_squared)
    side, scale = SIZE >> level, torch.exp2(-level.float())
    u, v = u * scale - 0.5, v * scale - 0.5
    column, row = u.floor(), v.floor()
    right, down = (u - column)[:, None], (v - row)[:, None]
    column, row = column.int(), row.int()
    start = bank.starts[level] + texture * side * side
    rows = [start + ((row + i) & (side - 1)) * side for i in (0, 1)]
    columns = [(column + j) & (side - 1) for j in (0, 1)]
    upper, lower = (
        torch.lerp(
            bank.texels.index_select(0, line + columns[0]), bank.texels.index_select(0, line + columns[1]), right
        )
        for line in rows
    )
    return torch.lerp(upper, lower, down)
