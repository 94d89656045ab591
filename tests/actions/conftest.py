"""A small data set and a tiny network for tests of whole actions."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import training_runs
from onnx import TensorProto, helper, numpy_helper, save

from stereo_core.data.codecs import write_pfm
from stereo_core.data.images import write_png
from stereo_core.data.synthetic.planes import make_scene
from stereo_core.engines import BuildSettings, build_engine
from stereo_core.models import create_model, save_checkpoint
from stereo_core.run.outcome import Outcome
from stereo_core.step.ports import Artifact
from stereo_core.step.publish import Run, publish

SIZES = ((64, 96), (64, 96), (64, 96), (48, 80))


@pytest.fixture(scope="session")
def scenes(tmp_path_factory) -> Path:
    """A folder with four synthetic pairs (SIZES, below 30 px) and the list `list.txt` with masks."""
    folder = tmp_path_factory.mktemp("scenes")
    lines = []
    for number, size in enumerate(SIZES):
        scene = make_scene(*size, 30, seed=number)
        (folder / f"scene{number}").mkdir()
        write_png(folder / f"scene{number}" / "left.png", scene["left"])
        write_png(folder / f"scene{number}" / "right.png", scene["right"])
        write_pfm(folder / f"scene{number}" / "gt.pfm", scene["disparity"])
        write_png(folder / f"scene{number}" / "mask.png", scene["visible"].astype(np.uint8) * 255)
        lines.append(" ".join(f"scene{number}/{name}" for name in ("left.png", "right.png", "gt.pfm", "mask.png")))
    (folder / "list.txt").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory) -> Path:
    """A tiny network with random weights, in the NVlabs layout."""
    torch.manual_seed(3)
    path = tmp_path_factory.mktemp("model") / "tiny.pth"
    save_checkpoint(create_model(preset="tiny", valid_iters=3), path)
    return path


@pytest.fixture(scope="session")
def split():
    """(annotation list, batch size) -> one entry of the spec's `dataset`, read in the test's own process."""

    def section(data_file: Path, batch_size: int = 2, name: str = "GenericDataset", **source) -> dict:
        sources = [{"data_file": str(data_file), "dataset_name": name, **source}]
        return {"data_sources": sources, "batch_size": batch_size, "workers": 0}

    return section


@pytest.fixture(scope="session")
def train(scenes, split):
    """Start a training run; returns (exit code, Outcome or None)."""

    def start(folder, *, batch_size=2, optim=None, **keys):
        dataset = {"max_disparity": 64, "train_dataset": split(scenes / "list.txt", batch_size)}
        dataset["train_dataset"]["augmentation"] = {"crop_size": [48, 80]}
        dataset["val_dataset"] = split(scenes / "list.txt", 3)
        settings = {"results_dir": str(folder), "optim": {"lr": 1e-3, "warmup_steps": 0} | (optim or {})}
        outcomes = []
        return training_runs.start(dataset, settings | keys, outcomes.append), *(outcomes or [None])

    return start


@pytest.fixture(scope="session")
def finished(train, tmp_path_factory):
    """(folder, outcome) of a run of two epochs, two steps each, the last at a lower rate; for looking at only."""
    folder = tmp_path_factory.mktemp("train")
    code, outcome = train(folder, num_epochs=2, optim=training_runs.LOWER_LAST)
    assert code == 0
    return folder, outcome


@pytest.fixture(scope="session")
def every_two_steps(train, tmp_path_factory):
    """Folder of a run of two epochs, four steps each, that wrote a checkpoint within and at the end of each."""
    folder = tmp_path_factory.mktemp("steps")
    keys = {"checkpoint_interval": 2, "checkpoint_interval_unit": "step", "num_epochs": 2, "validation_interval": 2}
    assert train(folder, batch_size=1, keep_checkpoints=0, **keys)[0] == 0
    return folder


@pytest.fixture(scope="session")
def status_lines():
    """results folder -> the objects of its status.json."""
    return lambda folder: [json.loads(line) for line in (folder / "status.json").read_text().splitlines()]


@pytest.fixture
def shown(tmp_path_factory):
    """(action, its results folder, outcome) -> names of the pairs and pictures in the page that its component gives."""

    def pictures(action: str, folder: Path, outcome: Outcome) -> list[str]:
        place = tmp_path_factory.mktemp("published")
        results = place / "results"
        shutil.copytree(folder, results, ignore=shutil.ignore_patterns("*.pth"))
        page = Artifact("report", "report", place / "page.html")
        publish(Run(action, outcome, results, {}), {"report": page})
        text = page.path.read_text(encoding="utf-8")
        pairs = re.findall(r'<summary><h2 title="(.+)">', text)
        return pairs + re.findall(r'<img alt="(.+)" src="data:image/png;base64,iVBOR', text)

    return pictures


@pytest.fixture(scope="session")
def broken_engine(tmp_path_factory) -> Path:
    """An engine of 64 x 96 that looks up a row that a table does not have: seen only when an image comes."""
    folder = tmp_path_factory.mktemp("broken")
    value = helper.make_tensor_value_info
    images = [value(name, TensorProto.FLOAT, [1, 3, 64, 96]) for name in ("left_image", "right_image")]
    table = numpy_helper.from_array(np.zeros((2, 1, 1, 64, 96), np.float32), "table")
    nodes = [
        helper.make_node("Sub", ["left_image", "right_image"], ["difference"]),
        helper.make_node("ReduceMax", ["difference"], ["most"], keepdims=0),
        helper.make_node("Add", ["most", "far"], ["row"]),
        helper.make_node("Cast", ["row"], ["index"], to=TensorProto.INT64),
        helper.make_node("Gather", ["table", "index"], ["disparity"]),
    ]
    out = [value("disparity", TensorProto.FLOAT, [1, 1, 64, 96])]
    weights = [table, numpy_helper.from_array(np.float32(1000), "far")]
    model = helper.make_model(
        helper.make_graph(nodes, "g", images, out, weights), opset_imports=[helper.make_opsetid("", 17)], ir_version=8
    )
    save(model, folder / "broken.onnx")
    build_engine(folder / "broken.onnx", folder / "e", BuildSettings(backend="onnxruntime", verify=False))
    return folder / "e"
