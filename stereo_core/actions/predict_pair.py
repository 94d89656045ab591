"""predict: disparity, depth and a page for one pair, or for two folders of pairs. Needs no spec."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from stereo_core.actions.inference import Clipped, OutOfRange, format_losses, write_files
from stereo_core.actions.predict.anything import spec_of
from stereo_core.actions.predict.predictor import Predictor, load_predictor, stretched
from stereo_core.data.calibration import Calibration, SizedCalibration, files_beside, read_calibration
from stereo_core.data.depth import depth_from_disparity
from stereo_core.data.images import BITS, bits_for, decode_view, largest_deep, read_views
from stereo_core.data.rectification import doubts
from stereo_core.data.trees import IMAGE_SUFFIXES, Tree
from stereo_core.errors import DataError, SpecError
from stereo_core.files import atomic_path, flat_names, stems
from stereo_core.locks import held
from stereo_core.models.flags import kept
from stereo_core.models.infer import infer
from stereo_core.report.html import MOST_BYTES, page, shown
from stereo_core.report.viewer import view
from stereo_core.report.views import View
from stereo_core.run.termination import Terminated
from stereo_core.run.warned import passed_on
from stereo_core.spec.predict import BESIDE, Inference
from stereo_core.values import counted, size_text

FILES = {
    "colour": "predicted_depth/{flat}.png",
    "disparity (PFM)": "disparity_pfm/{name}.pfm",
    "disparity (16-bit PNG)": "disparity_png16/{name}.png",
}
"""Link text -> path below the output folder."""
FILES_WITH_CAMERA = {"depth (16-bit PNG, mm)": "depth/{name}.png", "point cloud (PLY)": "cloud/{name}.ply"}
SMALLEST = 32  # px; a narrower or lower image says nothing to the network


@dataclass(frozen=True)
class Pair:
    """Two image files; `name` is the left one's path below its folder, without suffix."""

    name: str
    left: Path
    right: Path

    def read(self, bits: int) -> tuple[np.ndarray, np.ndarray]:
        """Both images, uint8 RGB (H, W, 3).

        Args:
            bits: of the values in 16-bit files.

        Raises:
            DataError: a file cannot be used, or their sizes differ.
        """
        left, right = read_views(self.left, self.right, bits)
        self._check_sizes(left, right)
        return left, right

    def check(self, camera: Calibration | None, scale: float = 1) -> int:
        """The largest value of the pair's 16-bit images, 0 if it has none.

        Raises:
            DataError: the images cannot be used, do not fit the camera, or are below SMALLEST after scaling.
        """
        images = decode_view(self.left), decode_view(self.right)
        self._check_sizes(*images)
        _of(camera, images[0])
        size = _scaled(images[0].shape, scale)
        if min(size) < SMALLEST:
            own = f"{size_text(images[0].shape[:2])} px"
            left = f"--scale {scale:g} leaves {size_text(size)} px of {own}" if scale < 1 else f"the images have {own}"
            mend = "give a larger scale" if scale < 1 else "give larger images"
            raise DataError(
                f"{self.left}: {left}; the network needs at least {size_text((SMALLEST, SMALLEST))} px: {mend}"
            )
        return max(map(largest_deep, images))

    def _check_sizes(self, *images: np.ndarray) -> None:
        left, right = (image.shape[:2] for image in images)
        if left != right:
            raise DataError(
                f"{self.left}, {self.right}: the sizes are {size_text(left)} and {size_text(right)} px; both images of "
                "a rectified pair must have the same size"
            )


def find_pairs(left: Path, right: Path) -> list[Pair]:
    """The pair of two files, or the pairs of two folders: images with equal names below them, sorted.

    Raises:
        DataError: one is a file and the other a folder, both are the same, a folder has no images, or their names
            differ.
    """
    if left.exists() and right.exists() and left.samefile(right):
        raise DataError(f"{left}, {right}: these are the same; give the left image or folder, then the right one")
    if left.is_dir() != right.is_dir():
        raise DataError(f"{left}, {right}: only one is a folder; give two images or two folders")
    if not left.is_dir():
        return [Pair(left.stem, left, right)]
    here, there = (_images(folder) for folder in (left, right))
    if not here and not there:
        raise DataError(f"{left}, {right}: there are no images ({' '.join(IMAGE_SUFFIXES)}) in these folders")
    if odd := sorted(set(here) ^ set(there)):
        has, lacks = (left, right) if odd[0] in here else (right, left)
        raise DataError(
            f"{has / odd[0]}: there is no matching {lacks / odd[0]}; both folders must contain the same names. List "
            "pairs of other names with `depth_net convert`, and run `depth_net inference`"
        )
    return [Pair(name, left / file, right / file) for name, file in zip(stems(here, here), here, strict=True)]


def _images(folder: Path) -> list[str]:
    return sorted(path[1:] for path in Tree(str(folder)).find((), "") if path.lower().endswith(IMAGE_SUFFIXES))


def predict_pairs(
    left: Path,
    right: Path,
    output: Path,
    *,
    model: str = "starter",
    calibration: Path | None = None,
    baseline: float | None = None,
    focal: float | None = None,
    iters: int | None = None,
    scale: float = 1.0,
    say: Callable[[str], object] = print,
) -> None:
    """Write inference's files for each pair (INTERFACES "Files"; colours with a scale) and `output`/index.html.

    Args:
        left, right: two images, or two folders with equal names below them.
        model: "starter", a checkpoint (also FOLDER@best) or an engine.
        calibration: calib.txt, K.txt or a file of KITTI; or baseline (m) and focal (px). Without either no depth is
            written.
        iters: iterations of a checkpoint's network; None: the stored value.
        scale: scale factor of the images for the network; the disparity is in px of the files.
        say: receives the lines to print: one per pair, warnings, and where to look; if the run is stopped or fails, how
            many pairs are written.

    Raises:
        UserError: files, sizes, calibration, output or model are wrong; raised before any work.
    """
    pairs = find_pairs(left, right)
    camera = _camera(calibration, baseline, focal, str(pairs[0].left))
    largest = max(pair.check(camera, scale) for pair in pairs)
    bits = bits_for(largest) if largest else BITS[-1]
    depth = camera is not None
    spec = spec_of(model, iters, save_raw_pfm=True, save_depth=depth,
                   save_point_cloud=depth)  # fmt: skip
    warnings = _Warnings(say)
    with _claimed(output), kept(), passed_on(warnings.add):
        predictor = load_predictor(spec, "predict", 0)
        if bits < BITS[-1]:
            warnings.add(f"the largest value in the 16-bit images is {largest}, so they are read as {bits}-bit values")
        _Prediction(predictor, spec.inference, camera, scale, output, bits, say, warnings).of(pairs)


@contextlib.contextmanager
def _claimed(output: Path) -> Iterator[None]:
    """Inside the `with` block the folder exists, is writable, and no other run writes to it; else SpecError."""
    busy = SpecError(f"--output: another run is writing to {output}; wait until it ends, or choose another folder")
    with contextlib.ExitStack() as lock:
        try:
            lock.enter_context(held(output / ".lock", wait=0, busy=busy))
        except OSError as error:
            raise SpecError(f"--output: cannot write to {output}: {error.strerror}; choose another folder") from None
        yield


@dataclass
class _Warnings:
    """The warnings of a run; each is said once, at once."""

    say: Callable[[str], object]
    texts: list[str] = field(default_factory=list)

    def add(self, text: str) -> None:
        if text not in self.texts:
            self.texts.append(text)
            self.say(f"Warning: {text}")


def _camera(calibration: Path | None, baseline: float | None, focal: float | None, left: str) -> Calibration | None:
    if (baseline is None) != (focal is None):
        raise SpecError("give both --baseline and --focal, or --calibration")
    if calibration is None:
        return None if focal is None or baseline is None else Calibration(focal, baseline, source="--focal, --baseline")
    if focal is not None:
        raise SpecError("give either --calibration, or --baseline and --focal, not both")
    if str(calibration) == BESIDE and not calibration.exists():
        raise SpecError(
            "--calibration auto: predict takes the path of a file; give the calib.txt or K.txt of these images"
        )
    return read_calibration(calibration, left)


NO_CAMERA = "No depth: the camera's focal length and baseline were not given."


def _no_camera(left: Path) -> str:
    """Why there is no depth, and how to get it; names the calibration beside the left image if there is one."""
    files = files_beside(str(left))
    file = (
        f"--calibration {files[0]} ({Path(files[0]).name} lies beside {left.name})" if files else "--calibration FILE"
    )
    return f"Disparity only: for depth and a point cloud give {file}, or --baseline METRES and --focal PX."


def _scaled(shape: Sequence[int], scale: float) -> tuple[int, int]:
    """Height and width in px of an image for the network."""
    return max(1, round(shape[0] * scale)), max(1, round(shape[1] * scale))


def _of(camera: Calibration | None, left_HW3: np.ndarray) -> SizedCalibration | None:
    return None if camera is None else camera.of_size(*left_HW3.shape[:2])


@dataclass
class _Prediction:
    """Settings for predicting pairs and writing their files."""

    predictor: Predictor
    settings: Inference
    camera: Calibration | None
    scale: float
    output: Path
    bits: int
    say: Callable[[str], object]
    warnings: _Warnings
    written: int = 0
    views: list[View] = field(default_factory=list)
    inputs: dict[str, str] = field(default_factory=dict)
    clipped: Clipped = field(default_factory=lambda: Clipped(OutOfRange))

    def of(self, pairs: list[Pair]) -> None:
        named = list(zip(pairs, flat_names([pair.name for pair in pairs]), strict=True))
        self._remove_earlier(named)
        try:
            for pair, flat in named:
                self._one(pair, flat)
            warnings, notes = format_losses(self.clipped, self.settings)
            for text in warnings:
                self.warnings.add(text)
            for text in notes:
                self.say(f"Note: {text}")
            page = self._page(len(pairs), [NO_CAMERA] * (self.camera is None) + [f"Note: {text}." for text in notes])
        except (Exception, KeyboardInterrupt, Terminated):
            self.say(f"Stopped: {self.written} of {counted(len(pairs), 'pair')} written to {self.output}, and no page")
            raise
        if self.camera is None:
            self.say(_no_camera(pairs[0].left))
        self.say(f"Look at {page}")

    def _remove_earlier(self, named: list[tuple[Pair, str]]) -> None:
        """Remove the page and these pairs' files of an earlier run, so that all that lies there is of this one.

        Only a pair with the PFM file, which every run writes, has such files; it goes last, so that a removal that is
        interrupted is found by the next run.
        """
        self._page_file.unlink(missing_ok=True)
        for pair, flat in named:
            files = [self.output / file for file in _files(pair.name, flat, camera=True).values()]
            mark = self.output / FILES["disparity (PFM)"].format(name=pair.name)
            if mark.is_file():
                for file in sorted(files, key=mark.__eq__):
                    file.unlink(missing_ok=True)

    def _one(self, pair: Pair, flat: str) -> None:
        left_HW3, right_HW3 = pair.read(self.bits)
        self.inputs[pair.name] = f"{pair.left}, {pair.right}"
        camera = _of(self.camera, left_HW3)
        began = time.perf_counter()
        disparity_HW = self._disparity(left_HW3, right_HW3)
        facts = f"{_facts(disparity_HW, camera)}, computed in {time.perf_counter() - began:.1f} s"
        if not np.isfinite(disparity_HW).all():
            raise FloatingPointError(
                f"{pair.left}: the predicted disparity contains NaN or infinity; the weights may be damaged: use "
                "another checkpoint or engine"
            )
        found = [*doubts(left_HW3, right_HW3, self._reach(left_HW3)), *(camera.doubts() if camera else ())]
        write_files(self.settings, self.output, pair.name, flat, left_HW3, disparity_HW, camera, self.clipped)
        self.written += 1
        files = _files(pair.name, flat, camera is not None)
        if sum(one.bytes for one in self.views) < MOST_BYTES:
            one = view(pair.name, left_HW3, disparity_HW, camera=camera,
                       path=str(pair.left), facts=facts, warnings=found, files=files)  # fmt: skip
            self.views.append(one)
        self.say(f"{pair.left}: {facts}")
        for text in found:
            self.say(f"Warning: {text}")

    def _reach(self, left_HW3: np.ndarray) -> float | None:
        """The largest disparity that the network can find, in px of the pair; None if unknown."""
        settings, sizes = self.predictor.settings, zip(("max_height", "max_width"), left_HW3.shape[:2], strict=False)
        if settings.get("max_disparity") is None:
            return None
        # images larger than an engine are scaled down
        shrunk = max(1.0, *(size * self.scale / (settings.get(key) or math.inf) for key, size in sizes))
        return float(settings["max_disparity"] * shrunk / self.scale)

    def _disparity(self, left_HW3: np.ndarray, right_HW3: np.ndarray) -> np.ndarray:
        predict = self.predictor.predict
        if self.scale != 1:
            predict = stretched(predict, _scaled(left_HW3.shape, self.scale))
        disparity_HW: np.ndarray = infer(predict, self.predictor.device, left_HW3, right_HW3)
        return disparity_HW

    def _page(self, pairs: int, notes: list[str]) -> Path:
        groups = shown({"": self.views})
        fewer = len(groups) < pairs
        first = [f"The first {len(groups)} of {pairs} pairs; the files of all pairs are beside this page."] * fewer
        with atomic_path(self._page_file) as temporary:
            folded = {"Inputs": self.inputs, "Settings": self.predictor.settings | _camera_settings(self.camera)}
            title = "Disparity" if self.camera is None else "Disparity and depth"
            text = page(
                title, groups=groups, note=" ".join([*first, *notes]), folded=folded, warnings=self.warnings.texts
            )
            temporary.write_text(text, encoding="utf-8")
        return self._page_file

    @property
    def _page_file(self) -> Path:
        return self.output / "index.html"


def _files(name: str, flat: str, camera: bool) -> dict[str, str]:
    """Link text -> path below the output folder, of a pair's files."""
    kinds = FILES | (FILES_WITH_CAMERA if camera else {})
    return {kind: path.format(name=name, flat=flat) for kind, path in kinds.items()}


def _camera_settings(camera: Calibration | None) -> dict[str, str]:
    """The calibration as a page's settings."""
    if camera is None:
        return {}
    numbers = f"focal length {camera.focal:g} px, baseline {camera.baseline:g} m, doffs {camera.doffs:g} px"
    return {"calibration": f"{camera.source}: {numbers}"}


def _facts(disparity_HW: np.ndarray, camera: Calibration | None) -> str:
    """Size and value ranges of a pair in one line; a network has no match where it predicts 0 px or less."""
    valid = disparity_HW[disparity_HW > 0]
    below = disparity_HW.size - valid.size
    text = f"{size_text(disparity_HW.shape)} px, "
    text += f"disparity {valid.min():.1f} to {valid.max():.1f} px" if valid.size else "no disparity above 0 px"
    text += f" ({counted(below, 'pixel')} at or below 0 px)" * bool(below)
    if camera is None:
        return text
    depth_HW = depth_from_disparity(disparity_HW, camera.focal, camera.baseline, camera.doffs)
    known = depth_HW[depth_HW > 0]
    return f"{text}, depth from {known.min():.2f} m, median {np.median(known):.2f} m" if known.size else text
