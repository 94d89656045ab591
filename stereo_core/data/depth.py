"""Disparity -> depth -> point cloud, and their files. Needs only NumPy."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from stereo_core.data.calibration import SizedCalibration
from stereo_core.data.images import write_png
from stereo_core.files import atomic_path

_VERTEX = np.dtype([(n, "<f4") for n in "xyz"] + [(n, "u1") for n in ("red", "green", "blue")])


def depth_from_disparity(disparity_HW: np.ndarray, focal: float, baseline: float, doffs: float = 0.0) -> np.ndarray:
    """Depth along the optical axis.

    Args:
        disparity_HW: px; values that are not finite or not above 0 are unknown.
        focal: focal length in px.
        baseline: metres.
        doffs: px, x of the right principal point minus x of the left one (Middlebury's convention).

    Returns:
        float32 (H, W) in metres: focal * baseline / (disparity + doffs), 0 where unknown or not in front of the camera.
    """
    shift = disparity_HW.astype(np.float64) + doffs
    known = np.isfinite(disparity_HW) & (disparity_HW > 0) & (shift > 0)
    return np.where(known, focal * baseline / np.where(known, shift, 1), 0).astype(np.float32)


def seen_by_both(disparity_HW: np.ndarray) -> np.ndarray:
    """Which pixels of the left image are visible in the right one: inside it, and not behind a nearer surface.

    Args:
        disparity_HW: px; values that are not finite or not above 0 are unknown and count as not visible.

    Returns:
        bool (H, W).
    """
    height, width = disparity_HW.shape
    known = np.isfinite(disparity_HW) & (disparity_HW > 0)
    rows, columns = np.nonzero(known)
    disparity = disparity_HW[rows, columns].astype(np.float64)
    at = columns - disparity
    inside = at >= 0
    nearest = np.zeros((height, width + 1))  # disparity of the nearest surface, in the right image
    for column in (np.floor(at), np.ceil(at)):
        np.maximum.at(nearest, (rows[inside], column[inside].astype(int)), disparity[inside])
    seen = np.zeros((height, width), bool)
    hidden_by = nearest[rows[inside], np.rint(at[inside]).astype(int)]
    seen[rows[inside], columns[inside]] = disparity[inside] > hidden_by - 1
    return seen


def write_depth_png(path: str | Path, depth_HW: np.ndarray) -> int:
    """Write a 16-bit PNG in millimetres; 0 = unknown, below half a millimetre, or beyond 65.535 m.

    Returns:
        the number of pixels whose depth the file cannot hold.
    """
    millimetres = np.rint(depth_HW.astype(np.float64) * 1000)
    millimetres[millimetres > 65535] = 0
    write_png(path, millimetres.astype(np.uint16))
    return int(np.count_nonzero((depth_HW > 0) & (millimetres == 0)))


def write_point_cloud(path: str | Path, depth_HW: np.ndarray, colour_HW3: np.ndarray, camera: SizedCalibration) -> None:
    """Write a binary PLY of the pixels with a depth, in the left camera's frame: x right, y down, z forward, metres.

    Args:
        depth_HW: metres, 0 = no point.
        colour_HW3: uint8 RGB.
        camera: as `Calibration.of_size` returns it for (H, W); (0, 0) is the centre of the top left pixel.
    """
    rows, columns = np.nonzero(depth_HW > 0)
    z = depth_HW[rows, columns].astype(np.float64)
    points = np.empty(len(z), _VERTEX)
    points["x"] = (columns - camera.cx) * z / camera.focal
    points["y"] = (rows - camera.cy) * z / camera.focal_y
    points["z"] = z
    for channel, name in enumerate(("red", "green", "blue")):
        points[name] = colour_HW3[rows, columns, channel]
    types = {"f": "float", "u": "uchar"}
    fields = "".join(f"property {types[_VERTEX[name].kind]} {name}\n" for name in points.dtype.names or ())
    header = f"ply\nformat binary_little_endian 1.0\nelement vertex {len(points)}\n{fields}end_header\n"
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        file.write(header.encode("ascii"))
        file.write(points.tobytes())  # tofile does not say that a disk is full
