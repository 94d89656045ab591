"""Calibration files -> focal length, baseline and the rest that turns disparity into depth."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from stereo_core.data.images import read_bytes
from stereo_core.errors import DataError

_NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"


@dataclass(frozen=True)
class Calibration:
    """A rectified pair: depth in m = focal * baseline / (disparity + doffs).

    Attributes:
        focal: px.
        baseline: m.
        doffs: px; x of the right principal point minus that of the left one.
        cx, cy: px; the left principal point.
    """

    focal: float
    baseline: float
    doffs: float = 0.0
    cx: float = 0.0
    cy: float = 0.0


def read_calibration(path: str | Path) -> Calibration:
    """Read a Middlebury or ETH3D calib.txt (baseline in mm), or a K.txt (nine numbers of K by rows, baseline in m).

    Raises:
        DataError: the file is missing, is neither, or its focal length or baseline is not above 0.
    """
    text = read_bytes(path).decode("utf-8", errors="replace")
    calibration = _middlebury(path, text) if "=" in text else _intrinsics(path, text)
    if not (calibration.focal > 0 and calibration.baseline > 0):
        raise DataError(
            f"{path}: focal length {calibration.focal} px, baseline {calibration.baseline} m: must be above 0"
        )
    return calibration


def _middlebury(path: str | Path, text: str) -> Calibration:
    values = {key.strip(): value for key, _, value in (line.partition("=") for line in text.splitlines())}
    try:
        focal, _, cx, _, _, cy = map(float, re.findall(_NUMBER, values["cam0"])[:6])
        right = re.findall(_NUMBER, values.get("cam1", ""))
        doffs = float(values["doffs"]) if "doffs" in values else float(right[2]) - cx
        return Calibration(focal, float(values["baseline"]) / 1000, doffs, cx, cy)
    except (KeyError, ValueError, IndexError) as error:
        raise DataError(
            f"{path}: not a calib.txt with cam0=[f 0 cx; 0 f cy; 0 0 1], baseline (mm) and doffs or cam1: {error}"
        ) from error


def _intrinsics(path: str | Path, text: str) -> Calibration:
    try:
        numbers = [float(word) for word in text.split()]
    except ValueError:
        numbers = []
    if len(numbers) != 10:
        raise DataError(f"{path}: not a K.txt: expected the 9 numbers of K in row order, then the baseline in metres")
    return Calibration(focal=numbers[0], baseline=numbers[9], cx=numbers[2], cy=numbers[5])
