"""Inference's files: their names, their values, and that nothing but the two images decides them."""

from __future__ import annotations

import json
import shutil

import cv2
import numpy as np
import pytest

from stereo_core.actions.inference import Clipped, OutOfRange, format_losses, write_files
from stereo_core.actions.predict import predictor
from stereo_core.data.calibration import SizedCalibration
from stereo_core.data.codecs import read_disparity
from stereo_core.data.depth import seen_by_both
from stereo_core.engines import BuildSettings, build_engine, load_engine
from stereo_core.report.pictures import STRIP, colour_disparity, scale_of
from stereo_core.run.outcome import Outcome
from stereo_core.run.perform import perform
from stereo_core.run.status import warnings_in
from stereo_core.spec import spec_from_dict
from stereo_core.spec.predict import Inference

MODEL = {"preset": "tiny", "valid_iters": 3}


@pytest.fixture(scope="session")
def infer(tiny_checkpoint, split):
    """Run inference on an annotation list; returns the exit code."""

    def start(folder, data_file, dataset=None, batch_size=2, section=None, **keys):
        keys = {"checkpoint": str(tiny_checkpoint), "results_dir": str(folder)} | keys
        infer_dataset = split(data_file, batch_size) | (section or {})
        tree = {"dataset": {"infer_dataset": infer_dataset} | (dataset or {}), "model": MODEL}
        return perform("inference", spec_from_dict("inference", tree | {"inference": keys}))

    return start


def files(folder):
    found = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    return found - {"status.json", "experiment.yaml", "results.json", "views.json"}


def cloud(path):
    """The points of a cloud, (N, 3)."""
    body = path.read_bytes().partition(b"end_header\n")[2]
    return np.frombuffer(body, np.dtype([("xyz", "<f4", 3), ("rgb", "u1", 3)]))["xyz"]


@pytest.fixture(scope="session")
def all_files(infer, scenes, tmp_path_factory):
    """The results folder of a run that writes everything, with a calibration of its own."""
    folder = tmp_path_factory.mktemp("inference")
    (folder / "K.txt").write_text("90.0 0 47.5 0 90.0 31.5 0 0 1\n0.25\n")
    everything = dict.fromkeys(("save_raw_pfm", "save_depth", "save_point_cloud"), True)
    assert infer(folder / "out", scenes / "list.txt", calibration=str(folder / "K.txt"), **everything) == 0
    return folder / "out"


def test_the_page_shows_predictions(all_files, shown):
    assert shown("inference", all_files, Outcome("done")) == [f"scene{number}/left" for number in range(4)]


def test_names(all_files):
    assert files(all_files) == {
        name
        for n in range(4)
        for name in (
            f"disparity_png16/scene{n}/left.png",
            f"disparity_pfm/scene{n}/left.pfm",
            f"predicted_depth/scene{n}_left.png",
            f"depth/scene{n}/left.png",
            f"cloud/scene{n}/left.ply",
        )
    }


def test_values_agree(all_files):
    disparity, _ = read_disparity(all_files / "disparity_pfm" / "scene3" / "left.pfm")
    assert disparity.shape == (48, 80) and (disparity > 0).mean() > 0.5
    png = cv2.imread(str(all_files / "disparity_png16" / "scene3" / "left.png"), cv2.IMREAD_UNCHANGED)
    assert png.dtype == np.uint16
    np.testing.assert_allclose(png[disparity > 0] / 256, disparity[disparity > 0], atol=0.5 / 256 + 1e-6)
    depth = cv2.imread(str(all_files / "depth" / "scene3" / "left.png"), cv2.IMREAD_UNCHANGED)
    near = (disparity > 1) & (disparity < 64)
    np.testing.assert_allclose(depth[near], 90 * 0.25 * 1000 / disparity[near], atol=0.51)
    colour = cv2.imread(str(all_files / "predicted_depth" / "scene3_left.png"))
    shown = colour[STRIP:-STRIP:2, ::2, ::-1]  # twice as large, between its title and its scale
    np.testing.assert_array_equal(shown, colour_disparity(disparity, scale_of(disparity)))


def test_point_cloud(all_files, scenes):
    header, _, body = (all_files / "cloud" / "scene0" / "left.ply").read_bytes().partition(b"end_header\n")
    points = np.frombuffer(body, np.dtype([("xyz", "<f4", 3), ("rgb", "u1", 3)]))
    assert f"element vertex {len(points)}\n".encode() in header
    disparity, _ = read_disparity(all_files / "disparity_pfm" / "scene0" / "left.pfm")
    rows, columns = np.nonzero(seen_by_both(disparity) & (disparity >= 1))
    assert len(points) == len(rows)
    z = 90 * 0.25 / disparity[rows, columns]
    expected = np.stack([(columns - 47.5) * z / 90, (rows - 31.5) * z / 90, z], axis=1)
    np.testing.assert_allclose(points["xyz"], expected, rtol=1e-4, atol=1e-5)
    left = cv2.imread(str(scenes / "scene0" / "left.png"))[..., ::-1]
    assert (points["rgb"] == left[rows, columns]).all()


def test_defaults_write_png16_and_colour_only(infer, scenes, tmp_path):
    assert infer(tmp_path, scenes / "list.txt") == 0
    assert {name.split("/")[0] for name in files(tmp_path)} == {"disparity_png16", "predicted_depth"}


def test_ground_truth_changes_nothing(infer, all_files, scenes, tmp_path):
    """TAO's item 25: there, pixels without ground truth are predicted 0. And two columns work."""
    lines = [" ".join(line.split()[:2]) for line in (scenes / "list.txt").read_text().splitlines()]
    (tmp_path / "list.txt").write_text("\n".join(lines) + "\n")
    shutil.copytree(scenes, tmp_path / "data")
    shutil.move(tmp_path / "list.txt", tmp_path / "data" / "two.txt")
    for gt in tmp_path.rglob("gt.pfm"):
        gt.unlink()
    assert infer(tmp_path / "out", tmp_path / "data" / "two.txt", save_raw_pfm=True) == 0
    for name in (f"disparity_pfm/scene{n}/left.pfm" for n in range(4)):
        # Equal on a CPU; a GPU's kernels round differently from run to run. A pixel set to 0 would be px away.
        maps = [read_disparity(folder / name)[0] for folder in (tmp_path / "out", all_files)]
        np.testing.assert_allclose(*maps, atol=1e-3)


def test_ground_truth_that_is_not_there_or_broken_is_not_read(infer, scenes, tmp_path):
    """A list of a training, on a machine that has the images alone."""
    broken = tmp_path / "broken.pfm"
    broken.write_bytes(b"Pf\n")
    for disparity in (broken, "gone.pfm"):
        left, right = (scenes / name for name in (scenes / "list.txt").read_text().split()[:2])
        (tmp_path / "list.txt").write_text(f"{left} {right} {disparity}\n")
        assert infer(tmp_path / "out", tmp_path / "list.txt") == 0


def test_equal_base_names_do_not_collide(infer, scenes, tmp_path):
    """`a/b` and `a_b` flatten to one name, a pair listed twice has one path; every line still has its own files."""
    for name in ("a/b", "a_b"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(scenes / "scene0" / "left.png", tmp_path / f"{name}.png")
    right = scenes / "scene0" / "right.png"
    (tmp_path / "list.txt").write_text(f"a/b.png {right}\na_b.png {right}\na_b.png {right}\n")
    assert infer(tmp_path / "out", tmp_path / "list.txt", batch_size=1) == 0
    written = files(tmp_path / "out")
    pictures = {name for name in written if name.startswith("predicted_depth/a_b-")}
    assert len(pictures) == 3
    assert written - pictures == {f"disparity_png16/{name}.png" for name in ("a/b", "a_b", "a_b-2")}


def test_hierarchical(infer, all_files, scenes, tmp_path):
    assert infer(tmp_path, scenes / "list.txt", hierarchical=True, save_raw_pfm=True) == 0
    two_passes, _ = read_disparity(tmp_path / "disparity_pfm" / "scene3" / "left.pfm")
    one_pass, _ = read_disparity(all_files / "disparity_pfm" / "scene3" / "left.pfm")
    assert two_passes.shape == one_pass.shape and not np.allclose(two_passes, one_pass, atol=0.1)


@pytest.mark.parametrize("hierarchical", [False, True])
def test_tiles_of_a_checkpoint(infer, scenes, tmp_path, hierarchical):
    """Images no larger than a tile are predicted whole; larger ones are not, and keep their size."""
    keys = {"save_raw_pfm": True, "hierarchical": hierarchical}
    section = {"augmentation": {"crop_size": [64, 80]}}

    def maps(folder):
        return [read_disparity(folder / "disparity_pfm" / f"scene{n}" / "left.pfm")[0] for n in (0, 3)]

    tile = {"tile": True, "tile_overlap": [16, 40]}
    assert infer(tmp_path / "tiles", scenes / "list.txt", section=section, **keys, **tile) == 0
    assert infer(tmp_path / "whole", scenes / "list.txt", **keys) == 0
    (large, small), (whole_large, whole_small) = maps(tmp_path / "tiles"), maps(tmp_path / "whole")
    np.testing.assert_allclose(small, whole_small, atol=1e-3)
    assert large.shape == whole_large.shape and 0 < np.abs(large - whole_large).mean() < 10
    settings = json.loads((tmp_path / "tiles" / "results.json").read_text())["settings"]
    assert (settings["tile"], settings["tile_overlap"]) == ([64, 80], [16, 40])


def test_a_tile_overlap_below_the_disparities_is_named(infer, scenes, tmp_path, caplog):
    section = {"augmentation": {"crop_size": [64, 96]}}
    assert infer(tmp_path / "a", scenes / "list.txt", section=section, tile=True, tile_overlap=[0, 63]) == 0
    assert "tile_overlap is 63 columns, but the network finds disparities up to 64 px" in caplog.text
    caplog.clear()
    assert infer(tmp_path / "b", scenes / "list.txt", section=section, tile=True, tile_overlap=[0, 64]) == 0
    assert "tile" not in caplog.text


def test_an_engine_that_fails_while_it_runs_fails_the_run(broken_engine, scenes, infer, status_lines, tmp_path):
    """TAO's item 22: an empty predicted_depth/ with a status of success."""
    assert infer(tmp_path, scenes / "list.txt", checkpoint="", trt_engine=str(broken_engine)) == 1
    last = status_lines(tmp_path)[-1]
    assert last["status"] == "FAILURE" and "out of data bounds" in last["message"]
    assert files(tmp_path) == set() and not (tmp_path / "results.json").exists()


@pytest.fixture(scope="module")
def small_engine(tiny_checkpoint, tmp_path_factory):
    """An engine of 32 x 64, batches of up to 2; the scenes have 64 x 96."""
    folder = tmp_path_factory.mktemp("small")
    export = {"checkpoint": str(tiny_checkpoint), "onnx_file": str(folder / "tiny.onnx"), "on_cpu": True}
    export |= {"input_height": 32, "input_width": 64, "valid_iters": 3, "check": False, "results_dir": str(folder)}
    assert perform("export", spec_from_dict("export", {"model": MODEL, "export": export})) == 0
    build_engine(export["onnx_file"], folder / "e", BuildSettings(backend="onnxruntime", verify=False, max_batch=2))
    return folder / "e"


@pytest.fixture
def tiled_run(scenes, infer, small_engine, tmp_path, monkeypatch):
    """(folder, engine that was run) of an inference in tiles."""
    opened = []
    monkeypatch.setattr(predictor, "load_engine", lambda *a: opened.append(load_engine(*a)) or opened[-1])
    keys = {"checkpoint": "", "trt_engine": str(small_engine), "save_raw_pfm": True}
    assert infer(tmp_path / "tiles", scenes / "list.txt", **keys, tile=True, tile_overlap=[8, 48]) == 0
    return tmp_path / "tiles", opened[-1]


@pytest.mark.slow
def test_tiles_of_an_engine_are_not_scaled(tiled_run, scenes, small_engine, caplog):
    """The corners lie in one tile each: they are what the engine says of that tile."""
    folder, _ = tiled_run
    found, _ = read_disparity(folder / "disparity_pfm" / "scene0" / "left.pfm")
    left, right = (cv2.imread(str(scenes / "scene0" / f"{side}.png"))[..., ::-1] for side in ("left", "right"))
    corner = load_engine(small_engine).infer(left[:32, :64], right[:32, :64])
    assert found.shape == (64, 96)
    np.testing.assert_allclose(found[:16, :16], corner[:16, :16], atol=1e-3)
    assert "scaled down" not in caplog.text


def test_latency_in_tiles_is_that_of_images(tiled_run):
    """Batches of 2 and of 1, and one image of another size: three calls that together took all the time for 4."""
    folder, engine = tiled_run
    results = json.loads((folder / "results.json").read_text())
    assert results["settings"]["tile"] == [32, 64]
    assert results["latency_batch"] == 2, "a call of images, not one of their tiles"
    assert len(engine.latencies_ms) == 3
    assert results["images_per_second"] == pytest.approx(4000 / sum(engine.latencies_ms))


def test_images_larger_than_the_engine_draw_one_warning(scenes, infer, small_engine, tmp_path, caplog):
    keys = {"checkpoint": "", "trt_engine": str(small_engine)}
    assert infer(tmp_path, scenes / "list.txt", **keys) == 0
    warnings = [r.getMessage() for r in caplog.records if r.levelname == "WARNING" and "scaled down" in r.getMessage()]
    assert len(warnings) == 1 and "images of 96 x 64 px exceed the engine's maximum of 64 x 32 px" in warnings[0]
    assert "inference.tile" in warnings[0] and "export.dynamic_hw" in warnings[0]
    assert warnings[0] in warnings_in(tmp_path)
    assert warnings[0] in json.loads((tmp_path / "results.json").read_text())["warnings"]


def test_files_of_an_earlier_run_that_this_one_does_not_replace_draw_a_warning(infer, scenes, tmp_path, caplog):
    caplog.set_level("INFO")
    (tmp_path / "list.txt").write_text(f"{scenes}/scene0/left.png {scenes}/scene0/right.png\n")
    assert infer(tmp_path / "out", tmp_path / "list.txt", save_raw_pfm=True) == 0
    assert "earlier run" not in caplog.text and warnings_in(tmp_path / "out") == []
    assert infer(tmp_path / "out", tmp_path / "list.txt", save_raw_pfm=False) == 0
    assert "holds an earlier run's results: files of the same names are replaced, others stay" in caplog.text
    (warning,) = json.loads((tmp_path / "out" / "results.json").read_text())["warnings"]
    assert "disparity_pfm is not of this run, because inference.save_raw_pfm is off" in warning


MIDDLEBURY = (
    "cam0=[90 0 40.5; 0 90 31.5; 0 0 1]\ncam1=[90 0 52.5; 0 90 31.5; 0 0 1]\n"
    "doffs=12\nbaseline=193.001\nwidth=96\nheight=64\n"
)


def test_middlebury_calibration(infer, scenes, tmp_path):
    """doffs shifts the disparity, and the principal point is the file's."""
    (tmp_path / "list.txt").write_text(f"{scenes}/scene0/left.png {scenes}/scene0/right.png\n")
    (tmp_path / "calib.txt").write_text(MIDDLEBURY)
    keys = {"save_raw_pfm": True, "save_point_cloud": True, "calibration": str(tmp_path / "calib.txt")}
    assert infer(tmp_path / "out", tmp_path / "list.txt", **keys) == 0
    disparity, _ = read_disparity(next((tmp_path / "out" / "disparity_pfm").rglob("*.pfm")))
    points = cloud(next((tmp_path / "out" / "cloud").rglob("*.ply")))
    rows, columns = np.nonzero(seen_by_both(disparity) & (disparity + 12 >= 1))
    z = 90 * 0.193001 / (disparity[rows, columns] + 12)
    np.testing.assert_allclose(points[:, 2], z, rtol=1e-5)
    np.testing.assert_allclose(points[:, 0], (columns - 40.5) * z / 90, rtol=1e-4, atol=1e-5)


# -- the camera --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dataset", [{}, {"baseline": 0.1}, {"focal_x": 500.0}])
@pytest.mark.parametrize("key", ["save_depth", "save_point_cloud"])
def test_depth_needs_a_camera(infer, scenes, status_lines, tmp_path, dataset, key):
    """The schema's defaults of baseline and focal_x belong to no camera of the user's."""
    assert infer(tmp_path, scenes / "list.txt", dataset, **{key: True}) == 2
    assert "set inference.calibration" in status_lines(tmp_path)[-1]["message"]
    assert files(tmp_path) == set()


def test_values_that_a_file_can_not_hold_are_counted_once_a_run(infer, scenes, tmp_path, caplog):
    """The mild case: a few pixels. The other: a camera of which no depth fits."""
    keys = {"save_depth": True, "save_raw_pfm": True}
    assert infer(tmp_path / "some", scenes / "list.txt", {"baseline": 9.0, "focal_x": 100.0}, **keys) == 0
    paths = sorted((tmp_path / "some" / "disparity_pfm").rglob("*.pfm"))
    maps = [read_disparity(path)[0] for path in paths]
    beyond = [(values > 0) & (900 / np.maximum(values, 1e-9) > 65.5355) for values in maps]
    count, images = sum(map(np.sum, beyond)), sum(map(np.any, beyond))
    known = sum((values > 0).sum() for values in maps)
    assert 0 < count < known
    said = f"depth: {count} of {known} pixels (in {images} of 4 images) do not fit in 16-bit millimetres"
    assert caplog.text.count(said) == caplog.text.count("do not fit") == 1 and "check focal length" not in caplog.text
    caplog.clear()
    assert infer(tmp_path / "none", scenes / "list.txt", {"baseline": 9.0, "focal_x": 2000.0}, **keys) == 0
    assert f"depth: {known} of {known} pixels" in caplog.text and "check focal length and baseline" in caplog.text


def test_disparities_beyond_the_png_are_counted():
    lost = Clipped(OutOfRange)
    lost["disparity_png16"].add(0, np.array([[1.0, 0.0]]))
    assert format_losses(lost, Inference()) == ([], [])
    lost["disparity_png16"].add(2, np.array([[300.0, 256.0, 3.0]]))
    (text,), _ = format_losses(lost, Inference())
    assert "disparity_png16: 2 of 4 pixels (in 1 of 2 images) exceed 255.996 px" in text
    assert text.endswith("; set inference.save_raw_pfm for PFM files, which have no limit")
    (text,), _ = format_losses(lost, Inference(save_raw_pfm=True))
    assert text.endswith("; the PFM files hold the exact values")


@pytest.mark.parametrize(("few", "warned"), [(1, False), (2, True)])
def test_less_than_a_thousandth_of_the_pixels_is_a_note_and_no_warning(few, warned):
    lost, values_HW = Clipped(OutOfRange), np.full((30, 50), 5.0)
    values_HW[0, :few] = -1
    lost["disparity"].add(few, values_HW)
    warnings, notes = format_losses(lost, Inference())
    assert (len(warnings), len(notes)) == (warned, not warned)
    assert f"disparity: {few} of 1500 pixels are predicted at or below 0 px" in (warnings + notes)[0]


@pytest.mark.parametrize(("focal", "told"), [(500, None), (1, "is 0.02 m;"), (500_000, "is 1e+04 m;")])
def test_a_median_depth_that_no_scene_has_is_doubted(tmp_path, focal, told):
    """A focal length or a baseline in another unit that its own range does not show."""
    lost, disparity_HW = Clipped(OutOfRange), np.full((4, 6), 5.0, np.float32)
    camera = SizedCalibration(focal, 0.1, 0.0, 3.0, 2.0, focal, 6, 4)
    settings = Inference(save_png16=False, save_color=False, save_point_cloud=True)
    for name in ("a", "b"):
        write_files(settings, tmp_path, name, name, np.zeros((4, 6, 3), np.uint8), disparity_HW, camera, lost)
    said = [text for text in format_losses(lost, settings)[0] if "median depth" in text]
    assert [text.startswith(f"depth: the median depth of 2 images {told}") for text in said] == [True] * bool(told)


def test_pixels_without_depth_are_counted_once_a_run(infer, scenes, tmp_path, caplog):
    """A wrong sign of doffs leaves no pixel with a depth, and the files would only be black."""
    size = "width=96\nheight=64\nndisp=64\n"
    text = "cam0=[80 0 48; 0 80 32; 0 0 1]\ncam1=[80 0 -152; 0 80 32; 0 0 1]\ndoffs=-200\nbaseline=500\n" + size
    (tmp_path / "calib.txt").write_text(text)
    keys = {"calibration": str(tmp_path / "calib.txt"), "save_depth": True}
    files_of_one = (scenes / "list.txt").read_text().splitlines()[0].split()
    (tmp_path / "list.txt").write_text(" ".join(str(scenes / name) for name in files_of_one))
    assert infer(tmp_path / "out", tmp_path / "list.txt", **keys) == 0
    assert caplog.text.count("pixels have no depth, because their disparity + doffs is not above 0; 0 have one") == 1


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("cam0=[400 0 192; 0 400 128; 0 0 1]\ndoffs=0\nbaseline=100\nwidth=384\nheight=256\n", "384 x 256"),
        ("90 0 47.5 0 90 31.5 0 0 1\n278.3", "278.3 m"),
        ("90 0 240 0 90 135 0 0 1\n0.25", r"(240, 135)"),
    ],
)
def test_a_calibration_that_can_not_be_right_ends_the_run(infer, scenes, status_lines, tmp_path, text, named):
    (tmp_path / "c.txt").write_text(text)
    assert infer(tmp_path, scenes / "list.txt", calibration=str(tmp_path / "c.txt"), save_depth=True) == 2
    message = status_lines(tmp_path)[-1]["message"]
    assert named in message and "c.txt" in message
    assert not (tmp_path / "depth").exists()


def test_a_doubtful_calibration_draws_one_warning(infer, scenes, tmp_path, caplog):
    (tmp_path / "K.txt").write_text("100 0 47.5 0 200 31.5 0 0 1\n0.1\n")
    keys = {"calibration": str(tmp_path / "K.txt"), "save_point_cloud": True, "save_raw_pfm": True}
    assert infer(tmp_path / "out", scenes / "list.txt", **keys) == 0
    assert caplog.text.count("fx 100 px and fy 200 px differ") == 1
    disparity, _ = read_disparity(tmp_path / "out" / "disparity_pfm" / "scene0" / "left.pfm")
    rows, _ = np.nonzero(seen_by_both(disparity) & (disparity >= 1))
    points = cloud(tmp_path / "out" / "cloud" / "scene0" / "left.ply")
    np.testing.assert_allclose(points[:, 1], (rows - 31.5) * points[:, 2] / 200, rtol=1e-4, atol=1e-5)


def test_a_cloud_ends_at_its_largest_depth(infer, scenes, all_files, tmp_path):
    camera = {"baseline": 0.25, "focal_x": 90.0}
    keys = {"save_point_cloud": True, "cloud_max_depth": 1.4}
    assert infer(tmp_path, scenes / "list.txt", camera, **keys) == 0
    whole, near = (cloud(folder / "cloud" / "scene0" / "left.ply")[:, 2] for folder in (all_files, tmp_path))
    assert 0 < len(near) < len(whole) and near.max() <= 1.4 < whole.max()
    assert len(near) == (whole <= 1.4).sum()


def test_auto_takes_the_calibration_beside_each_image(infer, scenes, tmp_path, status_lines):
    shutil.copytree(scenes, tmp_path / "data")
    keys = {"calibration": "auto", "save_depth": True, "save_raw_pfm": True}
    for number in range(3):
        camera = f"cam0=[{90 + number} 0 47.5; 0 90 31.5; 0 0 1]\ndoffs={number}\nbaseline=100\n"
        (tmp_path / "data" / f"scene{number}" / "calib.txt").write_text(camera)
    assert infer(tmp_path / "out", tmp_path / "data" / "list.txt", **keys) == 2
    assert "the image's folder has no calib.txt or K.txt" in status_lines(tmp_path / "out")[-1]["message"]
    assert files(tmp_path / "out") == set()
    (tmp_path / "data" / "scene3" / "K.txt").write_text("93 0 39.5 0 93 23.5 0 0 1\n0.1\n")
    assert infer(tmp_path / "out", tmp_path / "data" / "list.txt", **keys) == 0
    for number, doffs in enumerate((0, 1, 2, 0)):
        disparity, _ = read_disparity(tmp_path / "out" / "disparity_pfm" / f"scene{number}" / "left.pfm")
        depth = cv2.imread(str(tmp_path / "out" / "depth" / f"scene{number}" / "left.png"), cv2.IMREAD_UNCHANGED)
        near = disparity > 1
        np.testing.assert_allclose(depth[near], (90 + number) * 100 / (disparity[near] + doffs), atol=0.51)


def test_depth_from_the_users_numbers(infer, all_files, scenes, tmp_path):
    """Both set by hand; without a file the principal point does not matter to depth."""
    camera = {"baseline": 0.2, "focal_x": 500.0}
    assert infer(tmp_path, scenes / "list.txt", camera, save_depth=True) == 0
    disparity, _ = read_disparity(all_files / "disparity_pfm" / "scene0" / "left.pfm")
    depth = cv2.imread(str(tmp_path / "depth" / "scene0" / "left.png"), cv2.IMREAD_UNCHANGED)
    known = disparity > 10
    np.testing.assert_allclose(depth[known], 500 * 200 / disparity[known], atol=0.51)


def test_pairs_before_a_broken_one_are_written(infer, scenes, tmp_path, status_lines):
    shutil.copytree(scenes, tmp_path / "data")
    broken = tmp_path / "data" / "scene2" / "left.png"
    broken.write_bytes(broken.read_bytes()[:100])
    assert infer(tmp_path / "out", tmp_path / "data" / "list.txt", batch_size=1) == 2
    written = {f"disparity_png16/scene{n}/left.png" for n in (0, 1)}
    assert written == {name for name in files(tmp_path / "out") if name.startswith("disparity")}
    assert str(broken) in status_lines(tmp_path / "out")[-1]["message"]


def test_a_file_that_can_not_be_written_is_named(infer, scenes, tmp_path, status_lines):
    """Threads write; and what they had begun is whole."""
    taken = tmp_path / "disparity_png16" / "scene1"
    taken.parent.mkdir()
    taken.touch()
    assert infer(tmp_path, scenes / "list.txt", batch_size=1) == 1
    assert str(taken) in status_lines(tmp_path)[-1]["message"]
    assert (tmp_path / "disparity_png16" / "scene0" / "left.png").is_file()
