from __future__ import annotations

import pytest

from stereo_core.data.calibration import read_calibration
from stereo_core.errors import DataError

CALIB = "cam0=[994.978 0 311.193; 0 994.978 254.877; 0 0 1]\ncam1=[994.978 0 342.279; 0 994.978 254.877; 0 0 1]\n"


def test_middlebury_calib_is_in_millimetres_with_doffs(tmp_path):
    (tmp_path / "calib.txt").write_text(CALIB + "doffs=31.086\nbaseline=193.001\nwidth=741\n")
    calibration = read_calibration(tmp_path / "calib.txt")
    assert (calibration.focal, calibration.cx, calibration.cy) == (994.978, 311.193, 254.877)
    assert calibration.baseline == pytest.approx(0.193001)
    assert calibration.doffs == 31.086


def test_doffs_follow_from_the_cameras_where_the_file_lacks_them(tmp_path):
    (tmp_path / "calib.txt").write_text(CALIB + "baseline=193.001\n")
    assert read_calibration(tmp_path / "calib.txt").doffs == pytest.approx(342.279 - 311.193)


def test_k_txt_is_in_metres(tmp_path):
    (tmp_path / "K.txt").write_text("754.668 0.0 489.379 0.0 755.1 265.162 0.0 0.0 1.0 \n0.063\n")
    calibration = read_calibration(tmp_path / "K.txt")
    assert (calibration.focal, calibration.cx, calibration.cy) == (754.668, 489.379, 265.162)
    assert (calibration.baseline, calibration.doffs) == (0.063, 0)


@pytest.mark.parametrize(
    "text", ["", "1 2 3", "a b c d e f g h i j", CALIB, "cam0=[1 0]\nbaseline=3\n", "1 0 1 0 1 1 0 0 1\n0\n"]
)
def test_what_is_no_calibration(tmp_path, text):
    (tmp_path / "c.txt").write_text(text)
    with pytest.raises(DataError, match=r"c\.txt"):
        read_calibration(tmp_path / "c.txt")


def test_real_files(shared):
    motorcycle = read_calibration(shared / "data/Middlebury/MiddEval3/trainingQ/Motorcycle/calib.txt")
    assert (motorcycle.focal, motorcycle.doffs) == (999.421, 32.778)
    assert motorcycle.baseline == pytest.approx(0.193001)
    playground = read_calibration(shared / "data/ETH3D/two_view_training/playground_1l/calib.txt")
    assert playground.baseline == pytest.approx(0.0595549)
    assert read_calibration(shared / "data/NoGT/FoundationStereo/K.txt").baseline == 0.063
