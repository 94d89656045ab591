from __future__ import annotations

import cv2
import numpy as np
import pytest
from PIL import Image

from stereo_core.data.images import read_image, read_mask, read_views, write_png
from stereo_core.errors import DataError

RNG = np.random.default_rng(0)
SMOOTH = cv2.GaussianBlur(RNG.integers(0, 256, (48, 64, 3), dtype=np.uint8), (0, 0), 3)  # RGB


@pytest.mark.parametrize("suffix", [".png", ".PNG", ".tif", ".TIFF", ".bmp", ".webp", ".jpg", ".JPEG"])
def test_every_format_in_any_case_and_with_any_name(tmp_path, suffix):
    path = tmp_path / f"深 über{suffix}"
    options = {".webp": [cv2.IMWRITE_WEBP_QUALITY, 101], ".jpg": [cv2.IMWRITE_JPEG_QUALITY, 100]}
    encoded = cv2.imencode(suffix.lower(), SMOOTH[..., ::-1], options.get(suffix.lower(), []))[1]
    path.write_bytes(encoded.tobytes())
    image = read_image(path)
    assert image.shape == SMOOTH.shape and image.dtype == np.uint8
    # JPEG loses a little; a swap of red and blue would show in every format
    assert np.abs(image.astype(int) - SMOOTH).max() <= (12 if suffix.lower() in (".jpg", ".jpeg") else 0)


def test_sixteen_bit_is_scaled_by_257_and_rounded(tmp_path):
    cv2.imwrite(str(tmp_path / "a.png"), np.array([[0, 128, 129, 257, 65535, 65535 - 128, 65535 - 129]], np.uint16))
    assert read_image(tmp_path / "a.png")[0, :, 0].tolist() == [0, 0, 1, 1, 255, 255, 254]


def test_twelve_bits_in_a_sixteen_bit_file_keep_their_grey_levels(tmp_path):
    levels = np.arange(4096, dtype=np.uint16)[None]
    cv2.imwrite(str(tmp_path / "a.png"), levels)
    cv2.imwrite(str(tmp_path / "dark.png"), levels // 16)
    assert len(np.unique(read_image(tmp_path / "a.png", bits=12))) == 256
    left, right = read_views(tmp_path / "dark.png", tmp_path / "a.png")
    assert (left.max(), right.max()) == (16, 255), "one scale for both views"
    left, right = read_views(tmp_path / "dark.png", tmp_path / "dark.png")
    assert np.array_equal(left, right) and left.max() == 255
    assert read_views(tmp_path / "dark.png", tmp_path / "dark.png", least=12)[0].max() == 16
    assert read_views(tmp_path / "a.png", tmp_path / "a.png", bits=16)[0].max() == 16


def test_values_above_the_bits_that_are_set_are_an_error(tmp_path):
    cv2.imwrite(str(tmp_path / "a.png"), np.array([[1024]], np.uint16))
    with pytest.raises(
        DataError, match=r"a\.png: the largest value is 1024, which does not fit in 10 bits; .*image_bits to 12"
    ):
        read_image(tmp_path / "a.png", bits=10)


def test_grey_is_repeated_and_alpha_dropped(tmp_path):
    grey, alpha = SMOOTH[..., 0], RNG.integers(0, 256, SMOOTH.shape[:2], dtype=np.uint8)
    cv2.imwrite(str(tmp_path / "grey.png"), grey)
    cv2.imwrite(str(tmp_path / "rgba.png"), np.dstack([SMOOTH[..., ::-1], alpha]))
    cv2.imwrite(str(tmp_path / "rgba16.tif"), np.dstack([SMOOTH[..., ::-1], alpha]).astype(np.uint16) * 257)
    assert np.array_equal(read_image(tmp_path / "grey.png"), np.dstack([grey] * 3))
    assert np.array_equal(read_image(tmp_path / "rgba.png"), SMOOTH)
    assert np.array_equal(read_image(tmp_path / "rgba16.tif"), SMOOTH)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif", ".bmp", ".webp"])
@pytest.mark.parametrize("share", [0.98, 0.5])
def test_a_truncated_file_is_never_half_read(tmp_path, suffix, share):
    data = cv2.imencode(suffix, SMOOTH)[1].tobytes()
    (tmp_path / f"a{suffix}").write_bytes(data[: int(len(data) * share)])
    with pytest.raises(DataError, match=rf"a\{suffix}: .*truncated"):
        read_image(tmp_path / f"a{suffix}")


def test_a_truncated_jpeg_with_a_whole_thumbnail_is_found(tmp_path):
    jpeg = cv2.imencode(".jpg", SMOOTH)[1].tobytes()
    thumbnail = cv2.imencode(".jpg", SMOOTH[:8, :8])[1].tobytes()
    exif = b"\xff\xe1" + (len(thumbnail) + 2).to_bytes(2, "big") + thumbnail
    (tmp_path / "a.jpg").write_bytes(jpeg[:2] + exif + jpeg[2:])
    assert read_image(tmp_path / "a.jpg").shape == SMOOTH.shape
    (tmp_path / "a.jpg").write_bytes(jpeg[:2] + exif + jpeg[2:-40])
    with pytest.raises(DataError, match="truncated"):
        read_image(tmp_path / "a.jpg")


def test_a_png_with_a_flipped_bit_is_damaged(tmp_path):
    data = bytearray(cv2.imencode(".png", SMOOTH)[1].tobytes())
    data[len(data) // 2] ^= 4
    (tmp_path / "a.png").write_bytes(data)
    with pytest.raises(DataError, match=r"a\.png: .*damaged"):
        read_image(tmp_path / "a.png")


def test_what_is_no_image(tmp_path):
    (tmp_path / "text.png").write_text("hello")
    (tmp_path / "empty.png").touch()
    cv2.imwrite(str(tmp_path / "float.tif"), SMOOTH[..., 0].astype(np.float32))
    for name, complaint in {
        "text.png": "not a PNG",
        "empty.png": "the file is empty",
        "float.tif": "float32",
        "none.png": "No such file",
        ".": "Is a directory",
    }.items():
        with pytest.raises(DataError, match=complaint):
            read_image(tmp_path / name)


@pytest.mark.parametrize("suffix", [".tif", ".webp", ".png"])
def test_a_file_of_several_images_is_refused(tmp_path, suffix):
    """The first page was taken without a word: of a recording, always its first frame."""
    first, second = Image.fromarray(SMOOTH), Image.fromarray(SMOOTH[::-1])
    first.save(tmp_path / f"a{suffix}", save_all=True, append_images=[second])
    with pytest.raises(DataError, match=rf"a\{suffix}: the file has several frames or pages; save each"):
        read_image(tmp_path / f"a{suffix}")


def test_a_preview_in_a_tiff_is_no_second_image(tmp_path):
    Image.fromarray(SMOOTH).save(tmp_path / "a.tif", save_all=True, append_images=[Image.fromarray(SMOOTH[::4, ::4])])
    assert np.array_equal(read_image(tmp_path / "a.tif"), SMOOTH)


def test_only_255_is_visible(tmp_path):
    values = np.array([[0, 1, 128, 254, 255]], np.uint8)
    cv2.imwrite(str(tmp_path / "grey.png"), values)
    cv2.imwrite(str(tmp_path / "rgb.png"), np.dstack([values * 0, values * 0, values]))  # red is the first channel
    cv2.imwrite(str(tmp_path / "deep.png"), np.array([[0, 1, 32768, 65000, 65535]], np.uint16))
    cv2.imwrite(str(tmp_path / "bits.png"), values // 255 * 255, [cv2.IMWRITE_PNG_BILEVEL, 1])
    for name in ("grey.png", "rgb.png", "deep.png", "bits.png"):
        assert read_mask(tmp_path / name).tolist() == [[False, False, False, False, True]]


def test_a_mask_of_ones_is_not_taken_for_all_hidden(tmp_path):
    cv2.imwrite(str(tmp_path / "m.png"), np.array([[0, 1]], np.uint8))
    with pytest.raises(DataError, match=r"m\.png: the mask holds zeros and ones, but .*255"):
        read_mask(tmp_path / "m.png")
    cv2.imwrite(str(tmp_path / "m.png"), np.zeros((2, 2), np.uint8))
    assert not read_mask(tmp_path / "m.png").any()


def test_write_png_keeps_values_and_channel_order(tmp_path):
    for array in (SMOOTH, SMOOTH.astype(np.uint16) * 3, SMOOTH[..., 0]):
        write_png(tmp_path / "new" / "a.png", array)
        stored = cv2.imread(str(tmp_path / "new" / "a.png"), cv2.IMREAD_UNCHANGED)
        assert stored.dtype == array.dtype
        assert np.array_equal(stored if array.ndim == 2 else stored[..., ::-1], array)
