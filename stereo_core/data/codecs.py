"""Disparity files -> (disparity in px, validity), and back.

Disparity in px = stored value / scale. Each format has a default scale; a data source's `disparity_scale` overrides it:

| format | stored | scale |
|---|---|---|
| pfm | float32, rows bottom-up; the header's scale gives the byte order only | 1 |
| png_rgb | 8-bit RGB: R * 255 * 255 + G * 255 + B (radix 255; FSD, Isaac) | 1000 |
| png_u16_256 | 16-bit grey (KITTI) | 256 |
| png_u16_32 | 16-bit grey (CREStereo) | 32 |
| png_u8 | 8-bit grey, or grey in a palette or of fewer bits (Middlebury 2003: 4) | none: disparity_scale is required |
| tiff, npy, npz | float | 1; integers: disparity_scale is required |

A pixel is valid if its value is finite and above 0; 0, negative values, infinity and NaN mark unmeasured pixels.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from stereo_core.data.images import PNG_SIGNATURE, decode, read_bytes, write_png
from stereo_core.errors import DataError
from stereo_core.files import atomic_path
from stereo_core.values import size_text

FORMATS = ("auto", "pfm", "png_rgb", "png_u16_256", "png_u16_32", "png_u8", "tiff", "npy", "npz")

_SCALES = {"png_rgb": 1000.0, "png_u16_256": 256.0, "png_u16_32": 32.0}
_BY_SUFFIX = {".pfm": "pfm", ".tif": "tiff", ".tiff": "tiff", ".npy": "npy", ".npz": "npz"}
_BY_DATASET = {"kitti": "png_u16_256", "crestereo": "png_u16_32", "fsd": "png_rgb", "isaacrealdataset": "png_rgb"}
_LAYOUTS = {"png_rgb": (8, "rgb"), "png_u16_256": (16, "grey"), "png_u16_32": (16, "grey"), "png_u8": (8, "grey")}
_PNG_COLOURS = {0: "grey", 2: "rgb", 3: "palette", 4: "grey", 6: "rgb"}
_PFM_HEADER = re.compile(rb"(PF|Pf)\s+(?:#[^\n]*\n\s*)*(\d{1,9})\s+(\d{1,9})\s+([-+.\deE]+)[ \t]*\r?\n")


def read_disparity(
    path: str | Path, format: str = "auto", scale: float | None = None, dataset_name: str = "GenericDataset"
) -> tuple[np.ndarray, np.ndarray]:
    """Read a disparity map.

    Args:
        path: the file.
        format: one of FORMATS; `auto` decides by the suffix and, for PNG, by the data set's name and the file's layout.
        scale: the stored value of 1 px (disparity = stored / scale); None takes the format's own.
        dataset_name: `data_sources[*].dataset_name`, in any case.

    Returns:
        disparity: float32 (H, W), px at the file's own resolution, 0 where not valid.
        valid: bool (H, W).

    Raises:
        DataError: the file is missing, damaged, of another format, all NaN, or ambiguous.
    """
    data = read_bytes(path)
    if scale is not None and not scale > 0:
        raise DataError(f"{path}: disparity_scale is {scale}; it must be above 0")
    wanted = format
    if wanted == "auto":
        format = _guess(path, data, scale, dataset_name)
    stored = _READERS[format](path, data, format, scale)
    if wanted == "auto" and format == "png_rgb" and stored.any() and (stored % (255 * 255 + 255 + 1) == 0).all():
        raise DataError(
            f"{path}: the format is ambiguous because R, G and B are equal everywhere; it may be"
            f" {_readings((8, 'rgb'))}: set data_sources[*].disparity_format (png_u8 with disparity_scale, or png_rgb)"
        )
    if scale is not None and scale < 1 and stored.dtype.kind in "iu":
        raise DataError(
            f"{path}: disparity_scale {scale} is below 1, but the file holds whole numbers; the scale is the stored"
            f" value of 1 px (disparity = stored / scale). Did you mean {1 / scale:g}?"
        )
    return _finish(path, stored, scale or _SCALES.get(format, 1.0))


def _finish(path: str | Path, stored: np.ndarray, scale: float) -> tuple[np.ndarray, np.ndarray]:
    if stored.ndim == 3 and 1 in (stored.shape[0], stored.shape[2]):
        stored = stored.squeeze(2 if stored.shape[2] == 1 else 0)
    if stored.ndim != 2 or stored.size == 0:
        raise DataError(f"{path}: the array has shape {stored.shape}; save the disparity map as (H, W)")
    if np.isnan(stored).all():
        raise DataError(f"{path}: the disparity is NaN everywhere; check how the file was written")
    with np.errstate(over="ignore", invalid="ignore"):
        disparity = (stored / scale).astype(np.float32)
    valid = np.isfinite(disparity) & (disparity > 0)
    return np.where(valid, disparity, np.float32(0)), valid


# -- which format -----------------------------------------------------------------------------------------------------


def _guess(path: str | Path, data: bytes, scale: float | None, dataset_name: str) -> str:
    suffix = Path(path).suffix.lower()
    if suffix in _BY_SUFFIX:
        return _BY_SUFFIX[suffix]
    if suffix != ".png":
        raise DataError(
            f"{path}: '{suffix}' is not a suffix of a disparity file; expected .pfm .png .tif .tiff .npy .npz"
        )
    layout = _png_layout(path, data)
    if scale is not None and layout == (8, "palette"):
        return "png_u8"
    named = _BY_DATASET.get(dataset_name.lower())
    if named and _LAYOUTS[named] == layout:
        return named
    if scale is not None and layout in ((8, "grey"), (16, "grey")):
        return "png_u8" if layout[0] == 8 else "png_u16_256"
    if named:
        raise DataError(
            f"{path}: this is a {_describe(layout)}, but {dataset_name} stores disparity as "
            f"{_describe(_LAYOUTS[named])}"
            f" ({named}); the file may be {_readings(layout)}: set data_sources[*].disparity_format"
        )
    if layout == (8, "rgb"):
        return "png_rgb"
    raise DataError(
        f"{path}: this {_describe(layout)} can be read in two ways: {_readings(layout)};"
        " set data_sources[*].disparity_format or disparity_scale"
    )


def _describe(layout: tuple[int, str]) -> str:
    return f"{layout[0]}-bit {layout[1].replace('rgb', 'RGB')} PNG"


def _readings(layout: tuple[int, str]) -> str:
    return {
        (16, "grey"): "png_u16_256 (KITTI, value / 256) or png_u16_32 (CREStereo, value / 32)",
        (8, "grey"): "png_u8 with its disparity_scale (Middlebury 2003: value / 4) or a 16-bit map saved as 8 bit",
        (8, "rgb"): "png_rgb (FSD, RGB-coded thousandths) or a grey map saved as RGB",
        (8, "palette"): "png_u8 with its disparity_scale (Middlebury v2) or a colour image",
    }.get(layout, "an image of a disparity map or a map saved by the wrong tool")


def _png_layout(path: str | Path, data: bytes) -> tuple[int, str]:
    """(bits per channel, colour) of a PNG, from its header alone; fewer than 8 bits are decoded to 8 and count as 8.

    Tools that save 8-bit grey in fewer bits keep its values: 15 in 4 bits stands for 255.
    """
    if not data.startswith(PNG_SIGNATURE) or len(data) < 26:
        raise DataError(f"{path}: the file is no PNG or is truncated; copy it again")
    return max(data[24], 8), _PNG_COLOURS.get(data[25], "unknown")


# -- readers: (path, bytes, format, scale) -> stored values -----------------------------------------------------------


def _read_pfm(path: str | Path, data: bytes, format: str, scale: float | None) -> np.ndarray:
    header = _PFM_HEADER.match(data)
    if header is None:
        raise DataError(f"{path}: not a PFM file: the header must be 'Pf', width and height, scale")
    kind, width, height, order = header.groups()
    if kind == b"PF":
        raise DataError(f"{path}: this is a colour PFM ('PF'); save the disparity as one channel ('Pf')")
    body, size = data[header.end() :], 4 * int(width) * int(height)
    if len(body) < size:
        raise DataError(
            f"{path}: the PFM is truncated: {len(body)} of {size} bytes for "
            f"{size_text((int(height), int(width)))} px; copy it again"
        )
    # the sign is the byte order; the magnitude is a display hint of Middlebury, not a factor
    rows = np.frombuffer(body, "<f4" if order.startswith(b"-") else ">f4", count=size // 4)
    if _is_swapped(rows):
        raise DataError(
            f"{path}: the bytes are in the opposite order of what the header says; change the sign of "
            f"{order.decode()}, "
            "the header's last number"
        )
    return rows.reshape(int(height), int(width))[::-1]


def _is_swapped(values: np.ndarray) -> bool:
    """Whether the floats make sense only with their bytes swapped: otherwise half of them are no possible
    disparities."""

    def share(values: np.ndarray) -> float:
        sizes = np.abs(values[np.isfinite(values) & (values != 0)].astype(np.float64))
        return float(((sizes > 1e-4) & (sizes < 1e6)).mean()) if sizes.size else 1.0

    return share(values) < 0.5 and share(values.byteswap()) > 0.99


def _read_png(path: str | Path, data: bytes, format: str, scale: float | None) -> np.ndarray:
    layout, wanted = _png_layout(path, data), _LAYOUTS[format]
    if layout != wanted and not (format == "png_u8" and layout in ((8, "rgb"), (8, "palette"))):
        raise DataError(
            f"{path}: this is a {_describe(layout)}, but disparity_format {format} is a {_describe(wanted)}; "
            "correct data_sources[*].disparity_format"
        )
    if format == "png_u8" and scale is None:
        raise DataError(f"{path}: an 8-bit grey PNG does not store its scale: set data_sources[*].disparity_scale")
    stored = decode(path, data)
    if format != "png_rgb":
        if (stored != stored[..., :1]).any():
            raise DataError(
                f"{path}: this PNG is coloured, but disparity_format {format} is grey; name "
                "a disparity map, or set data_sources[*].disparity_format to png_rgb"
            )
        return stored[..., 0]
    return stored.astype(np.float64) @ (255.0 * 255.0, 255.0, 1.0)


def _read_tiff(path: str | Path, data: bytes, format: str, scale: float | None) -> np.ndarray:
    return _scaled(path, decode(path, data), scale)


def _read_numpy(path: str | Path, data: bytes, format: str, scale: float | None) -> np.ndarray:
    stored = _loaded(path, data)
    if stored.dtype.kind not in "fiu":
        raise DataError(f"{path}: the array holds {stored.dtype}; save the disparity as numbers")
    return _scaled(path, stored, scale)


def _loaded(path: str | Path, data: bytes) -> np.ndarray:
    try:
        loaded = np.load(io.BytesIO(data), allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return loaded
        names = [name for name in ("disparity", "disp") if name in loaded.files] or loaded.files
        stored = loaded[names[0]] if len(names) == 1 else None
    except Exception as error:  # parsers of Python, zip and deflate raise many kinds; no list exists
        reason = f"{type(error).__name__}: {error}"
        raise DataError(
            f"{path}: not a NumPy file, truncated, or with pickled objects ({reason}); save it again without objects"
        ) from error
    if not isinstance(stored, np.ndarray):
        raise DataError(f"{path}: contains the arrays {', '.join(loaded.files)}; name the disparity map 'disparity'")
    return stored


def _scaled(path: str | Path, stored: np.ndarray, scale: float | None) -> np.ndarray:
    if stored.dtype.kind != "f" and scale is None:
        raise DataError(
            f"{path}: the {stored.dtype} values may be px or px times a scale (16, 256, ...):"
            " set data_sources[*].disparity_scale (1 for px)"
        )
    return stored


_READERS: dict[str, Callable[[str | Path, bytes, str, float | None], np.ndarray]] = {
    "pfm": _read_pfm,
    "tiff": _read_tiff,
    "npy": _read_numpy,
    "npz": _read_numpy,
    **dict.fromkeys(_LAYOUTS, _read_png),
}


# -- writers ----------------------------------------------------------------------------------------------------------


def write_pfm(path: str | Path, disparity: np.ndarray) -> None:
    """Write float (H, W) as a PFM file: little-endian (scale -1), rows bottom-up. Infinity marks unknown pixels."""
    rows = np.ascontiguousarray(disparity[::-1], dtype="<f4")
    with atomic_path(path) as temporary:
        temporary.write_bytes(b"Pf\n%d %d\n-1.0\n" % (rows.shape[1], rows.shape[0]) + rows.tobytes())


def write_disparity_png16(
    path: str | Path, disparity: np.ndarray, valid: np.ndarray | None = None, scale: float = 256.0
) -> int:
    """Write px (H, W) as a 16-bit PNG of round(px * scale): 256 as KITTI, 32 as CREStereo.

    0 marks invalid pixels: not in `valid`, not finite, or not above 0. Valid values are clipped to 1 and 65535, that is
    to 65535 / scale px (255.996 px for KITTI).

    Returns:
        the number of pixels above that limit.
    """
    valid = _valid(disparity, valid)
    stored = np.rint(np.where(valid, disparity, 0).astype(np.float64) * scale)
    write_png(path, np.where(valid, np.clip(stored, 1, 65535), 0).astype(np.uint16))
    return int(np.count_nonzero(stored > 65535))


def write_disparity_rgb(path: str | Path, disparity: np.ndarray, valid: np.ndarray | None = None) -> None:
    """Write px (H, W) as FSD does: thousandths, with R, G, B as digits of radix 255; 0 marks invalid pixels.

    Valid pixels are clipped to 0.001 and 16646.399 px; the rounding error is at most 0.0005 px.
    """
    valid = _valid(disparity, valid)
    largest = 255**3 + 254 * 255 + 254  # the digits 255, 254, 254
    stored = np.clip(np.rint(np.where(valid, disparity, 0).astype(np.float64) * 1000), 1, largest)
    stored = np.where(valid, stored, 0).astype(np.int64)
    write_png(path, np.stack([stored // 255**2, stored // 255 % 255, stored % 255], axis=-1).astype(np.uint8))


def _valid(disparity: np.ndarray, valid: NDArray[np.bool_] | None) -> NDArray[np.bool_]:
    positive: NDArray[np.bool_] = np.isfinite(disparity) & (disparity > 0)
    return positive if valid is None else positive & valid
