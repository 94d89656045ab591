"""A pair and its disparity -> a view: reduced pictures, and values that a page colours and shows at the pointer."""

from __future__ import annotations

import base64
import heapq
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence

import cv2
import numpy as np

from stereo_core.data.calibration import SizedCalibration
from stereo_core.report.pictures import scale_of
from stereo_core.report.views import CURVE_PX, View

MOST_PIXELS = 1024 * 768  # pixels of a picture on predict's page; the files on disk are not reduced
FEWER_PIXELS = 640 * 480  # for pages with many pictures
STEPS = 32  # steps per px in the 16-bit values: up to 2047 px
CURVE_POINTS = 33
FIRST, WORST = 4, 4  # number of first and of worst pairs shown per run


def view(
    name: str,
    left_HW3: np.ndarray,
    disparity_HW: np.ndarray,
    *,
    path: str = "",
    camera: SizedCalibration | None = None,
    truth_HW: np.ndarray | None = None,
    most_pixels: int = MOST_PIXELS,
    facts: str = "",
    warnings: Sequence[str] = (),
    files: Mapping[str, str] | None = None,
) -> View:
    """Make a pair's view; pictures of large pairs are reduced, but disparity values stay in px of the full size.

    Args:
        left_HW3: uint8 RGB.
        disparity_HW: px.
        camera: as `Calibration.of_size` returns it for (H, W).
        truth_HW: ground truth in px, not finite or 0 where unknown.
        most_pixels: maximum pixels of a picture.
    """
    height, width = disparity_HW.shape
    share = min(1.0, (most_pixels / (height * width)) ** 0.5)
    size = (max(1, round(width * share)), max(1, round(height * share)))
    errors = None if truth_HW is None else _errors(disparity_HW, truth_HW)
    known = errors if errors is not None and errors.size else None
    return View(
        name,
        path,
        left=_encoded(".jpg", cv2.resize(left_HW3, size, interpolation=cv2.INTER_AREA)),
        values=_values(disparity_HW, size),
        truth=None if truth_HW is None else _values(truth_HW, size),
        width=size[0],
        height=size[1],
        full_width=width,
        **scale_of(truth_HW, disparity_HW)._asdict(),
        camera=_numbers(camera) if camera else None,
        epe=None if known is None else float(known.mean()),
        curve=[] if known is None else _curve(known),
        facts=facts,
        warnings=list(warnings),
        files=dict(files or {}),
    )


class Chosen:
    """The views of a run: of the first pairs of its data, which are the same in every run, and of the worst pairs.

    Pairs may arrive in any order and from several threads.
    """

    def __init__(self) -> None:
        self._first: list[tuple[float, int, View]] = []
        self._worst: list[tuple[float, int, View]] = []  # a heap
        self._lock = threading.Lock()

    def offer(self, index: int, epe: float, make: Callable[[], View]) -> None:
        """Make and keep the view of a pair if, so far, it is one of the first or the worst.

        Args:
            index: of the pair in the data; unique, so that views are never compared.
            epe: px; a pair with NaN (no ground truth) is never one of the worst.
        """
        with self._lock:
            wanted = index < FIRST or epe > (self._worst[0][0] if len(self._worst) == WORST else -1)
        if wanted:
            self._keep((epe, index, make()))

    def _keep(self, item: tuple[float, int, View]) -> None:
        with self._lock:
            if item[1] < FIRST:
                self._first.append(item)
            elif len(self._worst) < WORST:
                heapq.heappush(self._worst, item)
            else:
                heapq.heappushpop(self._worst, item)

    @property
    def found(self) -> list[tuple[float, int, View]]:
        """(epe, index, view) of each kept pair."""
        return sorted(self._first + self._worst, key=lambda item: item[1])

    @classmethod
    def of(cls, found: Iterable[tuple[float, int, View]]) -> Chosen:
        """Combine the results of several parts of the data."""
        one = cls()
        for item in found:
            one._keep(item)
        return one

    @property
    def views(self) -> list[View]:
        return [shown for *_, shown in self.found]


def _errors(disparity_HW: np.ndarray, truth_HW: np.ndarray) -> np.ndarray:
    known = np.isfinite(truth_HW) & (truth_HW > 0)
    errors: np.ndarray = np.abs(disparity_HW[known].astype(np.float64) - truth_HW[known])
    return errors


def _curve(errors: np.ndarray) -> list[float]:
    ordered = np.sort(errors)
    counts = np.searchsorted(ordered, np.linspace(0, CURVE_PX, CURVE_POINTS), side="right")
    return [round(float(share), 4) for share in counts / len(ordered)]


def _numbers(camera: SizedCalibration) -> dict[str, float]:
    return {
        "fx": camera.focal,
        "fy": camera.focal_y,
        "cx": camera.cx,
        "cy": camera.cy,
        "baseline": camera.baseline,
        "doffs": camera.doffs,
    }


def _values(disparity_HW: np.ndarray, size: tuple[int, int]) -> str:
    """PNG with the high and low byte of disparity * STEPS in red and green; 0 is unknown."""
    near = cv2.resize(disparity_HW, size, interpolation=cv2.INTER_NEAREST)  # nearest: creates no new values
    stored = np.clip(np.rint(np.nan_to_num(near, posinf=0) * STEPS), 0, 65535).astype(np.uint16)
    return _encoded(".png", np.stack([stored >> 8, stored & 255, np.zeros_like(stored)], axis=-1).astype(np.uint8))


def _encoded(suffix: str, image_HW3: np.ndarray) -> str:
    options = [cv2.IMWRITE_JPEG_QUALITY, 90] if suffix == ".jpg" else []
    encoded = cv2.imencode(suffix, np.ascontiguousarray(image_HW3[..., ::-1]), options)[1]
    return base64.b64encode(encoded.tobytes()).decode()
