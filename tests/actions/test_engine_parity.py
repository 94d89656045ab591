"""An engine's metrics are its checkpoint's, on a real pair of every data set and size."""

from __future__ import annotations

import csv
import json

import pytest
import torch
from narrow_network import NARROW

from stereo_core.models import create_model, load_model, save_checkpoint
from stereo_core.run.perform import perform
from stereo_core.spec import spec_from_dict

EPE_PX = 0.01  # float32 arithmetic in another order, and the recurrent refinement after it

KITTI = ("Kitti", 1.0, "KITTI_2015/training/{}/000000_10.png", ("image_2", "image_3", "disp_occ_0"))
TEDDY = ("GenericDataset", 4.0, "Middlebury/2003/teddy/{}", ("im2.png", "im6.png", "disp2.png"))
MOTORCYCLE = (
    "Middlebury",
    1.0,
    "Middlebury/MiddEval3/trainingQ/Motorcycle/{}",
    ("im0.png", "im1.png", "disp0GT.pfm", "mask0nocc.png"),
)
ETH3D = (
    "Eth3d",
    1.0,
    "ETH3D/{}",
    tuple(
        f"two_view_training{folder}/playground_1l/{name}"
        for folder, name in (("", "im0.png"), ("", "im1.png"), ("_gt", "disp0GT.pfm"))
    ),
)
FLYING_THINGS = (
    "FSD",
    1.0,
    "SceneFlow/FlyingThings3D/{}",
    tuple(
        f"{folder}/TRAIN/A/0000/{name}"
        for folder, name in (
            ("frames_cleanpass", "left/0006.png"),
            ("frames_cleanpass", "right/0006.png"),
            ("disparity", "left/0006.pfm"),
        )
    ),
)
EVERY_DATA_SET = [TEDDY, MOTORCYCLE, ETH3D, KITTI, FLYING_THINGS]


def evaluated(folder, sources, model, **keys):
    """(results.json, epe of each image) of one run."""
    split = {"data_sources": sources, "batch_size": 2, "workers": 0}
    tree = {"dataset": {"test_dataset": split, "max_disparity": 192}, "model": model}
    tree["evaluate"] = {"results_dir": str(folder), **keys}
    assert perform("evaluate", spec_from_dict("evaluate", tree)) == 0
    with (folder / "metrics.csv").open(newline="") as file:
        return json.loads((folder / "results.json").read_text()), [float(row["epe"]) for row in csv.DictReader(file)]


def compare(shared, folder, checkpoint, model, pairs, heights, widths):
    """One engine with open height and width for all sizes, so that both pad to the same multiple of 32."""
    sources = []
    for number, (name, scale, pattern, parts) in enumerate(pairs):
        files = [shared / "data" / pattern.format(part) for part in parts]
        (folder / f"{number}.txt").write_text(" ".join(f'"{file}"' for file in files) + "\n")
        source = {"data_file": str(folder / f"{number}.txt"), "dataset_name": name}
        sources.append(source | ({"disparity_scale": scale} if scale != 1 else {}))
    export = {"checkpoint": str(checkpoint), "onnx_file": str(folder / "model.onnx"), "on_cpu": True, "check": False}
    export |= {"input_height": heights[1], "input_width": widths[1], "valid_iters": model["valid_iters"]}
    export |= {"dynamic_hw": True, "results_dir": str(folder / "export"), "batch_size": -1}
    assert perform("export", spec_from_dict("export", {"model": model, "export": export})) == 0
    sizes = {"height": heights, "width": widths}
    build = {"onnx_file": export["onnx_file"], "trt_engine": str(folder / "e"), "backend": "onnxruntime"}
    build |= {f"{end}_{side}": sizes[side][i] for side in sizes for i, end in enumerate(("min", "opt", "max"))}
    build |= {"results_dir": str(folder / "build"), "verify": False, "tensorrt": {"max_batch_size": 2}}
    assert perform("gen_trt_engine", spec_from_dict("gen_trt_engine", {"gen_trt_engine": build})) == 0
    eager, eager_epe = evaluated(folder / "eager", sources, model, checkpoint=str(checkpoint))
    engine, engine_epe = evaluated(folder / "engine", sources, model, trt_engine=str(folder / "e"))
    assert engine["images"] == eager["images"] == len(pairs) and eager["pixels"] == engine["pixels"] > 0
    assert engine_epe == pytest.approx(eager_epe, abs=EPE_PX)
    for name in ("epe", "epe_pixel"):
        assert engine[name] == pytest.approx(eager[name], abs=EPE_PX)
    for name in ("bp1", "bp2", "bp3", "d1"):
        assert engine[name] == pytest.approx(eager[name], abs=1e-3)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_tiny_on_every_data_set(shared, tmp_path):
    torch.manual_seed(3)
    model = {"preset": "tiny", "valid_iters": 2}
    save_checkpoint(create_model(**model), tmp_path / "tiny.pth")
    compare(shared, tmp_path, tmp_path / "tiny.pth", model, EVERY_DATA_SET, (64, 384, 544), (64, 480, 1248))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_starter_on_a_pair(shared, tmp_path):
    """Trained weights, so that the figures mean something."""
    save_checkpoint(load_model("starter"), tmp_path / "starter.pth")
    model = {"preset": "small", "valid_iters": 8}
    compare(shared, tmp_path, tmp_path / "starter.pth", model, [TEDDY], (384, 384, 384), (480, 480, 480))
    assert json.loads((tmp_path / "engine" / "results.json").read_text())["epe"] < 2


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_fast_on_a_pair(shared, tmp_path):
    """FastFoundationStereo; the file says which network it is."""
    torch.manual_seed(3)
    network = create_model("FastFoundationStereo", widths=NARROW, valid_iters=2)
    save_checkpoint(network, tmp_path / "fast.pth")
    compare(shared, tmp_path, tmp_path / "fast.pth", {"valid_iters": 2}, [TEDDY], (384, 384, 384), (480, 480, 480))
