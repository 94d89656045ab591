"""Calibration pairs: a left image with the wrong right image, or none, would calibrate on nonsense."""

from __future__ import annotations

import io
import tarfile
import zipfile
from pathlib import Path

import pytest

from stereo_core.errors import DataError
from stereo_core.quantization.pairs import find_pairs, samples_of, unpack
from stereo_core.spec import spec_from_dict


def touch(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def pairs(folder: Path) -> list[tuple[str, str]]:
    root = folder.parent
    return [tuple(str(Path(p).relative_to(root)) for p in (s.left, s.right)) for s in find_pairs(folder)]


@pytest.mark.parametrize(
    ("files", "folder", "expected"),
    [
        (["a/left/1.png", "a/right/1.png", "a/left/2.PNG", "a/right/2.PNG", "a/left/notes.txt"], "a", 2),
        (["a/image_2/1_10.png", "a/image_3/1_10.png", "a/disp_occ_0/1_10.png"], "a", 1),
        (["a/x/im0.png", "a/x/im1.png", "a/y/im0.png", "a/y/im1.png", "a/y/disp0GT.pfm"], "a", 2),
        (  # as synthesize writes them
            [f"s/d/{side}/{kind}/0.png" for side, kind in (("left", "rgb"), ("left", "disparity"), ("left", "nocc"))]
            + ["s/d/right/rgb/0.png"],
            "s",
            1,
        ),
        (["a/left/rgb/1.png", "a/right/rgb/1.png", "a/left/disparity/1.png", "a/right/disparity/1.png"], "a", 1),
        (["depth/left/1.png", "depth/right/1.png"], "depth", 1),  # a word of the folder itself says nothing
        (["a/depth/left/1.png", "a/depth/right/1.png"], "a", 1),  # nor one that all files have
        (["left_cam/left/1.png", "left_cam/right/1.png"], "left_cam", 1),  # the folder's own name is not replaced
        (["left/1.png", "right/1.png"], "left", 1),  # TAO: the folder of the left images
    ],
)
def test_right_images_by_the_names_of_the_common_data_sets(tmp_path, files, folder, expected):
    touch(tmp_path, *files)
    found = pairs(tmp_path / folder)
    assert len(found) == expected
    for left, right in found:
        assert left != right and {left, right} <= set(files)


def test_left_images_without_partners_are_named(tmp_path):
    touch(tmp_path, *(f"left/{n}.png" for n in range(8)), "right/0.png")
    with pytest.raises(DataError, match=r"7 of 8 left images have no right image") as caught:
        find_pairs(tmp_path)
    assert "left/1.png (no right/1.png)" in str(caught.value) and "left/6.png" not in str(caught.value)
    assert "take the left ones away" not in str(caught.value), "they may be ground truth"


def test_a_folder_of_left_files_without_a_right_folder_is_passed_over_with_a_word(tmp_path, caplog):
    touch(tmp_path, "a/left/rgb/1.png", "a/right/rgb/1.png", "a/left/segments/1.png", "a/left/segments/2.png")
    assert pairs(tmp_path / "a") == [("a/left/rgb/1.png", "a/right/rgb/1.png")]
    assert "ignoring folders without a matching right folder: left/segments" in caplog.text


def test_a_folder_without_left_images_says_what_they_are_called(tmp_path):
    with pytest.raises(DataError, match=r"images_dir: .*none of the images \(1\) .* image_2 \(right: image_3\)"):
        find_pairs(touch(tmp_path, "cam0/1.png"))


def spec(images: Path):
    return spec_from_dict(
        "quantize",
        {
            "results_dir": "r",
            "quantize": {"model_path": str(images)},
            "dataset": {"quant_calibration_dataset": {"images_dir": str(images)}},
        },
    )


@pytest.mark.parametrize("suffix", [".tar.gz", ".zip"])
def test_an_archive_is_unpacked_and_its_files_go_again(tmp_path, suffix):
    touch(tmp_path / "in", "left/1.png", "right/1.png")
    archive = tmp_path / f"images{suffix}"
    if suffix == ".zip":
        with zipfile.ZipFile(archive, "w") as file:
            for name in ("left/1.png", "right/1.png"):
                file.write(tmp_path / "in" / name, name)
    else:
        with tarfile.open(archive, "w:gz") as file:
            file.add(tmp_path / "in", "images")
    with samples_of(spec(archive).dataset) as samples:
        assert len(samples) == 1 and Path(samples[0].right).is_file()
        assert samples[0].where.startswith(str(archive))
    assert not Path(samples[0].right).exists()


@pytest.mark.parametrize("compression", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA, "gz", "bz2", "xz"])
def test_a_damaged_archive_is_named(tmp_path, compression):
    """Each compression has errors of its own."""
    archive, content = tmp_path / "images", bytes(range(256)) * 8
    if isinstance(compression, int):
        with zipfile.ZipFile(archive, "w", compression) as file:
            file.writestr("left/1.png", content)
    else:
        with tarfile.open(archive, f"w:{compression}") as file:
            (entry := tarfile.TarInfo("left/1.png")).size = len(content)
            file.addfile(entry, io.BytesIO(content))
    data = bytearray(archive.read_bytes())
    data[45:65] = b"\xff" * 20
    archive.write_bytes(data)
    with pytest.raises(DataError, match=r"images: cannot unpack the file"):
        unpack(archive, tmp_path)


@pytest.mark.parametrize("name", ["../evil.png", "/abs/evil.png", "a/../../evil.png"])
@pytest.mark.parametrize("kind", ["tar", "zip"])
def test_members_outside_of_the_target_are_refused(tmp_path, kind, name):
    archive, target = tmp_path / "images", tmp_path / "deep" / "target"
    target.mkdir(parents=True)
    if kind == "zip":
        with zipfile.ZipFile(archive, "w") as file:
            file.writestr(name, b"x")
    else:
        with tarfile.open(archive, "w") as file:
            entry = tarfile.TarInfo(name)
            entry.size = 1
            file.addfile(entry, io.BytesIO(b"x"))
    # tar's absolute names lose their slash, as tar itself does it, and then stay inside
    if kind == "tar" and name.startswith("/"):
        unpack(archive, target)
        assert (target / "abs" / "evil.png").is_file()
    else:
        with pytest.raises(DataError, match=r"points outside"):
            unpack(archive, target)
    assert not list(tmp_path.glob("evil.png")) and not list((tmp_path / "deep").glob("evil.png"))


def test_a_link_out_of_the_archive_is_refused(tmp_path):
    archive = tmp_path / "images.tar"
    with tarfile.open(archive, "w") as file:
        entry = tarfile.TarInfo("left")
        entry.type, entry.linkname = tarfile.SYMTYPE, "/etc"
        file.addfile(entry)
    (tmp_path / "target").mkdir()
    with pytest.raises(DataError, match=r"points outside"):
        unpack(archive, tmp_path / "target")


def test_a_file_that_is_no_archive(tmp_path):
    (tmp_path / "images.tar.gz").write_bytes(b"no archive")
    with pytest.raises(DataError, match=r"images\.tar\.gz: cannot unpack the file as \.tar\.gz, \.tar or \.zip"):
        unpack(tmp_path / "images.tar.gz", tmp_path)
