"""`depth_net predict`: two images or two folders, without a spec."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from click.testing import CliRunner

import stereo_core
from stereo_core.cli import main
from stereo_core.data.codecs import read_disparity
from stereo_core.data.images import read_image, write_png
from stereo_core.models import load_model
from stereo_core.report.pictures import STRIP


@pytest.fixture
def predict(tiny_checkpoint, tmp_path):
    """(arguments) -> (exit code, what it printed, its output folder)."""

    def start(*arguments) -> tuple[int, str, Path]:
        out = tmp_path / "out"
        options = [] if "--model" in arguments else ["--model", tiny_checkpoint]
        result = CliRunner().invoke(main, ["predict", *map(str, (*arguments, *options)), "--output", str(out)])
        return result.exit_code, result.output, out

    return start


@pytest.fixture
def pair(scenes):
    return scenes / "scene0" / "left.png", scenes / "scene0" / "right.png"


def test_one_pair(predict, pair, tiny_checkpoint):
    """The network's own disparity, in every file; without a camera no depth, and it is said."""
    code, text, out = predict(*pair)
    assert code == 0, text
    expected = load_model(tiny_checkpoint).infer(*map(read_image, pair))
    np.testing.assert_allclose(read_disparity(out / "disparity_pfm/left.pfm")[0], expected, atol=1e-4)
    stored = read_disparity(out / "disparity_png16/left.png", "png_u16_256")[0]
    np.testing.assert_allclose(stored, expected, atol=1 / 256)
    assert f"96 x 64 px, disparity {expected.min():.1f} to {expected.max():.1f} px" in text
    assert "--calibration" in text and f"Look at {out / 'index.html'}" in text
    size = read_image(out / "predicted_depth/left.png").shape[:2]
    assert size == (2 * 64 + 2 * STRIP, 2 * 96)  # twice as large, its title and its scale
    assert not (out / "depth").exists()


@pytest.mark.parametrize("by", ["file", "numbers"])
def test_depth(predict, pair, tmp_path, by):
    (tmp_path / "K.txt").write_text("80 0 48 0 80 32 0 0 1\n0.5\n")
    given = {"file": ["--calibration", tmp_path / "K.txt"], "numbers": ["--baseline", 0.5, "--focal", 80]}[by]
    code, text, out = predict(*pair, *given)
    assert code == 0, text
    disparity = read_disparity(out / "disparity_pfm/left.pfm")[0].astype(float)
    millimetres = cv2.imread(str(out / "depth/left.png"), cv2.IMREAD_UNCHANGED)
    measured = millimetres > 0
    np.testing.assert_allclose(millimetres[measured], 1000 * 80 * 0.5 / disparity[measured], atol=0.51)
    assert measured.any() and (out / "cloud/left.ply").read_bytes().startswith(b"ply\n")
    assert re.search(r"depth from \d+\.\d\d m", text) and "--calibration" not in text


def test_folders(predict, scenes, tmp_path):
    for number in (0, 3):
        for side in ("left", "right"):
            image = read_image(scenes / f"scene{number}" / f"{side}.png")
            write_png(tmp_path / side / f"s{number}" / "a.png", image)
    (tmp_path / "left" / "notes.txt").write_text("no image")
    code, text, out = predict(tmp_path / "left", tmp_path / "right")
    assert code == 0, text
    assert sorted(path.relative_to(out).as_posix() for path in out.rglob("*.pfm")) == [
        "disparity_pfm/s0/a.pfm",
        "disparity_pfm/s3/a.pfm",
    ]
    page = (out / "index.html").read_text()
    assert [name in page for name in ("<h2>s0/a</h2>", "<h2>s3/a</h2>")] == [True, True]


def test_a_smaller_image_for_the_network(predict, pair):
    """Disparity comes back in px of the files, so it is about what it is at full size."""
    full = read_disparity(predict(*pair)[2] / "disparity_pfm/left.pfm")[0]
    code, text, out = predict(*pair, "--scale", 0.5, "--iters", 2)
    half = read_disparity(out / "disparity_pfm/left.pfm")[0]
    assert code == 0, text
    assert half.shape == full.shape
    assert (half != full).any()


def test_no_compiler_is_imported_for_a_pair_on_a_cpu(tiny_checkpoint, pair, tmp_path):
    """torch's takes two of the eight seconds that a first pair may take."""
    if torch.cuda.is_available():
        pytest.skip("a GPU's kernels are compiled")
    code = """
import sys
from stereo_core.cli import main
main(sys.argv[1:], standalone_mode=False)
print("torch._dynamo" in sys.modules)
"""
    arguments = ["predict", *map(str, pair), "--model", str(tiny_checkpoint), "--output", str(tmp_path)]
    printed = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True
    ).stdout
    assert printed.endswith("False\n")


def test_swapped_views_are_doubted(predict, tmp_path):
    left = np.repeat(np.random.default_rng(0).integers(0, 256, (96, 160, 1)), 3, axis=2).astype(np.uint8)
    left = cv2.GaussianBlur(left, (5, 5), 0)
    write_png(tmp_path / "a.png", left)
    write_png(tmp_path / "b.png", np.roll(left, -9, axis=1))
    assert "Warning" not in predict(tmp_path / "a.png", tmp_path / "b.png")[1]
    code, text, out = predict(tmp_path / "b.png", tmp_path / "a.png")
    assert code == 0 and "are the views swapped?" in text
    assert "are the views swapped?" in (out / "index.html").read_text()


def test_what_is_refused_before_any_work(predict, pair, scenes, tmp_path):
    left, right = pair
    for folder, names in (("l", "ab"), ("r", "ac")):
        for name in names:
            write_png(tmp_path / folder / f"{name}.png", np.zeros((32, 32, 3), np.uint8))
    (tmp_path / "empty").mkdir()
    for arguments, message in (
        ((left, tmp_path / "absent.png"), "absent.png: cannot read"),
        ((left, scenes / "scene3" / "right.png"), "96 x 64 and 80 x 48 px"),
        ((left, scenes), "one is a folder"),
        ((tmp_path / "l", tmp_path / "r"), "l/b.png: there is no matching"),
        ((tmp_path / "empty", tmp_path / "empty"), "no images"),
        ((left, right, "--baseline", 0.1), "give both"),
        ((left, right, "--baseline", 0.1, "--focal", 9, "--calibration", left), "not both"),
        ((left, right, "--calibration", left), "left.png: not a"),
        ((left, right, "--model", tmp_path / "absent.pth"), "absent.pth: no such file"),
        ((left, right, "--iters", 0), "--iters"),
    ):
        code, text, out = predict(*arguments)
        assert (code, out.exists()) == (2, False), text
        assert message in text


def test_the_function_gives_the_same_for_numpy_and_torch(pair, tiny_checkpoint):
    left, right = map(read_image, pair)
    expected = load_model(tiny_checkpoint).infer(left, right)
    disparity = stereo_core.predict(left, right, tiny_checkpoint)
    np.testing.assert_allclose(disparity, expected, atol=1e-4)
    tensors = (torch.from_numpy(x).permute(2, 0, 1)[None] for x in (left, right))
    np.testing.assert_allclose(stereo_core.predict(*tensors, tiny_checkpoint)[0], expected, atol=1e-4)
