"""Pairs and their disparity as one HTML page to look at: left image and disparity under a slider, values on hover.

Everything is in the page, and its Content-Security-Policy keeps it from asking any host for anything.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from jinja2 import Environment, FileSystemLoader

from stereo_core import __version__
from stereo_core.data.calibration import Calibration
from stereo_core.report.pictures import colour_disparity

MOST_BYTES = 7_500_000  # of pictures in a page; INTERFACES allows a page 8 MB
MOST_PIXELS = 1024 * 768  # of a picture in a page; the files on disk have them all
STEPS = 32  # of a px in the values on hover, 16 bit: up to 2047 px
TICKS = 5

_PAGE = Environment(
    loader=FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True, lstrip_blocks=True
).get_template("viewer.html")


@dataclass(frozen=True)
class View:
    """One pair, ready for the page.

    Attributes:
        name: its title.
        facts: one line below it.
        warnings: doubts about the pair, shown above its pictures.
        files: text of a link -> path, relative to the page.
        left, colour, values: base64 of a JPEG, a PNG and a PNG whose red and green hold disparity * STEPS.
        width, height: px of the pictures.
        full_width: px of the pair.
        ticks: px and, with a camera, m along the colour bar.
        camera: focal * baseline (px m) and doffs (px); None: no depth.
    """

    name: str
    facts: str
    warnings: Sequence[str]
    files: dict[str, str]
    left: str
    colour: str
    values: str
    width: int
    height: int
    full_width: int
    ticks: Sequence[tuple[str, str]]
    camera: tuple[float, float] | None

    @property
    def bytes(self) -> int:
        return len(self.left) + len(self.colour) + len(self.values)


def view(
    name: str,
    left_HW3: np.ndarray,
    disparity_HW: np.ndarray,
    maximum: float,
    camera: Calibration | None,
    *,
    facts: str,
    warnings: Sequence[str],
    files: dict[str, str],
) -> View:
    """Make a pair's pictures; those of large pairs are reduced, the values keep their px.

    Args:
        left_HW3: uint8 RGB.
        disparity_HW: px.
        maximum: px at the end of the colour scale.
    """
    height, width = disparity_HW.shape
    share = min(1.0, (MOST_PIXELS / (height * width)) ** 0.5)
    size = (round(width * share), round(height * share))
    left = cv2.resize(left_HW3, size, interpolation=cv2.INTER_AREA)
    disparity = cv2.resize(disparity_HW, size, interpolation=cv2.INTER_NEAREST)  # no value that is not there
    return View(
        name,
        facts,
        warnings,
        files,
        left=_encoded(".jpg", left),
        colour=_encoded(".png", colour_disparity(disparity, maximum)),
        values=_encoded(".png", _packed(disparity)),
        width=size[0],
        height=size[1],
        full_width=width,
        ticks=[_tick(maximum * step / (TICKS - 1), camera) for step in range(TICKS)],
        camera=(camera.focal * camera.baseline, camera.doffs) if camera else None,
    )


def viewer_page(title: str, views: Sequence[View], settings: dict[str, object], *, note: str = "") -> str:
    """HTML text of a page with these pairs; `settings` are folded away below them."""
    levels = np.linspace(1e-3, 1, 17, dtype=np.float32)[None]
    stops = ["#" + bytes(rgb.tolist()).hex() for rgb in colour_disparity(levels, 1.0)[0]]
    return _PAGE.render(title=title, views=views, settings=settings, note=note, stops=stops, steps=STEPS,
                        version=__version__)  # fmt: skip


def _tick(disparity: float, camera: Calibration | None) -> tuple[str, str]:
    if camera is None:
        return f"{disparity:.3g}", ""
    shift = disparity + camera.doffs
    return f"{disparity:.3g}", f"{camera.focal * camera.baseline / shift:.3g} m" if shift > 0 else "∞"


def _packed(disparity_HW: np.ndarray) -> np.ndarray:
    """px -> RGB with the high and low byte of disparity * STEPS in red and green; 0 is unknown."""
    stored = np.clip(np.rint(np.nan_to_num(disparity_HW, posinf=0) * STEPS), 0, 65535).astype(np.uint16)
    return np.stack([stored >> 8, stored & 255, np.zeros_like(stored)], axis=-1).astype(np.uint8)


def _encoded(suffix: str, image_HW3: np.ndarray) -> str:
    options = [cv2.IMWRITE_JPEG_QUALITY, 90] if suffix == ".jpg" else []
    return base64.b64encode(cv2.imencode(suffix, np.ascontiguousarray(image_HW3[..., ::-1]), options)[1]).decode()
