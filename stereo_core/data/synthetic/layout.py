"""The surfaces of a rich scene: their parameters, drawn with NumPy from one seed.

A surface is defined in disparity space: d(x, y) = d0 + b (x - x0) + c (y - y0), plus a bend over its outline; x and y
are px of the left image. Backgrounds fill the view: a back wall; in rooms and on roads also a floor, side walls and a
ceiling in perspective. Up to OBJECTS objects stand in front of them, with the outlines in turn. Where surfaces
intersect, the nearest is visible.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from stereo_core.data.synthetic.textures import COUNT, SIZE

BACKGROUNDS = ("back", "floor", "ceiling", "wall", "wall")
OUTLINES = ("ellipse", "box", "pole", "blob", "fence", "ring", "leaves", "box", "pole")
OBJECTS = 36
KINDS = BACKGROUNDS + tuple(OUTLINES[i % len(OUTLINES)] for i in range(OBJECTS))  # kind of the surface at each index

SHAPE = (
    *("ux", "uy", "u1", "vx", "vy", "v1"),  # own coordinates: u = ux x + uy y + u1, v likewise; -1..1 over the outline
    *("b", "c", "d1"),  # disparity without the bend: b x + c y + d1, px
    *("bulge", "wave", "turns", "phase", "most"),  # parameters of the bend, px; `most`: upper limit
    *("form1", "form2", "form3"),  # their meaning depends on the outline
    *("top", "bottom", "first", "last"),  # bounding rows and columns in the left image
)
PAINT = (
    *("g0", "gx", "gy"),  # disparity over the right image, without the bend
    *("sx", "sy", "s1", "tx", "ty", "t1", "s0", "t0"),  # texture coordinates of a right pixel, texels
    *("base", "detail", "ratio", "share"),  # two textures, the finer one's scale and share
    *("red", "green", "blue", "light_r", "light_g", "light_b", "hue_r", "hue_g", "hue_b"),  # colour and contrasts
    *("shade_1", "shade_x", "shade_y", "shadow", "dark"),
)


_DRAWN = ("x0", "y0", "cos", "sin", "rx", "ry", "d0")  # centre (px), rotation, radii (px) and disparity at the centre


@dataclass(frozen=True)
class Layout:
    """The surfaces of one scene, each at the index of its kind.

    Attributes:
        present: bool (len(KINDS),).
        shape: float32 (len(KINDS), len(SHAPE)).
        paint: float32 (len(KINDS), len(PAINT)).
    """

    present: np.ndarray
    shape: np.ndarray
    paint: np.ndarray


def draw_layout(height: int, width: int, nearest: float, rng: np.random.Generator) -> Layout:
    """A scene of height x width px whose disparities lie in (0, nearest)."""
    values = {name: np.zeros(len(KINDS)) for name in _DRAWN + SHAPE + PAINT}
    values["cos"] += 1
    values["most"] += 0.999 * nearest
    present = np.zeros(len(KINDS), bool)
    stage = _draw_backgrounds(values, present, height, width, nearest, rng)
    _draw_objects(values, present, height, width, nearest, stage, rng)
    _derive(values)
    _map_textures(values, height, width, rng)
    _draw_colours(values, height, width, rng)
    values["d1"][~present] = -1e6  # behind everything: a batch draws a surface if any of its scenes has it
    table = {names: np.stack([values[name] for name in names], axis=1).astype(np.float32) for names in (SHAPE, PAINT)}
    return Layout(present, table[SHAPE], table[PAINT])


@dataclass(frozen=True)
class _Stage:
    far: float  # disparity at the centre of the back wall, px
    horizon: float | None  # row where the floor vanishes; None without a floor
    fall: float  # increase of the floor's disparity per row


def _draw_backgrounds(
    values: dict[str, np.ndarray],
    present: np.ndarray,
    height: int,
    width: int,
    nearest: float,
    rng: np.random.Generator,
) -> _Stage:
    """A wall that fills the view, a room, or a road under a sky."""
    cx, cy = width / 2, height / 2
    _set(values, slice(0, 5), x0=cx, y0=cy, rx=cx, ry=cy, bottom=height, first=-1e9, last=1e9)
    present[0] = True
    kind = rng.choice(["wall", "room", "road"], p=[0.4, 0.25, 0.35])
    if kind == "wall":
        far = nearest * _log_uniform(rng, 0.06, 0.7)
        swing = min(far, nearest - far) * rng.uniform(-0.45, 0.45, 2)
        bulge = rng.choice([0, 1]) * min(0.1 * far, 0.03 * width)
        _set(values, 0, d0=far, b=np.clip(swing[0] / cx, -0.4, 0.4), c=swing[1] / cy, wave=bulge)
        _set(values, 0, turns=rng.uniform(1, 3), phase=rng.uniform(0, 6.3))
        return _Stage(far, None, 0.0)
    road = kind == "road"
    far = nearest * (_log_uniform(rng, 0.005, 0.08) if road else _log_uniform(rng, 0.1, 0.4))
    horizon, vanishing = height * rng.uniform(0.2, 0.58), width * rng.uniform(0.25, 0.75)
    fall = nearest * rng.uniform(0.4, 1) / (height - horizon)
    _set(values, 0, d0=far, b=rng.uniform(-0.2, 0.2) * far / cx)
    _set(values, 1, d0=fall * (cy - horizon), c=fall, b=fall * rng.normal() * 0.03)
    rise = nearest * rng.uniform(0.3, 1) / horizon
    _set(values, 2, d0=rise * (horizon - cy), c=-rise)
    left = min(0.7, nearest * rng.uniform(0.2, 1) / vanishing)
    right = min(0.7, nearest * rng.uniform(0.2, 1) / (width - vanishing))
    _set(values, 3, d0=left * (vanishing - cx), b=-left)
    _set(values, 4, d0=right * (cx - vanishing), b=right)
    present[1:5] = [True, rng.random() < (0.05 if road else 0.5), *(rng.random(2) < 0.45)]
    return _Stage(far, horizon, fall)


def _draw_objects(
    values: dict[str, np.ndarray],
    present: np.ndarray,
    height: int,
    width: int,
    nearest: float,
    stage: _Stage,
    rng: np.random.Generator,
) -> None:
    objects = slice(len(BACKGROUNDS), None)
    kinds = np.array(KINDS[objects])
    present[objects] = rng.random(OBJECTS) < rng.choice([rng.uniform(0.05, 0.4), rng.uniform(0.4, 1)])
    d0 = stage.far * (0.97 * nearest / stage.far) ** rng.uniform(0.02, 1, OBJECTS) ** rng.choice([0.7, 1, 1.6])
    size = height * _log_uniform(rng, 0.03, 0.4, OBJECTS) * (d0 / nearest) ** rng.uniform(0, 0.6)
    aspect = _log_uniform(rng, 0.4, 2.5, OBJECTS)
    rx, ry = size * np.sqrt(aspect), size / np.sqrt(aspect)
    pole = kinds == "pole"
    rx = np.where(pole, _log_uniform(rng, 0.6, 6, OBJECTS) * height / 384, rx)
    ry = np.where(pole, height * _log_uniform(rng, 0.08, 0.8, OBJECTS), ry)
    turn = rng.uniform(-np.pi, np.pi, OBJECTS) * rng.choice([0, 0.05, 1], OBJECTS)
    x0 = rng.uniform(-0.05, 1.05, OBJECTS) * width + rng.uniform(0, 1, OBJECTS) * d0
    y0 = rng.uniform(-0.05, 1.05, OBJECTS) * height
    if stage.horizon is not None:
        stands = rng.random(OBJECTS) < 0.6
        y0 = np.where(stands, stage.horizon + d0 / stage.fall - ry, y0)
    reach = np.maximum(rx, ry)
    tilt = np.minimum(0.3, 0.25 * d0 / reach) * rng.uniform(-1, 1, (2, OBJECTS)) * rng.choice([0, 1], OBJECTS)
    least = np.minimum(rx, ry)
    bent = np.isin(kinds, ("ellipse", "blob", "ring"))
    bulge = np.where(bent, rng.uniform(0, 1, OBJECTS) * np.minimum(0.15 * least, 0.2 * d0), 0)
    turns = rng.uniform(1, 5, OBJECTS)
    wave = np.where(kinds == "box", rng.choice([0, 1], OBJECTS) * np.minimum(0.25 * rx / turns, 0.1 * d0), 0)
    _set(values, objects, x0=x0, y0=y0, cos=np.cos(turn), sin=np.sin(turn), rx=rx, ry=ry, d0=d0, b=tilt[0], c=tilt[1])
    _set(values, objects, bulge=bulge, wave=wave, turns=turns, phase=rng.uniform(0, 6.3, OBJECTS))
    form1, form2, form3 = _draw_forms(kinds, d0, rng)
    _set(values, objects, form1=form1, form2=form2, form3=form3)
    # A pole sways by form1 times its radius; a blob reaches 1.5 radii.
    wide = np.where(pole, 1 + form1, np.where(kinds == "blob", 1.5, 1)) * rx
    high = np.where(kinds == "blob", 1.5, 1) * ry
    half_x = abs(np.cos(turn)) * wide + abs(np.sin(turn)) * high + 1
    half_y = abs(np.sin(turn)) * wide + abs(np.cos(turn)) * high + 1
    _set(values, objects, top=y0 - half_y, bottom=y0 + half_y, first=x0 - half_x, last=x0 + half_x)


def _draw_forms(
    kinds: np.ndarray, d0: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The three numbers of each outline; see `render._covers`."""
    count = len(kinds)
    form = rng.uniform(0, 1, (3, count))
    scales = {  # outline: (low, high) of each parameter
        "pole": ((0, 3), (0.5, 3), (0, 6.3)),  # sway, its turns, its phase
        "blob": ((0.1, 0.5), (2, 9), (0, 6.3)),  # depth of the lobes, their number, their phase
        "fence": ((2, 16), (0.15, 0.6), (0, 1)),  # number of bars, their share, with or without rails
        "ring": ((0.3, 0.95), (0, 1), (0, 1)),  # inner radius
        "leaves": ((20, 120), (-0.6, 0.8), (0, 200)),  # texels per radius, threshold, position in the texture
    }
    for kind, ranges in scales.items():
        low, high = np.array(ranges).T
        chosen = kinds == kind
        form[:, chosen] = low[:, None] + (high - low)[:, None] * form[:, chosen]
    # the outline closes only with a whole number of lobes
    form[1] = np.where(kinds == "blob", np.round(form[1]), form[1])
    return form[0], form[1], form[2]


def _derive(values: dict[str, np.ndarray]) -> None:
    """Compute the linear forms that `render` uses."""
    x0, y0, rx, ry = (values[name] for name in ("x0", "y0", "rx", "ry"))
    ux, uy, vx, vy = values["cos"] / rx, values["sin"] / rx, -values["sin"] / ry, values["cos"] / ry
    _set(values, slice(None), ux=ux, uy=uy, u1=-(ux * x0 + uy * y0), vx=vx, vy=vy, v1=-(vx * x0 + vy * y0))
    _set(values, slice(None), d1=values["d0"] - values["b"] * x0 - values["c"] * y0)


def _map_textures(values: dict[str, np.ndarray], height: int, width: int, rng: np.random.Generator) -> None:
    """Compute texture coordinates on each surface as the right camera sees it, in true perspective.

    With focal length f and centre (cx, cy), the surface point at a pixel is (x - cx, y - cy, f) / d up to a factor,
    and the plane's normal is (b f, c f, d(cx, cy)). Two directions in the plane give s and t.
    """
    cx, cy, focal = width / 2, height / 2, width * rng.uniform(0.7, 1.5)
    b, c, d0, constant = (values[name] for name in ("b", "c", "d0", "d1"))
    _set(values, slice(None), g0=constant / (1 - b), gx=b / (1 - b), gy=c / (1 - b))
    normal = np.stack([b * focal, c * focal, constant + b * cx + c * cy], axis=1)
    normal /= np.linalg.norm(normal, axis=1, keepdims=True) + 1e-9
    up = np.where(abs(normal[:, 1:2]) > 0.9, [[0.0, 0.0, 1.0]], [[0.0, 1.0, 0.0]])
    first = np.cross(up, normal)
    first /= np.linalg.norm(first, axis=1, keepdims=True) + 1e-9
    second = np.cross(normal, first)
    count = len(KINDS)
    angle = rng.uniform(-np.pi, np.pi, count) * rng.choice([0, 1], count)
    # At the disparity of best resolution a texel covers 1/scale px.
    reference = np.maximum(abs(d0), 0.3 * np.abs([b * cx, c * cy]).max(axis=0))
    scale = (_log_uniform(rng, 0.12, 1.3, count) * reference)[:, None] * (320 / height) ** 0.5
    across = scale * (np.cos(angle)[:, None] * first + np.sin(angle)[:, None] * second)
    down = scale * (np.cos(angle)[:, None] * second - np.sin(angle)[:, None] * first)
    for name, axis in (("s", across), ("t", down)):
        place = rng.uniform(0, SIZE, count)
        offset = axis[:, 2] * focal - axis[:, 0] * cx - axis[:, 1] * cy
        _set(values, slice(None), **{f"{name}x": axis[:, 0], f"{name}y": axis[:, 1], f"{name}1": offset})
        _set(values, slice(None), **{f"{name}0": place})


def _draw_colours(values: dict[str, np.ndarray], height: int, width: int, rng: np.random.Generator) -> None:
    """Draw colours from grey to saturated, contrasts from weak to strong, light falloff and soft shadows."""
    count = len(KINDS)
    loud = rng.choice([0.1, 0.25, 0.6]) * rng.uniform(0, 1, (count, 1))
    colour = rng.uniform(5, 235, (count, 1)) * (1 + loud * rng.uniform(-1.5, 1.5, (count, 3)))
    contrast = _log_uniform(rng, 2.5, 80, (count, 1))
    light = contrast * (1 + 0.3 * loud * rng.normal(size=(count, 3)))
    hue = contrast * _log_uniform(rng, 0.05, 1, (count, 1)) * loud * rng.normal(size=(count, 3))
    for names, table in (("red green blue", colour), ("light_r light_g light_b", light), ("hue_r hue_g hue_b", hue)):
        _set(values, slice(None), **dict(zip(names.split(), table.T, strict=True)))
    fade = rng.normal(size=(2, count)) * 0.35
    right_x = values["x0"] - values["d0"]
    shade = 1 - fade[0] * right_x / width - fade[1] * values["y0"] / height
    _set(values, slice(None), shade_1=shade, shade_x=fade[0] / width, shade_y=fade[1] / height)
    shadowed = (rng.random(count) < 0.3) * rng.uniform(0.2, 0.75, count)
    _set(values, slice(None), shadow=rng.uniform(-0.5, 1.5, count), dark=shadowed)
    textures = rng.integers(0, COUNT, (2, count))
    _set(values, slice(None), base=textures[0], detail=textures[1])
    _set(values, slice(None), ratio=_log_uniform(rng, 2.5, 9, count), share=rng.uniform(0.1, 0.8, count))


def _set(values: dict[str, np.ndarray], place: int | slice, **numbers: Any) -> None:
    for name, number in numbers.items():
        values[name][place] = number


def _log_uniform(rng: np.random.Generator, low: float, high: float, size: int | tuple[int, ...] | None = None) -> Any:
    return np.exp(rng.uniform(np.log(low), np.log(high), size))
