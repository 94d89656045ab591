"""The calibration pairs of quantize: a folder or archive of images, or the training data."""

from __future__ import annotations

import contextlib
import logging
import re
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from stereo_core.data.annotations import Sample, check_files, read_annotations
from stereo_core.data.trees import IMAGE_SUFFIXES, Tree, replacing
from stereo_core.errors import DataError

LOG = logging.getLogger(__name__)

NAMES = (("left", "right"), ("image_2", "image_3"), ("image_0", "image_1"), ("im0", "im1"))
"""Path parts of left and right images, as in convert's image_dir_pattern and right_dir_pattern."""
NO_IMAGES = {"calib", "calibration", "depth", "disp", "disparities", "disparity", "flow", "gt", "mask", "masks", "noc"}
NO_IMAGES |= {"nocc", "occ", "valid"}
"""Path parts of image files that are no views (ground truth, masks), unless all files have such a part."""
MOST_OF_TRAINING = 64
"""Number of pairs from the training data, spread evenly; images_dir is used in full."""


@contextlib.contextmanager
def samples_of(dataset: Any) -> Iterator[list[Sample]]:
    """The pairs of `quant_calibration_dataset.images_dir`, else of `train_dataset.data_sources`, without ground truth.

    An archive is unpacked to a temporary folder until the context ends.

    Raises:
        DataError: no pairs, images without a partner, an archive that is unreadable or has members outside its folder.
    """
    source = dataset.quant_calibration_dataset.images_dir
    if not source:
        yield _of_training(dataset.train_dataset.data_sources)
    elif Path(source).is_dir():
        yield find_pairs(source)
    else:
        with tempfile.TemporaryDirectory(prefix="calibration") as folder:
            unpack(source, folder)
            yield find_pairs(folder, source)


def _of_training(sources: list[Any]) -> list[Sample]:
    listed = [source for source in sources if not source.drawn]
    samples = [sample for source in listed for sample in read_annotations(source.data_file, source.data_root)]
    if not samples:
        raise DataError(
            "dataset.train_dataset has only Synthetic sources; set "
            "dataset.quant_calibration_dataset.images_dir to a folder "
            "of images"
        )
    count = min(MOST_OF_TRAINING, len(samples))
    chosen = [samples[index * len(samples) // count] for index in range(count)]
    chosen = [replace(sample, disparity=None, mask=None) for sample in chosen]
    check_files(chosen)
    return chosen


def unpack(archive: str | Path, folder: str | Path) -> None:
    """Unpack a tar (of any compression) or zip file; DataError if it is neither, or a member points outside."""
    try:
        if zipfile.is_zipfile(archive):
            with zipfile.ZipFile(archive) as file:
                for member in file.namelist():
                    if not (Path(folder) / member).resolve().is_relative_to(Path(folder).resolve()):
                        raise DataError(f"{archive}: member {member} points outside the archive's folder; remove it")
                file.extractall(folder)
        else:
            with tarfile.open(archive) as file:
                file.extractall(folder, filter="data")
    except DataError:
        raise
    except tarfile.FilterError as error:
        raise DataError(f"{archive}: a member points outside the archive's folder: {error}; remove it") from error
    except Exception as error:  # tar, zip and their five compressions raise many kinds; no list exists
        raise DataError(f"{archive}: cannot unpack the file as .tar.gz, .tar or .zip: {error}") from error


def find_pairs(folder: str | Path, called: str | Path = "") -> list[Sample]:
    """Pairs below `folder`: left images, found by NAMES, and their right images. `folder` may be the left folder
    itself.

    Ground truth (NO_IMAGES) is ignored, and so are folders beside a left folder that have no right counterpart.

    Args:
        called: the name of the folder in messages, if it differs.

    Raises:
        DataError: there is no left image, or one has no right image.
    """
    folder = Path(folder).absolute()
    called = called or folder
    files = sorted(path for path in Tree(str(folder)).find((), "") if path.lower().endswith(IMAGE_SUFFIXES))
    files = [path for path in files if NO_IMAGES.isdisjoint(re.findall("[a-z]+", path.lower()))] or files
    for left, right in NAMES:
        if lefts := [path for path in files if left in path]:
            return _paired(str(folder), lefts, {left: right}, called)
    for left, right in NAMES:
        if files and left in folder.name and (folder.parent / folder.name.replace(left, right)).is_dir():
            return _paired(str(folder.parent), [f"/{folder.name}{path}" for path in files], {left: right}, called)
    names = ", ".join(f"{left} (right: {right})" for left, right in NAMES)
    raise DataError(f"dataset.quant_calibration_dataset.images_dir: {called}: none of the images ({len(files)}) is "
                    f"recognised as a left image; its path must contain one of: {names}")  # fmt: skip


def _paired(root: str, lefts: list[str], names: dict[str, str], called: str | Path) -> list[Sample]:
    pairs = list(zip(lefts, replacing(names)(lefts), strict=True))
    possible = [(left, right) for left, right in pairs if Path(root + right).parent.is_dir()]
    if possible and len(possible) < len(pairs):
        folders = sorted({str(Path(left).parent)[1:] for left, _ in set(pairs) - set(possible)})
        LOG.warning("%s: ignoring folders without a matching right folder: %s", called, ", ".join(folders))
        pairs = possible
    alone = [f"  {left[1:]} (no {right[1:]})" for left, right in pairs if not Path(root + right).is_file()]
    if alone:
        raise DataError(
            f"dataset.quant_calibration_dataset.images_dir: {called}: {len(alone)} of {len(pairs)} left images have no "
            "right image:\n" + "\n".join(alone[:5]) + "\nadd the right images, or name a folder of complete pairs"
        )
    return [
        Sample(root + left, root + right, None, None, str(called), number)
        for number, (left, right) in enumerate(pairs, start=1)
    ]
