"""`depth_net predict`: two images or two folders, without a spec."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from urllib.parse import unquote

import cv2
import numpy as np
import onnx
import pytest
import torch
from click.testing import CliRunner
from onnx import TensorProto, helper
from page_text import text_of

import stereo_core
from stereo_core.actions.predict_pair import find_pairs
from stereo_core.cli import main
from stereo_core.data import images
from stereo_core.data.codecs import read_disparity
from stereo_core.data.images import read_image, write_png
from stereo_core.locks import held
from stereo_core.models import load_model
from stereo_core.report.pictures import STRIP
from stereo_core.run import memory


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
    valid = expected[expected > 0]
    assert f"96 x 64 px, disparity {valid.min():.1f} to {valid.max():.1f} px" in text
    page = text_of(out / "index.html")
    assert "were not given" in page and "--calibration" not in page, "readers of a page give no options"
    assert "<td>coarse pass first</td><td>no</td>" in page
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
    assert re.search(r"depth from \d+\.\d\d m, median \d+\.\d\d m, computed in \d+\.\d s", text)
    assert "--calibration" not in text
    page = text_of(out / "index.html")
    assert "<title>Disparity and depth</title>" in page
    assert "focal length 80 px, baseline 0.5 m, doffs 0 px" in page and 'class="soft doffs"' not in page


def test_a_calibration_beside_the_images_is_named(predict, pair, tmp_path):
    """It is not used unasked, but its owner learns how to get depth."""
    for path in pair:
        shutil.copy(path, tmp_path)
    (tmp_path / "calib.txt").write_text("")
    code, text, out = predict(tmp_path / "left.png", tmp_path / "right.png")
    told = f"--calibration {tmp_path / 'calib.txt'} (calib.txt lies beside left.png)"
    words = text_of(out / "index.html")  # the page is for others too
    assert code == 0 and told in text and "No depth: " in words


def test_values_of_twelve_bits_in_files_of_sixteen_are_read_as_such(predict, pair, tmp_path):
    """As inference reads them; as 16-bit values they would be 17 grey levels."""
    _, _, out = predict(*pair)
    expected = read_disparity(out / "disparity_pfm/left.pfm")[0]
    for side, path in zip(("left", "right"), pair, strict=True):
        cv2.imwrite(str(tmp_path / f"{side}.png"), cv2.imread(str(path)).astype(np.uint16) * 16 + 8)
    code, text, out = predict(tmp_path / "left.png", tmp_path / "right.png")
    told = r"the largest value .* is 40\d\d, .* read as 12-bit values"
    assert code == 0 and re.search(f"Warning: {told}", text), text
    assert re.search(told, text_of(out / "index.html"))
    assert np.abs(read_disparity(out / "disparity_pfm/left.pfm")[0] - expected).mean() < 0.05


def test_the_check_reads_each_image_once(pair, monkeypatch):
    read = []
    monkeypatch.setattr(images, "read_bytes", lambda path: read.append(path) or path.read_bytes())
    find_pairs(*pair)[0].check(None)
    assert read == list(pair)


def test_no_file_of_an_earlier_run_remains_beside_new_ones(predict, pair, tmp_path):
    """Depth of another camera or network would pass for that of this run."""
    _, _, out = predict(*pair, "--baseline", 0.5, "--focal", 80)
    assert (out / "depth/left.png").is_file() and (out / "cloud/left.ply").is_file()
    (out / "depth/other.png").write_bytes((out / "depth/left.png").read_bytes())
    assert predict(*pair)[0] == 0
    assert [path.name for path in (*out.glob("depth/*"), *out.glob("cloud/*"))] == ["other.png"], "no pair of this run"


def test_depth_that_predict_did_not_write_stays(predict, pair, tmp_path):
    own = tmp_path / "out" / "depth" / "left.png"
    own.parent.mkdir(parents=True)
    own.write_bytes(b"the camera's own depth")
    assert predict(*pair)[0] == 0 and own.read_bytes() == b"the camera's own depth"


def test_a_run_that_fails_leaves_no_page(predict, pair, tiny_checkpoint, tmp_path):
    _, _, out = predict(*pair)
    state = torch.load(tiny_checkpoint, weights_only=True)
    torch.save(_filled_with_nan(state), tmp_path / "nan.pth")
    code, text, _ = predict(*pair, "--model", tmp_path / "nan.pth")
    assert code == 1 and f"Stopped: 0 of 1 pair written to {out}, and no page" in text, text
    assert "the weights may be damaged" in text and "Traceback" not in text
    assert not [path for path in out.rglob("*") if path.is_file()]


def _filled_with_nan(value):
    if isinstance(value, torch.Tensor) and value.is_floating_point():
        return torch.full_like(value, torch.nan)
    return {name: _filled_with_nan(one) for name, one in value.items()} if isinstance(value, dict) else value


def test_sigterm_says_what_is_written(predict, pair, tmp_path):
    for side, path in zip(("left", "right"), pair, strict=True):
        for number in range(200):
            write_png(tmp_path / side / f"{number:03}.png", read_image(path))

    def stop() -> None:
        while not (tmp_path / "out/predicted_depth/001.png").exists():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=stop).start()
    code, text, out = predict(tmp_path / "left", tmp_path / "right")
    told = re.search(rf"Stopped: (\d+) of 200 pairs written to {out}, and no page", text)
    assert code == 143 and "SIGTERM" in text, text
    written = len(list(out.rglob("*.pfm")))
    assert 0 < int(told[1]) <= written <= int(told[1]) + 1 < 200 and not (out / "index.html").exists()


def test_an_output_that_cannot_be_used_is_refused_before_the_model_is_loaded(pair, tiny_checkpoint, tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "broken.pth").write_bytes(b"PK")
    for output in (tmp_path / "file", tmp_path / "file" / "below"):
        arguments = ["predict", *map(str, pair), "--model", str(tmp_path / "broken.pth"), "--output", str(output)]
        result = CliRunner().invoke(main, arguments)
        assert result.exit_code == 2 and f"--output: cannot write to {output}: " in result.output, result.output


def test_two_runs_do_not_write_to_one_output(pair, tmp_path):
    """Each removed the other's page and files."""
    arguments = ["predict", *map(str, pair), "--output", str(tmp_path)]
    with held(tmp_path / ".lock"):
        result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 2 and f"--output: another run is writing to {tmp_path}; wait" in result.output


def test_warnings_of_the_network_reach_the_page_and_name_what_predict_has(predict, pair, monkeypatch):
    """A warning in the log alone is not seen by the one who opens the page; the other verbs' keys do not help here."""
    monkeypatch.setattr(memory, "free_bytes", lambda device: 2**10)
    code, text, out = predict(*pair)
    told = "it may not fit. To use less memory: smaller images (depth_net predict: --scale)"
    assert code == 0 and text.count(told) == 1 and told in text_of(out / "index.html")
    assert text.index(told) < text.index("left.png: 96 x 64 px"), "said while it helps"


def test_disparities_beyond_the_network_draw_a_warning(predict, tmp_path):
    noise = cv2.GaussianBlur(np.random.default_rng(3).integers(0, 256, (96, 500, 3)).astype(np.uint8), (5, 5), 0)
    for side, start in (("left", 0), ("right", 80)):  # 80 px; the network ends at 64
        write_png(tmp_path / f"{side}.png", np.ascontiguousarray(noise[:, start : start + 400]))
    code, text, _ = predict(tmp_path / "left.png", tmp_path / "right.png")
    assert code == 0 and "Warning: 100% of" in text and "above 64 px" in text, text
    assert "above 64 px" not in predict(tmp_path / "left.png", tmp_path / "right.png", "--scale", 0.5)[1]


def test_pixels_without_depth_are_counted(predict, pair, tmp_path):
    size = "width=96\nheight=64\nndisp=64\n"
    camera = "cam0=[80 0 48; 0 80 32; 0 0 1]\ncam1=[80 0 {}; 0 80 32; 0 0 1]\ndoffs={}\nbaseline=500\n"
    (tmp_path / "calib.txt").write_text(camera.format(-152, -200) + size)
    code, text, out = predict(*pair, "--calibration", tmp_path / "calib.txt")
    told = "6144 pixels have no depth, because their disparity + doffs is not above 0; 0 have one"
    assert code == 0 and f"Warning: depth: {told}" in text and told in text_of(out / "index.html")


def test_predictions_at_or_below_0_are_told(predict, pair, tmp_path):
    """The files would have holes without a word: PNG, depth and cloud hold no such disparity."""
    left, right = pair[0], tmp_path / "right.png"
    shutil.copy(left, right)
    code, text, out = predict(left, right, "--model", "starter", "--baseline", 0.1, "--focal", 80)
    disparity_HW = load_model("starter").infer(read_image(left), read_image(left))
    below_HW = disparity_HW <= 0
    told = f"disparity: {below_HW.sum()} of {below_HW.size} pixels are predicted at or below 0 px"
    assert code == 0 and below_HW.any() and text.count(told) == 1 and told in text_of(out / "index.html")
    assert f"(down to {disparity_HW.min():.4g} px)" in text
    least = disparity_HW[~below_HW].min()
    range_of_matches = (
        f"disparity {least:.1f} to {disparity_HW.max():.1f} px ({below_HW.sum()} pixels at or below 0 px)"
    )
    assert range_of_matches in text, "no negative disparity passes for the smallest one"
    assert ((read_image(out / "disparity_png16/left.png", 16)[..., 0] == 0) >= below_HW).all()


def test_a_trifle_is_a_note_on_the_page_and_no_coloured_box(predict, tmp_path):
    made = CliRunner().invoke(main, ["synthesize", f"results_dir={tmp_path}", "num_scenes=1", "height=256",
                                     "width=320", "max_disparity=64", "seed=5"])  # fmt: skip
    assert made.exit_code == 0, made.output
    views = (tmp_path / "scene_0000/dataset/data" / side / "rgb/0000.png" for side in ("left", "right"))
    code, text, out = predict(*views, "--model", "starter")
    count = (read_disparity(out / "disparity_pfm/0000.pfm", "pfm")[0] <= 0).sum()
    assert code == 0 and 0 < count < 0.001 * 320 * 256, "the scene has such pixels, but few"
    told, page = f"Note: disparity: {count} of 81920 pixels are predicted at or below 0 px", text_of(out / "index.html")
    assert told in text and "Warning" not in text
    assert told in page and page.count('class="warn"') == 1, "only the box for browsers without JavaScript"


def test_the_home_folder_is_found_where_no_shell_expands_it(pair, tiny_checkpoint, tmp_path, monkeypatch):
    """Bash leaves `--output=~/x` as it is, and the results would lie in a folder named ~."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.pth").symlink_to(tiny_checkpoint)
    arguments = ["predict", *map(str, pair), "--model=~/tiny.pth", "--output=~/out"]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0 and (tmp_path / "out/index.html").is_file(), result.output
    assert not (tmp_path / "~").exists()


def test_an_engine_without_its_side_car_is_named(predict, pair, tmp_path):
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "g", [value], [value])
    onnx.save(helper.make_model(graph), tmp_path / "bare.engine")
    code, text, _ = predict(*pair, "--model", tmp_path / "bare.engine")
    assert code == 2 and "side-car" in text and "evaluate.trt_engine" not in text, text


def test_links_of_a_page_lead_to_files_of_any_name(predict, pair, tmp_path):
    for side, path in zip(("left", "right"), pair, strict=True):
        write_png(tmp_path / side / "a %20#?.png", read_image(path))
    code, text, out = predict(tmp_path / "left", tmp_path / "right")
    assert code == 0, text
    links = re.findall(r'href="(disparity_pfm/[^"]*)"', text_of(out / "index.html"))
    assert [(out / unquote(link)).is_file() for link in links] == [True] and "#" not in links[0]


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
    page = text_of(out / "index.html")
    assert [name in page for name in (">s0</h2>", ">s3</h2>")] == [True, True]


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
    assert "are the views swapped?" in text_of(out / "index.html")


def test_what_is_refused_before_any_work(predict, pair, scenes, tmp_path):
    left, right = pair
    for folder, names in (("l", "ab"), ("r", "ac")):
        for name in names:
            write_png(tmp_path / folder / f"{name}.png", np.zeros((32, 32, 3), np.uint8))
    for name in ("empty", "void"):
        (tmp_path / name).mkdir()
    (tmp_path / "link.png").symlink_to(left)
    low = [tmp_path / f"low{side}.png" for side in "lr"]
    for path in low:
        write_png(path, np.zeros((8, 640, 3), np.uint8))
    for arguments, message in (
        ((left, tmp_path / "absent.png"), "absent.png: cannot read"),
        ((left, scenes / "scene3" / "right.png"), "96 x 64 and 80 x 48 px"),
        ((left, scenes), "one is a folder"),
        ((tmp_path / "l", tmp_path / "r"), "l/b.png: there is no matching"),
        ((tmp_path / "empty", tmp_path / "void"), "no images"),
        ((left, tmp_path / "link.png"), "these are the same"),
        ((tmp_path / "l", tmp_path / "l"), "these are the same"),
        ((left, right, "--calibration", "auto"), "--calibration auto: predict takes the path of a file"),
        ((left, right, "--scale", 0.01), "--scale 0.01 leaves 1 x 1 px of 96 x 64 px"),
        ((left, right, "--scale", 0.4), "--scale 0.4 leaves 38 x 26 px"),
        (low, "lowl.png: the images have 640 x 8 px; the network needs at least 32 x 32 px: give larger images"),
        ((left, right, "--baseline", 0.1), "give both"),
        ((left, right, "--baseline", 0.1, "--focal", 9, "--calibration", left), "not both"),
        ((left, right, "--calibration", left), "left.png: not a"),
        ((left, right, "--model", tmp_path / "absent.pth"), "absent.pth: no such file"),
        ((left, right, "--iters", 0), "--iters"),
        ((left, right, "--scale", "nan"), "'--scale': nan is not a finite number"),
        ((left, right, "--scale", "inf"), "'--scale'"),
        ((left, right, "--scale", 0), "'--scale'"),
        ((left, right, "--baseline", "inf", "--focal", 9), "'--baseline': inf is not a finite number"),
        ((left, right, "--model", ""), "--model: no file is named"),
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
