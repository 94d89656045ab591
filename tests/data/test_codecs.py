from __future__ import annotations

import struct
import zlib

import cv2
import numpy as np
import pytest

from stereo_core.data.codecs import (
    read_disparity,
    write_disparity_png16,
    write_disparity_rgb,
    write_pfm,
)
from stereo_core.errors import DataError


def png(path, array):
    cv2.imwrite(str(path), array if array.ndim == 2 else array[..., ::-1])
    return path


# -- PFM --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("order", "scale"), [("<", "-1.0"), (">", "1.0"), ("<", "-0.003922"), (">", "255")])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_pfm_byte_order_bottom_up_rows_and_ignored_scale(tmp_path, order, scale, newline):
    bottom, top = [1.5, 2.5, float("inf")], [4.5, float("nan"), 0.25]
    header = f"Pf{newline}3 2{newline}{scale}{newline}".encode()
    (tmp_path / "d.PFM").write_bytes(header + struct.pack(f"{order}6f", *bottom, *top))
    disparity, valid = read_disparity(tmp_path / "d.PFM")
    assert disparity.tolist() == [[4.5, 0.0, 0.25], [1.5, 2.5, 0.0]]
    assert valid.tolist() == [[True, False, True], [True, True, False]]
    assert disparity.dtype == np.float32


def test_negative_and_zero_values_are_invalid(tmp_path):
    write_pfm(tmp_path / "d.pfm", np.array([[-1.0, 0.0, 3.0]]))
    disparity, valid = read_disparity(tmp_path / "d.pfm")
    assert valid.tolist() == [[False, False, True]]
    assert disparity.tolist() == [[0.0, 0.0, 3.0]]


def test_nan_pixels_are_invalid_but_a_map_of_nothing_else_is_an_error(tmp_path):
    write_pfm(tmp_path / "d.pfm", np.array([[np.nan, 2.0]]))
    assert read_disparity(tmp_path / "d.pfm")[1].tolist() == [[False, True]]
    write_pfm(tmp_path / "d.pfm", np.full((2, 2), np.nan))
    with pytest.raises(DataError, match=r"d\.pfm: .*NaN everywhere"):
        read_disparity(tmp_path / "d.pfm")


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        (b"Pf\n3 2\n-1.0\n" + bytes(23), "the PFM is truncated: 23 of 24 bytes"),
        (b"PF\n1 1\n-1.0\n" + bytes(12), "colour PFM"),
        (b"P5\n1 1\n255\n\0", "not a PFM file"),
        (b"", "not a PFM file"),
        (b"Pf\n" + b"9" * 5000 + b" 2\n-1.0\n", "not a PFM file"),  # more digits than Python makes a number of
        (b"Pf\n0 2\n-1.0\n", r"shape \(2, 0\)"),
    ],
)
def test_bad_pfm(tmp_path, data, complaint):
    (tmp_path / "d.pfm").write_bytes(data)
    with pytest.raises(DataError, match=rf"d\.pfm: .*{complaint}"):
        read_disparity(tmp_path / "d.pfm")


def test_written_pfm_is_read_by_opencv(tmp_path):
    array = np.random.default_rng(0).uniform(0.1, 300, (5, 7)).astype(np.float32)
    write_pfm(tmp_path / "d.pfm", array)
    assert np.array_equal(cv2.imread(str(tmp_path / "d.pfm"), cv2.IMREAD_UNCHANGED), array)
    assert np.array_equal(read_disparity(tmp_path / "d.pfm")[0], array)


# -- PNG --------------------------------------------------------------------------------------------------------------


def test_sixteen_bit_png_keeps_its_low_byte(tmp_path):
    path = png(tmp_path / "d.png", np.array([[0, 1, 257, 65535]], np.uint16))
    disparity, valid = read_disparity(path, dataset_name="KITTI")
    assert disparity.tolist() == [[0, 1 / 256, 257 / 256, 65535 / 256]]
    assert valid.tolist() == [[False, True, True, True]]
    assert read_disparity(path, dataset_name="CREStereo")[0].tolist() == [[0, 1 / 32, 257 / 32, 65535 / 32]]
    assert read_disparity(path, format="png_u16_32", dataset_name="Kitti")[0][0, 2] == 257 / 32
    assert read_disparity(path, scale=100, dataset_name="FSD")[0][0, 2] == np.float32(2.57)


@pytest.mark.parametrize("name", ["FSD", "IsaacRealDataset", "Middlebury", "Eth3d", "GenericDataset"])
def test_rgb_code_is_radix_255_red_first(tmp_path, name):
    path = png(tmp_path / "d.PNG", np.array([[[1, 2, 3], [0, 0, 0], [0, 254, 254]]], np.uint8))
    disparity, valid = read_disparity(path, dataset_name=name)
    assert disparity[0] == pytest.approx([(1 * 255 * 255 + 2 * 255 + 3) / 1000, 0, (254 * 255 + 254) / 1000])
    assert valid.tolist() == [[True, False, True]]


def test_eight_bit_grey_is_divided_by_its_scale(tmp_path):
    path = png(tmp_path / "d.png", np.array([[0, 50, 211]], np.uint8))
    for options in ({"scale": 4}, {"scale": 4, "format": "png_u8"}, {"scale": 4, "dataset_name": "Middlebury"}):
        disparity, valid = read_disparity(path, **options)
        assert disparity.tolist() == [[0, 12.5, 52.75]]
        assert valid.tolist() == [[False, True, True]]
    assert read_disparity(path, scale=1)[0].tolist() == [[0, 50, 211]]
    with pytest.raises(DataError, match=r"disparity_scale 0\.25 is below 1.* mean 4\?"):
        read_disparity(path, scale=0.25)
    with pytest.raises(DataError, match="disparity_scale"):
        read_disparity(path, format="png_u8")


GREY16 = np.array([[256, 512]], np.uint16)
GREY8 = np.array([[10, 20]], np.uint8)
RGB8 = np.array([[[0, 1, 2], [0, 3, 4]]], np.uint8)


@pytest.mark.parametrize(
    ("array", "name", "first", "second"),
    [
        (GREY16, "GenericDataset", "png_u16_256", "png_u16_32"),
        (GREY16, "Middlebury", "png_u16_256", "png_u16_32"),
        (GREY16, "Eth3d", "png_u16_256", "png_u16_32"),
        (GREY16, "FSD", "png_rgb", "png_u16_256"),
        (GREY8, "GenericDataset", "png_u8", "16-bit map"),
        (GREY8, "Kitti", "png_u16_256", "png_u8"),
        (GREY8, "Crestereo", "png_u16_32", "png_u8"),
        (RGB8, "Kitti", "png_u16_256", "png_rgb"),
        (np.repeat(GREY8[..., None], 3, axis=2), "GenericDataset", "png_rgb", "grey map saved as RGB"),
        (np.repeat(GREY8[..., None], 3, axis=2), "FSD", "png_rgb", "grey map saved as RGB"),
    ],
)
def test_an_ambiguous_png_names_both_readings_and_the_key(tmp_path, array, name, first, second):
    path = png(tmp_path / "d.png", array)
    with pytest.raises(DataError) as error:
        read_disparity(path, dataset_name=name)
    for word in (str(path), first, second, "data_sources[*].disparity_format"):
        assert word in str(error.value)


@pytest.mark.parametrize(
    ("array", "format"),
    [(GREY8, "png_u16_256"), (RGB8, "png_u16_32"), (GREY16, "png_rgb"), (GREY16, "png_u8"), (RGB8, "png_u8")],
)
def test_a_named_format_is_never_bent_to_fit_the_file(tmp_path, array, format):
    with pytest.raises(DataError, match=rf"d\.png: .*{format}"):
        read_disparity(png(tmp_path / "d.png", array), format=format, scale=4)


def test_a_file_of_another_layout_than_its_format_is_told_with_both(tmp_path):
    with pytest.raises(DataError, match="this is a 16-bit grey PNG, but disparity_format png_rgb is a 8-bit RGB PNG"):
        read_disparity(png(tmp_path / "d.png", GREY16), format="png_rgb")


def test_grey_saved_as_rgb_is_read_when_asked_for(tmp_path):
    path = png(tmp_path / "d.png", np.repeat(GREY8[..., None], 3, axis=2))
    assert read_disparity(path, format="png_u8", scale=4)[0].tolist() == [[2.5, 5.0]]


def hand_made_png(path, rows, bits, colour_type, palette=b""):
    """A PNG of `bits` bits a pixel, grey (0) or with a palette (3), row by row of `rows`."""
    size = struct.pack(">IIBBBBB", len(rows[0]), len(rows), bits, colour_type, 0, 0, 0)
    packed = b"".join(b"\0" + np.packbits(np.unpackbits(row[:, None], axis=1)[:, -bits:]).tobytes() for row in rows)
    chunks = [
        (b"IHDR", size),
        *([(b"PLTE", palette)] if palette else []),
        (b"IDAT", zlib.compress(packed)),
        (b"IEND", b""),
    ]
    body = [
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    ]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(body))
    return path


@pytest.mark.parametrize("options", [{"dataset_name": "Middlebury"}, {"format": "png_u8"}])
def test_grey_in_a_palette_is_grey(tmp_path, options):
    """Middlebury v2, and what an optimiser of PNG files makes of 8-bit grey with few values."""
    indices = np.array([[0, 1, 2, 3, 3]], np.uint8)
    grey = bytes(value for level in (0, 48, 160, 255) for value in (level,) * 3)
    for bits in (2, 4, 8):
        path = hand_made_png(tmp_path / f"{bits}.png", indices, bits, 3, grey)
        disparity, valid = read_disparity(path, scale=16, **options)
        assert disparity.tolist() == [[0, 3, 10, 15.9375, 15.9375]]
        assert valid.tolist() == [[False, True, True, True, True]]
        with pytest.raises(DataError, match="disparity_scale"):
            read_disparity(path, **options)


@pytest.mark.parametrize(("bits", "largest"), [(1, 1), (2, 3), (4, 15)])
def test_grey_of_few_bits_stands_for_eight(tmp_path, bits, largest):
    path = hand_made_png(tmp_path / "d.png", np.array([[0, 1, largest]], np.uint8), bits, 0)
    disparity, valid = read_disparity(path, scale=5, dataset_name="Middlebury")
    assert disparity[0] == pytest.approx([0, 51 / largest, 51])
    assert valid.tolist() == [[False, True, True]]


def test_colours_in_a_palette_are_no_disparities(tmp_path):
    path = hand_made_png(tmp_path / "d.png", np.array([[0, 1]], np.uint8), 8, 3, bytes([0, 0, 0, 9, 9, 8]))
    with pytest.raises(DataError, match=r"d\.png: this PNG is coloured"):
        read_disparity(path, scale=16)


# -- TIFF, NumPy ------------------------------------------------------------------------------------------------------


def test_float_tiff_and_numpy_files(tmp_path):
    array = np.array([[1.25, np.inf, 3.5]], np.float32)
    cv2.imwrite(str(tmp_path / "d.TIFF"), array)
    np.save(tmp_path / "d.npy", array[..., None].astype(np.float64))
    np.savez(tmp_path / "one.npz", anything=array)
    np.savez_compressed(tmp_path / "two.npz", disparity=array[None], confidence=array)
    for name in ("d.TIFF", "d.npy", "one.npz", "two.npz"):
        disparity, valid = read_disparity(tmp_path / name)
        assert disparity.tolist() == [[1.25, 0, 3.5]]
        assert valid.tolist() == [[True, False, True]]


def test_whole_numbers_in_tiff_and_numpy_need_a_scale(tmp_path):
    cv2.imwrite(str(tmp_path / "d.tif"), GREY16)
    np.save(tmp_path / "d.npy", GREY16)
    for name in ("d.tif", "d.npy"):
        with pytest.raises(DataError, match="disparity_scale"):
            read_disparity(tmp_path / name)
        assert read_disparity(tmp_path / name, scale=256)[0].tolist() == [[1.0, 2.0]]


def test_numpy_files_that_can_not_be_used(tmp_path):
    np.save(tmp_path / "pickled.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    np.savez(tmp_path / "many.npz", a=np.ones((2, 2)), b=np.ones((2, 2)))
    np.save(tmp_path / "cube.npy", np.ones((2, 3, 4)))
    np.save(tmp_path / "short.npy", np.ones((20, 30)))
    (tmp_path / "short.npy").write_bytes((tmp_path / "short.npy").read_bytes()[:300])
    (tmp_path / "text.npz").write_text("no archive")
    for name, complaint in {
        "pickled.npy": "pickled",
        "many.npz": "contains the arrays a, b",
        "cube.npy": r"shape \(2, 3, 4\)",
        "short.npy": "truncated",
        "text.npz": "not a NumPy file",
    }.items():
        with pytest.raises(DataError, match=f"{name}: .*{complaint}"):
            read_disparity(tmp_path / name)


def header(text: str) -> bytes:
    return b"\x93NUMPY\1\0" + struct.pack("<H", len(text)) + text.encode("latin1")


@pytest.mark.parametrize(
    ("data", "raised"),
    [
        (header("{'descr'#: '<f4'}\n"), "TokenError"),
        (header("{'descr': '<f4', 'fortran_order': False, 'shape': (2 2)}\n"), "SyntaxError|ValueError"),
        (header("{'descr': '<f4', 'fortran_order': False, 'shape': (99999999999999, 9)}\n"), "MemoryError"),
        (header("[" * 2000), "Error"),
        (struct.pack("<4sHHHHHIIIHH", b"PK\3\4", 20, 0, 99, 0, 0, 0, 4, 4, 5, 0) + b"a.npydata", "BadZipFile"),
    ],
)
def test_whatever_numpy_says_about_a_damaged_file_is_an_error_of_the_file(tmp_path, data, raised):
    (tmp_path / "d.npy").write_bytes(data)
    with pytest.raises(DataError, match=rf"d\.npy: not a NumPy file, .*({raised})"):
        read_disparity(tmp_path / "d.npy")


@pytest.mark.parametrize(("field", "value", "raised"), [(10, 99, "NotImplementedError"), (8, 1, "RuntimeError")])
def test_an_archive_that_is_packed_or_encrypted_in_another_way(tmp_path, field, value, raised):
    np.savez(tmp_path / "d.npz", disparity=np.ones((2, 2)))
    data = bytearray((tmp_path / "d.npz").read_bytes())
    struct.pack_into("<H", data, data.index(b"PK\1\2") + field, value)  # in the archive's directory
    (tmp_path / "d.npz").write_bytes(data)
    with pytest.raises(DataError, match=rf"d\.npz: not a NumPy file, .*{raised}"):
        read_disparity(tmp_path / "d.npz")


def test_other_suffixes_and_missing_files(tmp_path):
    (tmp_path / "d.jpg").touch()
    with pytest.raises(DataError, match=r"d\.jpg: '.jpg' is not a suffix of a disparity file.*\.pfm"):
        read_disparity(tmp_path / "d.jpg")
    with pytest.raises(DataError, match=r"none\.pfm: .*No such file"):
        read_disparity(tmp_path / "none.pfm")


# -- writers ----------------------------------------------------------------------------------------------------------


def test_png16_rounds_saturates_and_keeps_invalid_zero(tmp_path):
    disparity = np.array([[1.0, 0.0001, 300.0, np.nan, np.inf, -2.0, 0.0, 5.0, 1.0 + 0.7 / 256]])
    valid = np.ones(disparity.shape, bool)
    valid[0, 7] = False
    assert write_disparity_png16(tmp_path / "k.png", disparity, valid) == 1
    stored = cv2.imread(str(tmp_path / "k.png"), cv2.IMREAD_UNCHANGED)
    assert stored.dtype == np.uint16
    assert stored.tolist() == [[256, 1, 65535, 0, 0, 0, 0, 0, 257]]
    write_disparity_png16(tmp_path / "c.png", np.array([[1.5]]), scale=32)
    assert read_disparity(tmp_path / "c.png", dataset_name="crestereo")[0].tolist() == [[1.5]]


def test_a_zero_of_crestereo_is_invalid(tmp_path):
    """TAO's item 11: there it stays 0 px and counts in the loss."""
    cv2.imwrite(str(tmp_path / "c.png"), np.array([[0, 32, 0, 1]], np.uint16))
    disparity, valid = read_disparity(tmp_path / "c.png", dataset_name="Crestereo")
    assert valid.tolist() == [[False, True, False, True]]
    assert disparity[valid].tolist() == [1.0, 1 / 32]


def test_rgb_code_is_exact_to_half_a_thousandth(tmp_path):
    disparity = np.random.default_rng(1).uniform(0.001, 416, (50, 60))
    disparity[0, :3] = [0.2549, 65.025, 16646.399]  # carries of the digits, the largest code
    disparity[1, 0] = np.inf
    write_disparity_rgb(tmp_path / "d.png", disparity)
    read, valid = read_disparity(tmp_path / "d.png", dataset_name="FSD")
    assert valid.sum() == disparity.size - 1 and not valid[1, 0]
    finite = np.isfinite(disparity)
    assert np.abs(read.astype(np.float64) - disparity)[finite & (disparity < 1000)].max() < 0.00052
    assert read[0, 2] == np.float32(16646.399)
