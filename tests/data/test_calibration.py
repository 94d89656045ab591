from __future__ import annotations

import re

import pytest

from stereo_core.data import shards
from stereo_core.data.calibration import Calibration, calibration_beside, read_calibration
from stereo_core.errors import DataError

CALIB = "cam0=[994.978 0 311.193; 0 994.978 254.877; 0 0 1]\ncam1=[994.978 0 342.279; 0 994.978 254.877; 0 0 1]\n"
K = "754.668 0.0 489.379 0.0 755.1 265.162 0.0 0.0 1.0 \n0.063\n"


@pytest.fixture
def read(tmp_path):
    """Contents of a file -> its calibration."""

    def written(contents: str | bytes) -> Calibration:
        data = contents.encode() if isinstance(contents, str) else contents
        (tmp_path / "c.txt").write_bytes(data)
        return read_calibration(tmp_path / "c.txt")

    return written


def test_middlebury_calib_is_in_millimetres_with_doffs(read):
    calibration = read(CALIB + "doffs=31.086\nbaseline=193.001\nwidth=741\nheight=497\nndisp=70\n")
    assert (calibration.focal, calibration.cx, calibration.cy) == (994.978, 311.193, 254.877)
    assert calibration.baseline == pytest.approx(0.193001)
    assert calibration.doffs == 31.086
    assert (calibration.width, calibration.height) == (741, 497)


def test_doffs_follow_from_the_cameras_where_the_file_lacks_them(read):
    assert read(CALIB + "baseline=193.001\n").doffs == pytest.approx(342.279 - 311.193)


def test_k_txt_is_in_metres(read):
    calibration = read(K)
    assert (calibration.focal, calibration.focal_y) == (754.668, 755.1)
    assert (calibration.cx, calibration.cy) == (489.379, 265.162)
    assert (calibration.baseline, calibration.doffs) == (0.063, 0)


def test_both_focal_lengths_are_read_from_calib_txt(read):
    calibration = read("cam0=[100 0 47.5; 0 200 31.5; 0 0 1]\ndoffs=0\nbaseline=100\n")
    assert (calibration.focal, calibration.focal_y) == (100, 200)


@pytest.mark.parametrize(
    "text",
    [
        "\ufeff" + K,
        "754.668, 0.0, 489.379, 0.0, 755.1, 265.162, 0.0, 0.0, 1.0,\n0.063\n",
        "[[754.668 0.0 489.379]\n [0.0 755.1 265.162]\n [0 0 1]]\n\n0.063",
        "[754.668, 0.0, 489.379; 0.0, 755.1, 265.162; 0, 0, 1]\r\n0.063\r\n",
        "# left camera, size=960x540\n" + K.replace("\n0.063", "\n0.063 // baseline=63 mm"),
    ],
)
def test_marks_of_an_editor_are_no_part_of_the_numbers(read, text):
    plain = read(K)
    assert read(text) == plain
    assert read(text.lstrip("\ufeff").encode("utf-16")) == plain


KITTI = """calib_time: 09-Jan-2020 14:00:15
S_rect_02: 1.242000e+03 3.750000e+02
P_rect_00: 7.2e+02 0 6.0e+02 0 0 7.2e+02 1.7e+02 0 0 0 1 0
P_rect_01: 7.2e+02 0 6.0e+02 -3.6e+02 0 7.2e+02 1.7e+02 0 0 0 1 0
P_rect_02: 7.2e+02 0 6.0e+02 3.6e+01 0 7.2e+02 1.7e+02 2e-01 0 0 1 3e-03
P_rect_03: 7.2e+02 0 6.1e+02 -3.24e+02 0 7.2e+02 1.7e+02 2e+00 0 0 1 3e-03
"""


def test_kitti_has_two_pairs_of_cameras(read, tmp_path):
    colour = read(KITTI)
    assert (colour.focal, colour.cx, colour.cy, colour.width, colour.height) == (720, 600, 170, 1242, 375)
    assert (colour.baseline, colour.doffs) == (pytest.approx(0.5), 10)
    grey = read_calibration(tmp_path / "c.txt", "training/image_0/000000_10.png")
    assert (grey.baseline, grey.doffs, grey.width) == (pytest.approx(0.5), 0, None)
    assert read_calibration(tmp_path / "c.txt", "training/colored_0/000000_10.png") == colour
    stereo_2012 = re.sub("S_rect.*\n", "", KITTI).replace("P_rect_0", "P")
    assert read(stereo_2012).baseline == pytest.approx(0.5)
    assert read(stereo_2012.replace("-3.6e+02", "-2.88e+02").replace("P2", "Q2").replace("P3", "Q3")).baseline == (
        pytest.approx(0.4)
    )


def test_marks_in_calib_txt(read):
    text = CALIB + "doffs=31.086\nbaseline=193.001\n"
    marked = "\ufeff# f=12\n" + text.replace(" 0 ", ", 0, ").replace("=", " = ").replace("\n", "  # mm=1\n")
    assert read(marked) == read(text)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("", "0 values"),
        ("1 2 3", "3 values, the first line is '1 2 3'"),
        ("a b c d e f g h i j", "'a'"),
        ("754,668 0 489,379 0 755,1 265,162 0 0 1\n0,063", "15 values, the first line is '754,668"),
        ("P0: 7.215377e+02 0 6.095593e+02 0 0 7.2e+02 1.7e+02 0 0 0 1 0\n", r"P1 \(or P_rect_01\) missing"),
        (CALIB, "baseline missing"),
        ("baseline=3\ndoffs=0\n", "cam0 missing"),
        ("cam0=[100 0 50; 0 100 50; 0 0 1]\nbaseline=100\n", "doffs missing"),
        ("cam0=[1 0]\nbaseline=3\ndoffs=0", "cam0: .* has 2 numbers"),
        (CALIB + "baseline=193,001\n", "baseline is '193,001'"),
        (CALIB + "baseline=193.001\ndoffs=0\n", "doffs is 0 px, but .* 31.086 px"),
        (
            CALIB.replace("cam1=[994.978", "cam1=[248.7") + "baseline=193.001\n",
            "994.978 px in cam0 and 248.7 px in cam1",
        ),
        (CALIB.replace("994.978", "0") + "baseline=193\n", r"fx \(px\) is 0"),
        ("100 0 0 0 100 0 48 32 1\n0.1", "in row order"),  # transposed
        ("100 0 48 0 100 32 0 0 1\n0", r"baseline \(m\) is 0"),
        ("100 0 48 0 -100 32 0 0 1\n0.1", r"fy \(px\) is -100"),
        ("100 0 48 0 0 32 0 0 1\n0.1", r"fy \(px\) is 0"),
        ("nan 0 48 0 100 32 0 0 1\n0.1", "'nan'"),
        ("100 12.5 48 0 100 32 0 0 1\n0.1", "the skew, .*, is 12.5,"),
        ("100 0 48 0 100 32 0 0.1 1\n0.1", "in row order"),
        ("100 0 48 0 100 32 0 0 1\n278.3", "baseline is 278.3 m"),  # millimetres
        ("100 0 48 0 100 32 0 0 1\n63", "baseline is 63 m"),
        ("P2: 720 0 600 36 0 720 170 0 0 0 1 0\n", r"P3 \(or P_rect_03\) missing"),
        ("P0: 720 0 600\nP1: 720 0 600 0 0 720 170 0 0 0 1 0\n", "P0: it has 3 numbers; expected the 12"),
        ("P0: 720 0 600 0 0 720 170 0 0 0 1 0\nP1: 720 0 600 36 0 720 170 0 0 0 1 0\n", r"baseline \(m\) is -0.05"),
        ("# c\n" + CALIB + "baseline=193\nwidth=741\nbaseline=120\n", "lines 4 and 6 set baseline"),
        (CALIB + "baseline=0.193001\n", "baseline is 0.000193001 m"),  # metres
    ],
)
def test_what_is_no_calibration(read, text, named):
    with pytest.raises(DataError, match=rf"c\.txt: .*{named}"):
        read(text)


# -- a calibration against the images ---------------------------------------------------------------------------------


def test_a_calibration_of_another_size_is_refused(read):
    whole = read("cam0=[200 0 192; 0 200 128; 0 0 1]\ndoffs=0\nbaseline=100\nwidth=384\nheight=256\n")
    assert whole.of_size(256, 384).width == 384
    with pytest.raises(DataError, match=r"c\.txt: .* is for 384 x 256 px, but the images have 96 x 64 px; .* by 0\.25"):
        whole.of_size(64, 96)


def test_a_calibration_of_another_shape_is_not_scaled(read):
    """One factor cannot fit both sides: depth would be wrong without a sign of it."""
    other = read("cam0=[200 0 192; 0 200 128; 0 0 1]\ndoffs=0\nbaseline=100\nwidth=741\nheight=497\n")
    told = r"741 x 497 px, but the images have 450 x 375 px; the shapes differ, so this is another camera"
    with pytest.raises(DataError, match=told):
        other.of_size(375, 450)
    with pytest.raises(DataError, match="multiply"):  # half of an odd size
        other.of_size(248, 370)


def test_a_principal_point_outside_of_the_images_is_refused(read):
    with pytest.raises(DataError, match=r"c\.txt: the principal point \(489.379, 265.162\) .*480 x 270 px"):
        read(K).of_size(270, 480)


def test_a_camera_without_a_file_has_its_centre_in_the_middle():
    camera = Calibration(500.0, 0.2).of_size(64, 96)
    assert (camera.cx, camera.cy, camera.focal_y, list(camera.doubts())) == (47.5, 31.5, 500, [])
    assert camera.farthest == 100


@pytest.mark.parametrize(
    ("text", "size", "named"),
    [
        (K, (540, 960), None),
        (CALIB + "baseline=193\n", (497, 741), None),
        (
            CALIB.replace("254.877; 0 0 1]\ncam1", "258; 0 0 1]\ncam1") + "baseline=193\n",
            (497, 741),
            "cy is 258 px in cam0 and 254.877 px in cam1",
        ),
        (
            CALIB.replace("994.978 254.877; 0 0 1]\nc", "990 254.877; 0 0 1]\nc") + "baseline=193\n",
            (497, 741),
            "fy is 990 px in cam0 and 994.978 px in cam1",
        ),
        (K, (1080, 1920), r"\(489.379, 265.162\) is far from the image centre .*1920 x 1080"),
        ("90 1e-9 47.5 0 90 31.5 0 0 1\n2.9", (64, 96), None),
        ("90 0 47.5 0 90 31.5 0 0 1\n7.5", (64, 96), "baseline is 7.5 m.* centimetres it is 0.075 m, .* 0.0075 m"),
        ("100 0 47.5 0 200 31.5 0 0 1\n0.1", (64, 96), "fx 100 px and fy 200 px differ"),
        ("0.8 0 48 0 0.8 32 0 0 1\n0.1", (64, 96), "focal length of 0.8 px .* 178.1 degrees"),  # in widths
        ("8000 0 48 0 8000 32 0 0 1\n0.1", (64, 96), "focal length of 8000 px .* 0.7 degrees"),
    ],
)
def test_what_is_hardly_ever_right_is_doubted_with_its_number(read, text, size, named):
    doubts = list(read(text).of_size(*size).doubts())
    if named is None:
        assert doubts == []
    else:
        [doubt] = doubts
        assert re.search(named, doubt) and "c.txt" in doubt


def test_the_file_beside_an_image(tmp_path):
    with pytest.raises(DataError, match=r"synthetic_0/000000: .* has no calib"):
        calibration_beside("synthetic_0/000000")  # a scene, which lies in no folder
    (tmp_path / "a").mkdir()
    with pytest.raises(DataError, match=r"left\.png: .* has no calib\.txt or K\.txt"):
        calibration_beside(str(tmp_path / "a" / "left.png"))
    (tmp_path / "a" / "K.txt").write_text(K)
    assert calibration_beside(str(tmp_path / "a" / "left.png")).baseline == 0.063
    (tmp_path / "a" / "calib.txt").write_text(CALIB + "baseline=193.001\n")
    assert calibration_beside(str(tmp_path / "a" / "left.png")).baseline == pytest.approx(0.193001)


def test_the_file_beside_a_packed_image(tmp_path):
    contents = {"a/K.txt": K.encode(), "a/left.png": b"1", "b/left.png": b"2"}
    shards.pack({name: len(data) for name, data in contents.items()}, contents.get, tmp_path, 1)
    paths = shards.packed(str(tmp_path))
    assert len(set(map(shards.parts, paths.values()))) == 3
    assert calibration_beside(paths["a/left.png"]).baseline == 0.063
    with pytest.raises(DataError, match=r"b/left\.png: .* has no calib\.txt"):
        calibration_beside(paths["b/left.png"])


def test_real_files(shared):
    motorcycle = read_calibration(shared / "data/Middlebury/MiddEval3/trainingQ/Motorcycle/calib.txt")
    assert (motorcycle.focal, motorcycle.doffs) == (999.421, 32.778)
    assert motorcycle.baseline == pytest.approx(0.193001)
    playground = read_calibration(shared / "data/ETH3D/two_view_training/playground_1l/calib.txt")
    assert playground.baseline == pytest.approx(0.0595549)
    plain = read_calibration(shared / "data/NoGT/FoundationStereo/K.txt")
    assert plain.baseline == 0.063
    for calibration, size in ((motorcycle, (497, 741)), (playground, (490, 941)), (plain, (540, 960))):
        assert list(calibration.of_size(*size).doubts()) == []
