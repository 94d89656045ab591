"""Image files -> RGB arrays, and PNG files back.

Files are read whole and checked for truncation first: for a truncated PNG or JPEG, OpenCV before 5 silently returns a
partly grey image.
"""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import Final, Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from stereo_core import storage
from stereo_core.data import shards
from stereo_core.errors import DataError
from stereo_core.files import LFS_POINTER, atomic_path, is_lfs_pointer

BITS = (8, 10, 12, 14, 16)  # bit depths that cameras write into 16-bit files
AUTO: Final = "auto"
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


def read_image(path: str | Path, bits: int = 16) -> NDArray[np.uint8]:
    """Read a PNG, JPEG, TIFF, BMP or WebP file, whatever its suffix.

    8-bit files keep their values; values of 16-bit files are scaled so that the largest `bits`-bit value becomes 255,
    and rounded. Grey is repeated to three channels, alpha is dropped. EXIF rotation is not applied: it would break the
    epipolar geometry.

    Returns:
        uint8 (H, W, 3), RGB.

    Raises:
        DataError: the file is missing, truncated, no image, has neither 8 nor 16 bit, or has values above `bits`.
    """
    return _rgb(path, decode_view(path), bits)


def read_views(
    left: str | Path, right: str | Path, bits: int | Literal["auto"] = AUTO, least: int = BITS[0]
) -> tuple[np.ndarray, np.ndarray]:
    """Read both images of a pair as `read_image` does, with one scale.

    Args:
        bits: of the values in 16-bit files; auto: the smallest of BITS that holds the values of both, at least `least`.
    """
    images = decode_view(left), decode_view(right)
    known = bits if isinstance(bits, int) else max(least, bits_for(*map(largest_deep, images)))
    return _rgb(left, images[0], known), _rgb(right, images[1], known)


def largest_deep(image: np.ndarray) -> int:
    """The largest value of a 16-bit image; 0 for any other."""
    return int(image.max()) if image.dtype == np.uint16 else 0


def bits_for(*largest: int) -> int:
    """The smallest of BITS that holds the values."""
    return next(bits for bits in BITS if max(largest) < 1 << bits)


def _rgb(path: str | Path, image: np.ndarray, bits: int) -> np.ndarray:
    if image.dtype == np.uint16:
        highest = (1 << bits) - 1
        if largest_deep(image) > highest:
            raise DataError(
                f"{path}: the largest value is {image.max()}, which does not fit in {bits} bits; set"
                f" data_sources[*].image_bits to {bits_for(largest_deep(image))}"
            )
        image = ((image.astype(np.uint32) * 255 + highest // 2) // highest).astype(np.uint8)
    return image if image.shape[2] == 3 else np.repeat(image, 3, axis=2)


def read_mask(path: str | Path) -> np.ndarray:
    """Read an occlusion mask: 255 (65535 at 16 bit) marks pixels that both cameras see; all others are excluded.

    Returns:
        bool (H, W).

    Raises:
        DataError: as `read_image`; also for a mask of zeros and ones, which would mark nothing as visible.
    """
    mask = read_image(path)[..., 0]
    if mask.max() == 1:
        raise DataError(
            f"{path}: the mask holds zeros and ones, but visible pixels must be 255; multiply the mask by 255"
        )
    visible: NDArray[np.bool_] = mask == 255
    return visible


def write_png(path: str | Path, image: np.ndarray) -> None:
    """Write uint8 or uint16, grey (H, W) or RGB (H, W, 3), as PNG; the file is replaced atomically."""
    if image.ndim == 3:
        image = image[..., ::-1]
    encoded = cv2.imencode(".png", np.ascontiguousarray(image))[1]
    with atomic_path(path) as temporary:
        temporary.write_bytes(encoded.tobytes())


def read_bytes(path: str | Path) -> bytes:
    """The contents of a file (on disk or in a shard) or of the object at a URI; DataError if it is missing, a folder
    or unreadable."""
    if packed := shards.parts(path):
        return shards.read(*packed)
    if storage.is_uri(path):
        return storage.read(path)
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot read the file: {error.strerror}") from error
    if is_lfs_pointer(data):
        raise DataError(f"{path}: {LFS_POINTER}")
    return data


def decode_view(path: str | Path) -> np.ndarray:
    """Decode a camera's image, uint8 or uint16 (H, W, 1) or (H, W, 3).

    Raises:
        DataError: as `decode`; also for values of another type.
    """
    image = decode(path)
    if image.dtype not in (np.uint8, np.uint16):
        raise DataError(f"{path}: the image holds {image.dtype} values; save it with 8 or 16 bits per channel")
    return image


def decode(path: str | Path, data: bytes | None = None) -> np.ndarray:
    """Decode an image file without changing its bit depth.

    Returns:
        (H, W, 1) grey or (H, W, 3) RGB, uint8, uint16 or float (TIFF). Alpha is dropped.

    Raises:
        DataError: the file is missing, truncated or no image, or has several frames or pages.
    """
    data = read_bytes(path) if data is None else data
    _check_whole(path, data)
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
        several = image is not None and _is_one_of_several(image, data)
    except cv2.error as error:
        raise DataError(f"{path}: the image is damaged ({error.err}); copy it again") from error
    if image is None:
        raise DataError(f"{path}: the image is truncated or damaged; copy it again")
    if several:
        raise DataError(f"{path}: the file has several frames or pages; save each as a file of its own")
    image = image.reshape(*image.shape[:2], -1)
    return np.ascontiguousarray(image[..., 2::-1]) if image.shape[2] >= 3 else image[..., :1]


def _is_one_of_several(image: np.ndarray, data: bytes) -> bool:
    """Whether the decoded image is the first frame or page of several; the smaller previews of a TIFF do not count."""
    if data.startswith(PNG_SIGNATURE):
        return b"acTL" in data[: data.find(b"IDAT")]  # the chunk of an animation comes before the image
    if data.startswith(b"RIFF"):
        return data[12:16] == b"VP8X" and bool(data[20] & 2)
    if not data.startswith(_TIFF):
        return False
    second = cv2.imdecodemulti(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED, range=(1, 2))[1]
    return len(second) == 1 and second[0].shape == image.shape


def _check_whole(path: str | Path, data: bytes) -> None:
    """Raise DataError unless the bytes are a complete file of a supported format."""
    if data.startswith(PNG_SIGNATURE):
        whole = _png_is_whole(data)
    elif data.startswith(b"\xff\xd8\xff"):
        # an EXIF thumbnail has its own end marker, but it lies before the last start-of-scan marker
        whole = data.rfind(b"\xff\xd9") > data.rfind(b"\xff\xda") > 0
    elif data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        whole = len(data) >= 8 + int.from_bytes(data[4:8], "little")
    elif data.startswith((b"BM", *_TIFF)):
        whole = True  # OpenCV itself refuses a truncated BMP or TIFF
    else:
        raise DataError(
            f"{path}: not a PNG, JPEG, TIFF, BMP or WebP image" + ("; the file is empty" if not data else "")
        )
    if not whole:
        raise DataError(f"{path}: the image is truncated or damaged ({len(data)} bytes); copy it again")


def _png_is_whole(data: bytes) -> bool:
    position = len(PNG_SIGNATURE)
    while position + 12 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, position)
        end = position + 12 + length
        if end > len(data) or zlib.crc32(data[position + 4 : end - 4]) != int.from_bytes(data[end - 4 : end], "big"):
            return False
        if kind == b"IEND":
            return True
        position = end
    return False
