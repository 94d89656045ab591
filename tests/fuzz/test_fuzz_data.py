"""Damaged files of a data set are read or refused by name; no other exception, no flood of memory, no hang."""

from __future__ import annotations

import io
import tarfile
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import strategies as st
from mutations import damaged, inputs, repaired_png, zipped

from stereo_core.data import shards
from stereo_core.data.annotations import check_files, read_annotations
from stereo_core.data.calibration import read_calibration
from stereo_core.data.codecs import read_disparity, write_disparity_png16, write_disparity_rgb, write_pfm
from stereo_core.data.images import read_image, read_mask, write_png
from stereo_core.errors import UserError
from stereo_core.quantization.pairs import unpack

RNG = np.random.default_rng(0)
PX = RNG.uniform(0, 90, (6, 8)).astype(np.float32)
RGB = RNG.integers(0, 256, (6, 8, 3), np.uint8)
MIDDLEBURY = """cam0=[3979.911 0 1244.772; 0 3979.911 1019.507; 0 0 1]
cam1=[3979.911 0 1369.115; 0 3979.911 1019.507; 0 0 1]
doffs=124.343
baseline=193.001
width=640
height=480
ndisp=270
"""
K = "754.67 0.0 489.38 0.0 754.67 265.16 0.0 0.0 1.0\n0.063\n"
LISTS = [
    'a/left.png a/right.png a/disp.pfm a/mask.png\n# a comment\n\n"b c/l.png" "b ""c""/r.png"\n',
    "s3://bucket/l.png s3://bucket/r.png\n" * 2,
]


def written(folder: Path, write: Callable, array: np.ndarray) -> bytes:
    write(path := folder / "seed", array)
    return path.read_bytes()


def encoded(suffix: str, image: np.ndarray, *flags: int) -> bytes:
    return cv2.imencode(suffix, image, flags)[1].tobytes()


def saved(**arrays: np.ndarray) -> bytes:
    np.savez_compressed(file := io.BytesIO(), **arrays)
    return file.getvalue()


def npy(array: np.ndarray, version=(1, 0)) -> bytes:
    np.lib.format.write_array(file := io.BytesIO(), array, version)
    return file.getvalue()


def pngs(folder: Path) -> list[bytes]:
    deep = RNG.integers(0, 65536, (6, 8), np.uint16)
    seeds = [written(folder, write_png, image) for image in (RGB, RGB[..., 0], deep)]
    return [*seeds, encoded(".png", np.dstack([RGB, RGB[..., :1]]))]


def pictures(folder: Path) -> list[bytes]:
    return pngs(folder) + [encoded(suffix, RGB) for suffix in (".jpg", ".webp", ".bmp", ".tif")]


def masks(folder: Path) -> list[bytes]:
    mask = np.where(PX > 40, 255, 0).astype(np.uint8)
    return [written(folder, write_png, mask), encoded(".bmp", mask)]


def disparities(folder: Path) -> list[bytes]:
    writers = (write_disparity_png16, partial(write_disparity_png16, scale=32), write_disparity_rgb)
    return [written(folder, write, PX) for write in writers]


def tiffs(folder: Path) -> list[bytes]:
    return [encoded(".tif", image) for image in (PX, PX.astype(np.uint16), PX.astype(np.float64))]


def numpys(folder: Path) -> list[bytes]:
    return [npy(PX), npy(PX.astype(">f8")), npy(PX.astype(np.int16), (2, 0)), npy(np.asfortranarray(PX), (3, 0))]


def npzs(folder: Path) -> list[bytes]:
    return [saved(disparity=PX), saved(x=PX), saved(disp=PX, y=PX)]


def calibrated(path: Path) -> list[str]:
    return list(read_calibration(path).of_size(480, 640).doubts())


def archives(folder: Path) -> list[bytes]:
    """Images as zip and tar files of every compression."""
    names, (left, right, *_) = ("left/1.png", "right/1.png"), pngs(folder)
    kinds = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)
    return [zipped(names[0], {names[1]: right}, kind)(left) for kind in kinds] + [
        tarred(dict(zip(names, (left, right), strict=True)), kind) for kind in ("", "gz", "bz2", "xz")
    ]


def tarred(contents: dict[str, bytes], kind: str) -> bytes:
    with tarfile.open(fileobj=(file := io.BytesIO()), mode=f"w:{kind}") as archive:
        for name, data in contents.items():
            (entry := tarfile.TarInfo(name)).size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return file.getvalue()


def unpacked(path: Path) -> None:
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        unpack(path, folder)


def listed(path: Path) -> None:
    samples = read_annotations(path)
    check_files([one for one in samples if not any("://" in str(column) for column in (one.left, one.right))])


@dataclass(frozen=True)
class Target:
    """What is damaged, and how it is read."""

    file: str
    seeds: Callable[[Path], list[bytes]]
    read: Callable[[Path], object]
    around: Callable[[bytes], bytes] = bytes  # what is put around the damaged part


KITTI = partial(read_disparity, dataset_name="kitti")
IN_NPZ = zipped("disparity.npy", how=zipfile.ZIP_DEFLATED)
TARGETS = {
    "annotations": Target("list.txt", lambda folder: [text.encode() for text in LISTS], listed),
    "calib.txt": Target("calib.txt", lambda folder: [MIDDLEBURY.encode(), MIDDLEBURY.encode("utf-16")], calibrated),
    "K.txt": Target("K.txt", lambda folder: [K.encode()], calibrated),
    "pfm": Target("d.pfm", lambda folder: [written(folder, write_pfm, PX)], read_disparity),
    "png_kitti": Target("d.png", disparities, KITTI),
    "png_scaled": Target("d.png", disparities, partial(read_disparity, scale=4.0)),
    "png_repaired": Target("d.png", disparities, partial(read_disparity, scale=32.0), repaired_png),
    "tiff": Target("d.tiff", tiffs, partial(read_disparity, scale=1.0)),
    "npy": Target("d.npy", numpys, partial(read_disparity, scale=1.0)),
    "npz": Target("d.npz", npzs, partial(read_disparity, scale=1.0)),
    "npy_in_npz": Target("d.npz", numpys, partial(read_disparity, scale=1.0), IN_NPZ),
    "archive": Target("images.zip", archives, unpacked),
    "image": Target("i.png", pictures, read_image),
    "image_repaired": Target("i.png", pngs, read_image, repaired_png),
    "mask": Target("m.png", masks, read_mask),
    "mask_repaired": Target("m.png", lambda folder: masks(folder)[:1], read_mask, repaired_png),
}


@pytest.mark.parametrize("name", TARGETS)
@pytest.mark.usefixtures("little_memory")
def test_a_damaged_file(name, tmp_path, counted):
    target = TARGETS[name]
    path = tmp_path / target.file

    @inputs(damaged(target.seeds(tmp_path)))
    def attempt(data: bytes) -> None:
        counted()
        path.write_bytes(target.around(data))
        refused_or_read(target.read, path)

    attempt()


def refused_or_read(read: Callable, *arguments) -> None:
    try:
        read(*arguments)
    except UserError as error:
        assert str(error)


@pytest.mark.usefixtures("little_memory")
def test_a_damaged_shard_and_index(tmp_path, counted):
    contents = {"left/0.png": b"left" * 200, "b c.txt": b"", "disparity/0.pfm": bytes(range(256))}
    (shard,) = shards.pack({name: len(data) for name, data in contents.items()}, contents.get, tmp_path, 1 << 20)
    index = Path(f"{shard}{shards.INDEX}")
    whole = {path: path.read_bytes() for path in (shard, index)}

    @inputs(st.one_of(*(st.tuples(st.just(path), damaged([data])) for path, data in whole.items())))
    def attempt(damage: tuple[Path, bytes]) -> None:
        counted()
        for path, data in whole.items():
            path.write_bytes(damage[1] if path == damage[0] else data)
        shards._parsed.cache_clear()  # it knows an index by its time, and these are quicker than that
        refused_or_read(all_of, str(shard))

    attempt()


def all_of(shard: str) -> None:
    for packed in shards.packed(str(Path(shard).parent)).values():
        shards.fault(*shards.parts(packed))
        refused_or_read(shards.read, *shards.parts(packed))
