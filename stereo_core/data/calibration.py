"""Camera calibration files -> focal lengths, baseline and everything else that turns disparity into depth."""

from __future__ import annotations

import math
import os
import posixpath
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from stereo_core import storage
from stereo_core.data import shards
from stereo_core.data.images import read_bytes
from stereo_core.errors import DataError
from stereo_core.values import size_text

NAMES = ("calib.txt", "K.txt")  # file names looked for beside an image; the first one found is used

_BASELINES = (0.001, 10.0)  # m; a baseline in the wrong unit is off by a factor of 1000
_LONG = 3.0  # m; few cameras have a longer baseline, but one in centimetres reads like that
_SKEW = 0.01  # px; larger numbers are no rounding
_SQUARE = 0.05  # relative difference of fx and fy that square pixels may have
_SAME = 0.5  # px; larger differences between the two cameras are no rounding
_MIDDLE = (0.3, 0.7)  # share of the image where principal points normally lie, except for crops
_VIEWS = (5.0, 150.0)  # degrees; plausible horizontal field of view of a rectified image
_COMMENT = re.compile(r"(#|//|%).*")
_UNITS = "Write it in millimetres in a calib.txt, in metres in a K.txt and dataset.baseline"
_K = "[fx 0 cx; 0 fy cy; 0 0 1]"
_KITTI = re.compile(
    r"(?:P_rect_0|P)([0-3]):(.*)"
)  # 3 x 4 projection of a camera: calib_cam_to_cam.txt; calib/000000.txt
_KITTI_SIZE = re.compile(r"S_rect_0([0-3]):(.*)")  # width and height of the rectified images
_KITTI_GREY = re.compile(r"(^|/)image_0?[01](/|$)")  # folders of its grey cameras, 0 and 1


@dataclass(frozen=True)
class Calibration:
    """A rectified pair: depth in m = focal * baseline / (disparity + doffs).

    Attributes:
        focal: px, horizontal (fx).
        baseline: m.
        doffs: px; x of the right principal point minus that of the left one.
        cx, cy: px; the left principal point; None: the centre of the image.
        focal_y: px, vertical (fy); None: the same as focal.
        width, height: px; image size that it belongs to; None: not given.
        right: px; the right camera's (fx, cx, fy, cy); None: not given.
        source: the file (or key) that it comes from, for messages.
    """

    focal: float
    baseline: float
    doffs: float = 0.0
    cx: float | None = None
    cy: float | None = None
    focal_y: float | None = None
    width: int | None = None
    height: int | None = None
    source: str = "calibration"
    right: tuple[float, float, float, float] | None = None

    def __post_init__(self) -> None:
        lengths = {"fx (px)": self.focal, "fy (px)": self.focal_y, "baseline (m)": self.baseline}
        for name, value in lengths.items():
            if value is not None and not 0 < value < math.inf:
                raise DataError(f"{self.source}: {name} is {value:g}; it must be above 0")
        lowest, highest = _BASELINES
        if not lowest <= self.baseline <= highest:
            raise DataError(
                f"{self.source}: the baseline is {self.baseline:g} m; stereo cameras have {lowest:g} to {highest:g} m. "
                f"{_UNITS}"
            )

    def of_size(self, height: int, width: int) -> SizedCalibration:
        """The calibration checked for images of height x width px, with every attribute filled in.

        Raises:
            DataError: it belongs to images of another size, or its principal point lies outside the images.
        """
        stated = (self.width or width, self.height or height)
        if stated != (width, height):
            scaled = abs(stated[1] * width / stated[0] - height) <= 1  # px; a scaled image has whole ones
            mend = (
                f"multiply focal lengths, principal points and doffs by {width / stated[0]:.4g}, and set width and "
                "height"
                if scaled
                else "the shapes differ, so this is another camera or a cropped image; give the calibration of these "
                "images"
            )
            raise DataError(
                f"{self.source}: the file is for {size_text(stated[::-1])} px, but the images have "
                f"{size_text((height, width))} px; {mend}"
            )
        cx = (width - 1) / 2 if self.cx is None else self.cx
        cy = (height - 1) / 2 if self.cy is None else self.cy
        if not (0 <= cx <= width and 0 <= cy <= height):
            raise DataError(
                f"{self.source}: the principal point ({cx:g}, {cy:g}) lies outside the images "
                f"({size_text((height, width))} px);"
                " the file belongs to images of another size: scale the focal lengths and the principal point"
            )
        focal_y = self.focal if self.focal_y is None else self.focal_y
        return SizedCalibration(
            self.focal, self.baseline, self.doffs, cx, cy, focal_y, width, height, self.source, self.right
        )

    @property
    def farthest(self) -> float:
        """m; the depth at one px of disparity (with doffs): beyond it, a disparity error of 1 px exceeds the
        disparity."""
        return self.focal * self.baseline


@dataclass(frozen=True)
class SizedCalibration(Calibration):
    """A calibration with every attribute filled in, for images of one size; made by `Calibration.of_size`."""

    cx: float = math.nan
    cy: float = math.nan
    focal_y: float = math.nan
    width: int = 0
    height: int = 0

    def doubts(self) -> Iterator[str]:
        """Warnings about unlikely values, a sentence each; call it on the result of `of_size`."""
        if self.baseline > _LONG:
            yield (
                f"{self.source}: the baseline is {self.baseline:g} m, which is long for a camera; if the number was in "
                f"centimetres it is {self.baseline / 100:g} m, if in millimetres {self.baseline / 1000:g} m. {_UNITS}"
            )
        if abs(self.focal_y / self.focal - 1) > _SQUARE:
            fx_fy = f"fx {self.focal:g} px and fy {self.focal_y:g} px"
            yield f"{self.source}: {fx_fy} differ; pixels are nearly always square"
        if not all(_MIDDLE[0] <= at <= _MIDDLE[1] for at in (self.cx / self.width, self.cy / self.height)):
            yield (
                f"{self.source}: the principal point ({self.cx:g}, {self.cy:g}) is far from the image centre"
                f" ({size_text((self.height, self.width))} px); does the file belong to images of this size?"
            )
        fx, _, fy, cy = self.right or (self.focal, self.cx, self.focal_y, self.cy)
        for name, left, right in (("fx", self.focal, fx), ("fy", self.focal_y, fy), ("cy", self.cy, cy)):
            if abs(left - right) > _SAME:
                yield (
                    f"{self.source}: {name} is {left:g} px in cam0 and {right:g} px in cam1, but the cameras of a "
                    "rectified pair have the same; depth is computed with cam0's"
                )
        degrees = math.degrees(2 * math.atan(self.width / 2 / self.focal))
        if not _VIEWS[0] <= degrees <= _VIEWS[1]:
            yield (
                f"{self.source}: a focal length of {self.focal:g} px means a horizontal field of view of"
                f" {degrees:.1f} degrees for images {self.width} px wide; is it in px of images of this size?"
            )


def read_calibration(path: str | Path, left: str = "") -> Calibration:
    """Read a Middlebury or ETH3D calib.txt (baseline in mm), a K.txt (nine numbers of K by rows, baseline in m), or a
    file of KITTI (projections of four cameras; calib_cam_to_cam/000000.txt, calib/000000.txt, calib_cam_to_cam.txt).

    Commas and brackets count as blanks; text after `#`, `//` or `%` is a comment.

    Args:
        left: path of a left image. KITTI's cameras are 0 and 1 if it lies in a folder of grey images, such as image_0,
            else 2 and 3.

    Raises:
        DataError: the file is missing, has neither format, contradicts itself, or holds an impossible length.
    """
    data = read_bytes(path)
    text = data.decode("utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig", errors="replace")
    numbered = enumerate(text.splitlines(), 1)
    lines = {number: line for number, raw in numbered if (line := _COMMENT.sub("", raw).strip())}
    if any("=" in line for line in lines.values()):
        return _middlebury(path, lines)
    if any(_KITTI.match(line) for line in lines.values()):
        return _kitti(path, list(lines.values()), grey=bool(_KITTI_GREY.search(Path(left).as_posix())))
    return _intrinsics(path, list(lines.values()))


def calibration_beside(image: str) -> Calibration:
    """Read the calib.txt, else the K.txt, from the folder of an image: on disk, in object storage, or in a shard.

    Raises:
        DataError: there is neither; and as `read_calibration`.
    """
    found = files_beside(image)
    if not found:
        raise DataError(
            f"{image}: inference.calibration is auto, but the image's folder has no {' or '.join(NAMES)}; put one "
            "there, or name a file in inference.calibration"
        )
    return read_calibration(found[0])


def files_beside(image: str) -> list[str]:
    """The calibration files in the folder of an image, the one that is used first."""
    if packed := shards.parts(image):
        return _packed_beside(*packed)
    folder = posixpath.dirname(image)
    paths = [posixpath.join(folder, name) for name in NAMES]
    if storage.is_uri(image):
        here = storage.children(folder)
        return [path for path in paths if posixpath.basename(path) in here]
    return [path for path in paths if os.path.isfile(path)]


def _packed_beside(shard: str, image: str) -> list[str]:
    files = _packed(posixpath.dirname(shard))
    return [files[path] for name in NAMES if (path := posixpath.join(posixpath.dirname(image), name)) in files]


_packed = lru_cache(maxsize=4)(shards.packed)  # called for each folder of images


def _middlebury(path: str | Path, lines: dict[int, str]) -> Calibration:
    """The calibration of lines (by number) with `key=value`."""
    set_in: dict[str, list[int]] = defaultdict(list)
    values: dict[str, str] = {}
    for number, line in lines.items():
        key, equals, value = map(str.strip, line.partition("="))
        if equals:
            values[key] = value
            set_in[key].append(number)
    missing = [key for key in ("cam0", "baseline") if key not in values]
    if missing or ("doffs" not in values and "cam1" not in values):
        raise DataError(
            f"{path}: not a calib.txt: {' and '.join(missing or ['doffs'])} missing;"
            f" expected cam0={_K}, baseline (mm), and doffs or cam1"
        )
    for key, numbers in set_in.items():
        if len(numbers) > 1:
            raise DataError(f"{path}: lines {' and '.join(map(str, numbers))} set {key}; keep one of them")
    focal, cx, focal_y, cy = _matrix(f"{path}: cam0", values["cam0"])
    right = _matrix(f"{path}: cam1", values["cam1"]) if "cam1" in values else None
    if right is None or "doffs" in values:
        doffs = _number(path, "doffs", values["doffs"])
    else:
        doffs = right[1] - cx
    if right is not None:
        _check_right(path, (focal, cx), right, doffs)
    width, height = (int(_number(path, key, values[key])) if key in values else None for key in ("width", "height"))
    baseline = _number(path, "baseline", values["baseline"]) / 1000
    return Calibration(focal, baseline, doffs, cx, cy, focal_y, width, height, str(path), right)


def _check_right(path: str | Path, left: tuple[float, float], right: tuple[float, ...], doffs: float) -> None:
    """DataError if the cameras contradict each other or doffs."""
    (focal, cx), (right_focal, right_cx, *_) = left, right
    if abs(right_focal - focal) > 0.01 * abs(focal):
        raise DataError(
            f"{path}: fx is {focal:g} px in cam0 and {right_focal:g} px in cam1, so the pair is not rectified; "
            "give the calibration of the rectified pair"
        )
    if abs(right_cx - cx - doffs) > 1:
        raise DataError(
            f"{path}: doffs is {doffs:g} px, but cx of cam1 minus cx of cam0 is {right_cx - cx:g} px; they must be "
            "equal: correct doffs, or remove the line"
        )


def _kitti(path: str | Path, lines: list[str], *, grey: bool) -> Calibration:
    """Row by row a projection is [fx 0 cx tx; 0 fy cy ty; 0 0 1 tz], where -tx / fx is the camera's place in m (Geiger
    et al., "Vision meets Robotics: The KITTI Dataset", 2013)."""
    cameras = {int(found[1]): found[2] for line in lines if (found := _KITTI.match(line))}
    pair = (0, 1) if grey or not {2, 3} & set(cameras) else (2, 3)
    if missing := [f"P{camera} (or P_rect_0{camera})" for camera in pair if camera not in cameras]:
        raise DataError(f"{path}: not a calibration of KITTI: {' and '.join(missing)} missing")
    (left, left_x), (right, right_x) = (_projection(f"{path}: P{camera}", cameras[camera]) for camera in pair)
    sizes = [_words(found[2]) for line in lines if (found := _KITTI_SIZE.match(line)) and int(found[1]) == pair[0]]
    width, height = (int(_number(path, "S_rect", word)) for word in sizes[0][:2]) if sizes else (None, None)
    focal, cx, focal_y, cy = left
    return Calibration(focal, right_x - left_x, right[1] - cx, cx, cy, focal_y, width, height, str(path), right)


def _projection(where: str, text: str) -> tuple[tuple[float, float, float, float], float]:
    """(fx, cx, fy, cy) in px, and the camera's x in m."""
    words = _words(text)
    if len(words) != 12:
        raise DataError(f"{where}: it has {len(words)} numbers; expected the 12 of a 3 x 4 projection, row by row")
    matrix = _matrix(where, " ".join(word for n, word in enumerate(words[:11]) if n % 4 < 3))
    return matrix, -_number(where, "the fourth number", words[3]) / matrix[0]


def _intrinsics(path: str | Path, lines: list[str]) -> Calibration:
    words = _words(" ".join(lines))
    if len(words) != 10:
        first = f", the first line is '{lines[0][:60]}'" if lines else ""
        raise DataError(
            f"{path}: not a K.txt: it has {len(words)} values{first};"
            f" expected the 9 numbers of K = {_K} in row order, then the baseline in metres"
        )
    focal, cx, focal_y, cy = _matrix(f"{path}: K", " ".join(words[:9]))
    return Calibration(focal, _number(path, "baseline", words[9]), 0.0, cx, cy, focal_y, source=str(path))


def _matrix(where: str, text: str) -> tuple[float, float, float, float]:
    """Parse the text of a camera matrix to (fx, cx, fy, cy)."""
    words = _words(text)
    if len(words) != 9:
        raise DataError(f"{where}: '{text}' has {len(words)} numbers; expected the 9 of {_K}")
    numbers = [_number(where, "a value", word) for word in words]
    if [numbers[3], *numbers[6:]] != [0, 0, 0, 1]:
        raise DataError(f"{where}: '{text}' is not {_K} in row order")
    if abs(numbers[1]) > _SKEW:
        raise DataError(
            f"{where}: the skew, the second number of '{text}', is {numbers[1]:g}, but the cameras of a rectified pair "
            "have none; rectify the pair and give the matrix of the rectified cameras"
        )
    return numbers[0], numbers[2], numbers[4], numbers[5]


def _words(text: str) -> list[str]:
    return re.sub(r"[\[\](),;]", " ", text).split()


def _number(where: str | Path, name: str, text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise DataError(f"{where}: {name} is '{text}', not a finite number; write one such as 0.12")
    return number
