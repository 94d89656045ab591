"""Metrics of whole data sets: real ones against a script, and the same whatever the batch size or the backend."""

from __future__ import annotations

import csv
import json
import math

import cv2
import numpy as np
import pytest
import torch
from training_runs import start

from stereo_core.data.codecs import write_pfm
from stereo_core.files import sha256_of
from stereo_core.models import create_model, save_checkpoint
from stereo_core.report.pictures import STRIP
from stereo_core.run.perform import perform
from stereo_core.spec import spec_from_dict

METRICS = ("epe", "bp1", "bp2", "bp3", "d1", "rmse")
MODEL = {"preset": "tiny", "valid_iters": 3}


@pytest.fixture(scope="session")
def run_evaluate(tiny_checkpoint):
    """Evaluate on one section of `dataset`; returns (exit code, Outcome or None)."""

    def start(folder, section, max_disparity=64, model=MODEL, **keys):
        keys = {"checkpoint": str(tiny_checkpoint), "results_dir": str(folder)} | keys
        tree = {"dataset": {"test_dataset": section, "max_disparity": max_disparity}, "model": model, "evaluate": keys}
        outcomes = []
        code = perform("evaluate", spec_from_dict("evaluate", tree), on_outcome=outcomes.append)
        return code, *(outcomes or [None])

    return start


LATENCY = {"latency_median_ms", "latency_p95_ms", "latency_batch", "images_per_second"}


def of_the_data(figures):
    """Without those of the machine."""
    return {name: value for name, value in figures.items() if name not in LATENCY}


def read_rows(folder):
    with (folder / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


# -- real data, against an independent reading of the files -----------------------------------------------------------


def read_pfm(path):
    """A second reader, for little-endian grey files only."""
    kind, size, scale, body = path.read_bytes().split(b"\n", 3)
    assert kind.strip() == b"Pf" and float(scale) < 0
    width, height = map(int, size.split())
    return np.frombuffer(body, "<f4").reshape(height, width)[::-1]


def kitti(shared):
    folder = shared / "data" / "KITTI_2015" / "training"
    for name in ("000000_10.png", "000046_10.png"):
        gt = cv2.imread(str(folder / "disp_occ_0" / name), cv2.IMREAD_UNCHANGED) / 256
        yield (folder / "image_2" / name, folder / "image_3" / name, folder / "disp_occ_0" / name), gt, gt > 0


def middlebury(shared):
    folder = shared / "data" / "Middlebury" / "MiddEval3" / "trainingQ" / "Motorcycle"
    gt = read_pfm(folder / "disp0GT.pfm")
    mask = cv2.imread(str(folder / "mask0nocc.png"), cv2.IMREAD_GRAYSCALE) == 255
    files = tuple(folder / name for name in ("im0.png", "im1.png", "disp0GT.pfm", "mask0nocc.png"))
    yield files, gt, np.isfinite(gt) & mask


def eth3d(shared):
    folder = shared / "data" / "ETH3D"
    images, gt_file = (
        folder / "two_view_training" / "playground_1l",
        folder / "two_view_training_gt" / "playground_1l" / "disp0GT.pfm",
    )
    gt = read_pfm(gt_file)
    yield (images / "im0.png", images / "im1.png", gt_file), gt, np.isfinite(gt)


def flying_things(shared):
    folder = shared / "data" / "SceneFlow" / "FlyingThings3D"
    for gt_file in sorted(folder.rglob("*.pfm")):
        below = gt_file.relative_to(folder / "disparity").with_suffix(".png")
        left = folder / "frames_cleanpass" / below
        right = left.parent.parent / "right" / left.name
        gt = read_pfm(gt_file)
        yield (left, right, gt_file), gt, np.isfinite(gt)


def script(prediction, gt, valid, max_disparity):
    """The definitions of INTERFACES in NumPy."""
    ok = valid & (gt > 0) & (gt < max_disparity)
    error = np.abs(prediction[ok].astype(np.float64) - gt[ok])
    return {
        "epe": error.mean(),
        "bp1": (error > 1).mean(),
        "bp2": (error > 2).mean(),
        "bp3": (error > 3).mean(),
        "d1": ((error > 3) & (error > 0.05 * gt[ok])).mean(),
        "rmse": np.sqrt((error**2).mean()),
    }


@pytest.mark.parametrize(
    ("name", "pairs", "max_disparity"),
    [
        pytest.param("Kitti", kitti, 192, marks=pytest.mark.slow),
        pytest.param("Middlebury", middlebury, 416, marks=pytest.mark.slow),
        pytest.param("Eth3d", eth3d, 416, marks=pytest.mark.slow),
        pytest.param("FSD", flying_things, 100, marks=pytest.mark.slow),
    ],
)
def test_real_data(shared, name, pairs, max_disparity, split, run_evaluate, tiny_checkpoint, tmp_path):
    """evaluate's numbers are those of a NumPy script on the PFM files that inference writes."""
    pairs = list(pairs(shared))
    lines = [" ".join(f'"{path}"' for path in files) for files, _, _ in pairs]
    (tmp_path / "list.txt").write_text("\n".join(lines) + "\n")
    section = split(tmp_path / "list.txt", name=name)
    model = MODEL | {"valid_iters": 1}
    code, outcome = run_evaluate(tmp_path / "evaluate", section, max_disparity, model)
    assert code == 0

    keys = {"checkpoint": str(tiny_checkpoint), "results_dir": str(tmp_path / "inference"), "save_raw_pfm": True}
    tree = {"dataset": {"infer_dataset": section}, "model": model, "inference": keys}
    assert perform("inference", spec_from_dict("inference", tree)) == 0
    maps = sorted((tmp_path / "inference" / "disparity_pfm").rglob("*.pfm"))
    assert len(maps) == len(pairs)
    expected = [
        script(read_pfm(path), gt, valid, max_disparity) for path, (_, gt, valid) in zip(maps, pairs, strict=True)
    ]
    for metric in METRICS:
        assert outcome.kpi[metric] == pytest.approx(np.mean([e[metric] for e in expected]), abs=1e-4), metric
    for row, each in zip(read_rows(tmp_path / "evaluate"), expected, strict=True):
        assert {m: float(row[m]) for m in METRICS} == pytest.approx(each, abs=1e-4)


# -- files and settings ------------------------------------------------------------------------------------------------


def test_files(scenes, split, run_evaluate, tiny_checkpoint, tmp_path, shown):
    code, outcome = run_evaluate(tmp_path, split(scenes / "list.txt"))
    assert code == 0
    rows = read_rows(tmp_path)
    assert [row["path"] for row in rows] == [str(scenes / f"scene{n}" / "left.png") for n in range(4)]
    results = json.loads((tmp_path / "results.json").read_text())
    for name in METRICS:
        assert results[name] == outcome.kpi[name] == pytest.approx(np.mean([float(row[name]) for row in rows]))
        assert f"{name}_pixel" in outcome.kpi
    mask = cv2.imread(str(scenes / "scene3" / "mask.png"), cv2.IMREAD_GRAYSCALE) == 255
    assert int(rows[3]["pixels"]) == mask.sum()
    assert float(rows[3]["valid"]) == pytest.approx(mask.mean())
    assert results["images"] == 4 and results["pixels"] == sum(int(row["pixels"]) for row in rows)
    assert results["settings"]["resize"] == "none" and results["warnings"] == []
    assert results["settings"]["sha256"] == sha256_of(tiny_checkpoint), "publish_model compares it"
    panels = sorted((tmp_path / "panels").iterdir())
    assert [path.name for path in panels] == [f"scene{n}_left.png" for n in range(4)]
    assert cv2.imread(str(panels[3])).shape == (2 * 48 + 2 * STRIP, 4 * 2 * 80, 3)  # twice as large
    assert sorted(shown("evaluate", tmp_path, outcome)) == [f"scene{n}/left" for n in range(4)]


@pytest.mark.parametrize("batch_size", [1, 3])
def test_batch_size_does_not_matter(scenes, split, run_evaluate, tmp_path, batch_size):
    """Mixed sizes in one batch, masks and all: the same to the last bits of float32 convolutions."""
    _, whole = run_evaluate(tmp_path / "four", split(scenes / "list.txt", 4))
    code, parts = run_evaluate(tmp_path / "parts", split(scenes / "list.txt", batch_size))
    assert code == 0
    assert of_the_data(parts.kpi) == pytest.approx(of_the_data(whole.kpi), rel=1e-4)


def test_max_disparity_leaves_pixels_out(scenes, split, run_evaluate, tmp_path):
    run_evaluate(tmp_path, split(scenes / "list.txt"), max_disparity=8)
    from stereo_core.data.codecs import read_disparity

    gt, _ = read_disparity(scenes / "scene0" / "gt.pfm")
    mask = cv2.imread(str(scenes / "scene0" / "mask.png"), cv2.IMREAD_GRAYSCALE) == 255
    assert int(read_rows(tmp_path)[0]["pixels"]) == ((gt < 8) & mask).sum()


@pytest.mark.parametrize("resize", ["pad", "stretch"])
def test_resize_uses_the_crop_size(scenes, split, run_evaluate, tmp_path, resize):
    section = split(scenes / "list.txt") | {"augmentation": {"crop_size": [96, 160]}}
    code, resized = run_evaluate(tmp_path / "resized", section, resize=resize)
    assert code == 0
    results = json.loads((tmp_path / "resized" / "results.json").read_text())
    assert (results["settings"]["resize"], results["settings"]["size"]) == (resize, [96, 160])
    assert results["warnings"] == []
    _, native = run_evaluate(tmp_path / "native", split(scenes / "list.txt"))
    assert resized.kpi["epe"] != native.kpi["epe"] and math.isfinite(resized.kpi["epe"])


def test_images_that_are_stretched_to_fewer_pixels_draw_a_warning(scenes, split, run_evaluate, tmp_path):
    section = split(scenes / "list.txt") | {"augmentation": {"crop_size": [32, 64]}}
    assert run_evaluate(tmp_path, section, resize="stretch")[0] == 0
    (warning,) = json.loads((tmp_path / "results.json").read_text())["warnings"]
    assert warning.startswith("images of 96 x 64 px exceed the crop_size of 64 x 32 px and are scaled down: details")
    assert "not comparable" in warning and "set evaluate.resize to none" in warning


def test_settings_that_an_engine_does_not_have_draw_warnings(engine, scenes, split, run_evaluate, tmp_path):
    keys = {"checkpoint": "", "trt_engine": str(engine), "precision": "fp16", "compile": "on"}
    own = MODEL | {"valid_iters": MODEL["valid_iters"] + 1}
    assert run_evaluate(tmp_path, split(scenes / "list.txt"), model=own, **keys)[0] == 0
    warnings = json.loads((tmp_path / "results.json").read_text())["warnings"]
    assert [text.split(" ")[0] for text in warnings] == ["evaluate.precision", "evaluate.compile", "model.valid_iters"]


def test_results_say_which_range_the_network_has_and_what_lies_beyond(scenes, split, run_evaluate, tmp_path, caplog):
    caplog.set_level("INFO")
    torch.manual_seed(3)
    state = create_model(preset="tiny", max_disparity=32).state_dict()
    torch.save(state, tmp_path / "plain.pth")
    section = split(scenes / "list.txt", disparity_scale=0.5)  # up to 60 px
    keys = {"checkpoint": str(tmp_path / "plain.pth"), "model": MODEL | {"max_disparity": 32}, "max_disparity": 96}
    code, _ = run_evaluate(tmp_path / "out", section, **keys)
    assert code == 0
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["settings"]["max_disparity"] == 32 and results["settings"]["dataset_max_disparity"] == 96
    beyond, pixels = 0, 0
    for number in range(4):
        gt = 2 * read_pfm(scenes / f"scene{number}" / "gt.pfm")
        ok = (cv2.imread(str(scenes / f"scene{number}" / "mask.png"), cv2.IMREAD_GRAYSCALE) == 255) & (gt > 0)
        beyond, pixels = beyond + (ok & (gt >= 32)).sum(), pixels + ok.sum()
    [told] = [text for text in results["warnings"] if "max_disparity" in text]
    assert (
        beyond
        and f"{beyond} of {pixels} valid pixels ({beyond / pixels:.2%}) have ground" in told
        and told in caplog.text
    )
    assert "plain.pth: the network's max_disparity is 32 px, from model.max_disparity" in caplog.text


@pytest.mark.parametrize(("count", "warned"), [(6, False), (7, True)])
def test_a_few_pixels_beyond_the_network_are_a_note(scenes, split, run_evaluate, tmp_path, count, warned):
    """Less than a thousandth of the pixels: told with the count, but no warning."""
    truth = np.full((64, 96), 20.0, np.float32)
    truth[0, :count] = 40.0
    write_pfm(tmp_path / "gt.pfm", truth)
    views = [scenes / "scene0" / f"{side}.png" for side in ("left", "right")]
    (tmp_path / "list.txt").write_text(" ".join(map(str, [*views, tmp_path / "gt.pfm"])))
    torch.save(create_model(preset="tiny", max_disparity=32).state_dict(), tmp_path / "plain.pth")
    keys = {"checkpoint": str(tmp_path / "plain.pth"), "model": MODEL | {"max_disparity": 32}, "max_disparity": 96}
    code, outcome = run_evaluate(tmp_path / "out", split(tmp_path / "list.txt"), **keys)
    assert code == 0
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    told = any("hardly predict" in text for text in results["warnings"])
    assert told is warned and ("6 of 6144 valid pixels (0.10%)" in outcome.message) is not warned


# -- engines -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def engine(tiny_checkpoint, tmp_path_factory):
    """An onnxruntime engine of 64x96 px with a dynamic batch, from the tiny checkpoint."""
    folder = tmp_path_factory.mktemp("engine")
    export = {
        "checkpoint": str(tiny_checkpoint),
        "onnx_file": str(folder / "tiny.onnx"),
        "input_height": 64,
        "input_width": 96,
        "valid_iters": 3,
        "on_cpu": True,
        "check": False,
        "results_dir": str(folder / "export"),
    }
    assert perform("export", spec_from_dict("export", {"model": MODEL, "export": export})) == 0
    build = {"onnx_file": export["onnx_file"], "trt_engine": str(folder / "tiny.ort.onnx"), "backend": "onnxruntime"}
    build |= {"results_dir": str(folder / "build"), "tensorrt": {"max_batch_size": 2}}
    assert perform("gen_trt_engine", spec_from_dict("gen_trt_engine", {"gen_trt_engine": build})) == 0
    return folder / "tiny.ort.onnx"


def test_engine_agrees_with_the_checkpoint(engine, scenes, split, run_evaluate, tmp_path):
    """Batches of three against a profile of two, and one smaller image, which is padded in both."""
    _, eager = run_evaluate(tmp_path / "eager", split(scenes / "list.txt", 3))
    code, built = run_evaluate(
        tmp_path / "engine", split(scenes / "list.txt", 3), checkpoint="", trt_engine=str(engine)
    )
    assert code == 0
    for name in ("epe", "epe_pixel", "rmse"):
        assert built.kpi[name] == pytest.approx(eager.kpi[name], abs=1e-2), name
    results = json.loads((tmp_path / "engine" / "results.json").read_text())
    assert results["model_bytes"] == engine.stat().st_size
    assert results["settings"]["sha256"] == sha256_of(engine)
    assert 0 < results["latency_median_ms"] <= results["latency_p95_ms"] and results["images_per_second"] > 0
    assert results["settings"]["backend"] == "onnxruntime" and results["settings"]["resize"] == "pad"
    assert "latency_median_ms" in built.kpi
    provider, device = results["settings"]["provider"], results["settings"]["device"]
    assert (provider, device) in (("CPUExecutionProvider", "cpu"), ("CUDAExecutionProvider", "cuda:0"))
    assert (results["device_memory_bytes"] is None) == (device == "cpu")
    assert "device_memory_bytes" not in built.kpi or device != "cpu"


@pytest.mark.slow
def test_an_openvino_engine_agrees_with_the_onnxruntime_engine(engine, scenes, split, run_evaluate, tmp_path):
    pytest.importorskip("openvino")
    onnx, other = engine.with_name("tiny.onnx"), tmp_path / "tiny.ov.onnx"
    build = {"onnx_file": str(onnx), "trt_engine": str(other), "backend": "openvino", "verify": False}
    build |= {"results_dir": str(tmp_path / "build"), "tensorrt": {"max_batch_size": 2}}
    assert perform("gen_trt_engine", spec_from_dict("gen_trt_engine", {"gen_trt_engine": build})) == 0
    found = {}
    for path in (engine, other):
        keys = {"checkpoint": "", "trt_engine": str(path)}
        code, found[path] = run_evaluate(tmp_path / path.stem, split(scenes / "list.txt", 3), **keys)
        assert code == 0
    assert found[other].kpi["epe"] == pytest.approx(found[engine].kpi["epe"], abs=1e-3)
    settings = json.loads((tmp_path / other.stem / "results.json").read_text())["settings"]
    assert (settings["backend"], settings["provider"], settings["device"]) == ("openvino", "CPU", "cpu")


def test_a_checkpoint_is_timed_as_an_engine_is(scenes, split, run_evaluate, tmp_path):
    """Four images, three of one size: its first call, and the only one of the other size, are a warm-up."""
    code, outcome = run_evaluate(tmp_path, split(scenes / "list.txt", 1))
    assert code == 0
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["latency_batch"] == 1
    assert 0 < results["latency_median_ms"] <= results["latency_p95_ms"]
    assert results["images_per_second"] == pytest.approx(1000 / results["latency_median_ms"])  # two calls: median, mean
    assert outcome.kpi.keys() >= LATENCY


def test_swapped_views_reach_the_results_and_the_status(scenes, split, run_evaluate, status_lines, tmp_path):
    """evaluate gave bad figures for them without a word."""
    text = (scenes / "list.txt").read_text().splitlines()[0].replace("left.png", "x").replace("right.png", "left.png")
    (tmp_path / "list.txt").write_text(text.replace("x", "right.png") + "\n")
    section = split(tmp_path / "list.txt", data_root=str(scenes))
    assert run_evaluate(tmp_path, section)[0] == 0
    said = json.loads((tmp_path / "results.json").read_text())["warnings"]
    assert [text for text in said if "list.txt:1 (1 of 1 pair looked at): " in text and "views swapped?" in text]
    assert said[0] in [line["message"] for line in status_lines(tmp_path) if line["verbosity"] == "WARNING"]


def test_a_gpu_that_is_not_there_is_an_error(engine, scenes, split, run_evaluate, status_lines, tmp_path):
    section = split(scenes / "list.txt")
    code, _ = run_evaluate(tmp_path, section, checkpoint="", trt_engine=str(engine), gpu_ids=[31])
    assert code == 2 and "device cuda:31" in status_lines(tmp_path)[-1]["message"]


def test_an_engine_that_fails_while_it_runs_fails_the_run(
    broken_engine, scenes, split, run_evaluate, status_lines, tmp_path
):
    section = split(scenes / "list.txt")
    code, _ = run_evaluate(tmp_path / "out", section, checkpoint="", trt_engine=str(broken_engine))
    last = status_lines(tmp_path / "out")[-1]
    assert code == 1 and last["status"] == "FAILURE" and "out of data bounds" in last["message"]
    assert not (tmp_path / "out" / "results.json").exists() and not (tmp_path / "out" / "metrics.csv").exists()


def test_a_bad_list_is_found_before_the_model_is_loaded(scenes, split, run_evaluate, status_lines, tmp_path):
    (tmp_path / "list.txt").write_text('"unclosed\n')
    (tmp_path / "none.pth").write_bytes(b"no checkpoint")
    code, _ = run_evaluate(tmp_path / "out", split(tmp_path / "list.txt"), checkpoint=str(tmp_path / "none.pth"))
    assert code == 2 and "list.txt" in status_lines(tmp_path / "out")[-1]["message"]


# -- bad input ---------------------------------------------------------------------------------------------------------


def bad_list(folder, scenes, *names):
    path = folder / "bad.txt"
    path.write_text(" ".join(f'"{scenes / name}"' for name in names) + "\n")
    return path


SWAPPED = "scene0/left.png", "scene3/right.png", "scene0/gt.pfm"


@pytest.mark.parametrize(
    ("names", "says", "workers"),
    [
        (SWAPPED, "right.png is 80 x 48 px, but the left image", 0),
        (SWAPPED, "right.png is 80 x 48 px, but the left image", 1),
        (("scene0/left.png", "scene0/right.png", "scene3/gt.pfm"), "gt.pfm is 80 x 48 px, but the left image", 0),
        (("scene0/left.png", "scene0/right.png", "scene0/gt.pfm", "scene3/mask.png"), "mask.png is 80 x 48 px", 0),
        (("scene0/left.png", "scene0/right.png"), "bad.txt:1: the line has 2 columns, but", 0),
    ],
)
def test_bad_lines(names, says, workers, scenes, split, run_evaluate, status_lines, tmp_path, capsys):
    """The message is the same from a loader process, and no half-written table stays behind."""
    section = split(bad_list(tmp_path, scenes, *names)) | {"workers": workers}
    code, _ = run_evaluate(tmp_path / "out", section)
    assert code == 2
    last = status_lines(tmp_path / "out")[-1]
    assert last["status"] == "FAILURE" and says in last["message"]
    error = capsys.readouterr().err
    assert says in error and "Traceback" not in error
    assert not (tmp_path / "out" / "metrics.csv").exists()


def test_no_valid_pixel_anywhere(scenes, split, run_evaluate, status_lines, tmp_path):
    assert run_evaluate(tmp_path, split(scenes / "list.txt"), max_disparity=1)[0] == 2
    assert "list.txt): none of its pairs (4) has a valid pixel of ground truth" in status_lines(tmp_path)[-1]["message"]


def test_an_image_without_valid_pixels_is_left_out_loudly(scenes, split, run_evaluate, tmp_path, caplog):
    from stereo_core.data.images import write_png

    write_png(tmp_path / "nothing.png", np.zeros((64, 96), np.uint8))
    lines = (scenes / "list.txt").read_text().splitlines()
    folder, rows = scenes / "scene0", []
    rows.append(
        " ".join(str(folder / name) for name in ("left.png", "right.png", "gt.pfm")) + f" {tmp_path}/nothing.png"
    )
    rows += [" ".join(str(scenes / name) for name in line.split()) for line in lines[1:3]]
    (tmp_path / "list.txt").write_text("\n".join(rows) + "\n")
    code, outcome = run_evaluate(tmp_path / "out", split(tmp_path / "list.txt"))
    assert code == 0
    table = read_rows(tmp_path / "out")
    assert table[0]["pixels"] == "0" and table[0]["epe"] == "nan"
    assert outcome.kpi["epe"] == pytest.approx(np.mean([float(row["epe"]) for row in table[1:]]))
    assert json.loads((tmp_path / "out" / "results.json").read_text())["empty"] == 1
    assert "data_sources[0] (" in caplog.text and "dataset.max_disparity): 1 of 3; they are ignored" in caplog.text


def test_a_broken_network_fails_and_names_the_image(scenes, split, run_evaluate, status_lines, tmp_path):
    model = create_model(preset="tiny")
    with torch.no_grad():
        model.proj_cmb.weight.fill_(math.nan)
    save_checkpoint(model, tmp_path / "nan.pth")
    code, _ = run_evaluate(tmp_path / "out", split(scenes / "list.txt"), checkpoint=str(tmp_path / "nan.pth"))
    assert code == 1
    message = status_lines(tmp_path / "out")[-1]["message"]
    assert "scene0/left.png" in message and "contains NaN or infinity" in message


@pytest.mark.slow
@pytest.mark.parametrize("batch_size", [1, 2])
def test_two_ranks_give_the_same_lines_and_figures(run_evaluate, tmp_path, scenes, split, batch_size):
    """TAO's item 28: there samples are repeated and the ranks' means are averaged. Three images for two processes.

    Two images computed together differ in their last bits from the same two alone, so batches must not be cut anew.
    """
    lines = (scenes / "list.txt").read_text().splitlines()
    (tmp_path / "list.txt").write_text("\n".join(lines[1:]) + "\n")
    section = split(tmp_path / "list.txt", batch_size, data_root=str(scenes))
    code, one = run_evaluate(tmp_path / "one", section)
    assert code == 0
    code, two = run_evaluate(tmp_path / "two", section, num_gpus=2, gpu_ids=[0, 1])
    assert code == 0 and of_the_data(two.kpi) == of_the_data(one.kpi)
    assert len(read_rows(tmp_path / "one")) == 3
    assert (tmp_path / "two" / "metrics.csv").read_text() == (tmp_path / "one" / "metrics.csv").read_text()
    results = [of_the_data(json.loads((tmp_path / name / "results.json").read_text())) for name in ("one", "two")]
    assert results[0] == results[1]
    panels = [{path.name for path in (tmp_path / name / "panels").iterdir()} for name in ("one", "two")]
    assert panels[0] == panels[1] and len(panels[0]) == 3


@pytest.mark.slow
def test_two_ranks_validate_as_one_does(tmp_path, scenes, split):
    """The validation before the first step, of the same weights: six images, so that one rank has a batch more."""
    lines = (scenes / "list.txt").read_text().splitlines()
    (tmp_path / "list.txt").write_text("\n".join(2 * lines[:3]) + "\n")
    training = split(tmp_path / "list.txt", 1, data_root=str(scenes)) | {"augmentation": {"crop_size": [32, 64]}}
    validation = split(tmp_path / "list.txt", 2, data_root=str(scenes))
    dataset = {"max_disparity": 64, "train_dataset": training, "val_dataset": validation}
    found = []
    for processes in (1, 2):
        settings = {"results_dir": str(tmp_path / str(processes)), "num_gpus": processes, "num_epochs": 1}
        assert start(dataset, settings, on_outcome=found.append) == 0
    first, second = ({name: x for name, x in one.kpi.items() if name.startswith("initial_")} for one in found)
    assert len(first) > 6 and first == second


@pytest.mark.parametrize("verb", ["evaluate", "inference"])
def test_the_process_s_switches_are_left_as_they_were(verb, scenes, split, tiny_checkpoint, tmp_path):
    """A checkpoint is run in true float32; whoever asked for TF32 in this process still has it afterwards."""
    section = {"test_dataset" if verb == "evaluate" else "infer_dataset": split(scenes / "list.txt")}
    keys = {"checkpoint": str(tiny_checkpoint), "results_dir": str(tmp_path)}
    spec = spec_from_dict(verb, {"dataset": section | {"max_disparity": 64}, "model": MODEL, verb: keys})
    for wanted in (True, False):
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=wanted):
            assert perform(verb, spec) == 0
            assert torch.backends.cudnn.allow_tf32 is wanted
