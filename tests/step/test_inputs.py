"""Which file of an input is meant, and whether it is what was made."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
from messages import artifact, executor_input, item

from stereo_core.data.images import write_png
from stereo_core.engines.files import SIDECAR_KEYS, write_sidecar
from stereo_core.errors import ModelError
from stereo_core.files import sha256_of
from stereo_core.run.outcome import Outcome
from stereo_core.spec.dataset import DataSource
from stereo_core.step.inputs import check_digest, check_frame, content
from stereo_core.step.launch import main
from stereo_core.step.publish import Run, publish


def test_a_training_folder_given_as_a_model_is_its_newest_checkpoint(tmp_path):
    for name in ("model_epoch_000_step_00001.pth", "model_epoch_001_step_00002.pth"):
        (tmp_path / name).write_text(name)
    folder = artifact("checkpoint", tmp_path)
    with pytest.raises(ModelError, match=r"one model file; found: model_epoch_000.*, model_epoch_001"):
        content(folder)
    (tmp_path / "dn_model_latest.pth").symlink_to("model_epoch_001_step_00002.pth")
    assert content(folder) == tmp_path.resolve() / "model_epoch_001_step_00002.pth"


def test_of_several_models_in_a_folder_the_metadata_say_which(tmp_path):
    for name in ("a.onnx", "b.onnx"):
        (tmp_path / name).write_text(name)
    assert content(artifact("onnx", tmp_path, file="b.onnx")) == tmp_path / "b.onnx"


def test_what_lies_beside_a_model_counts_too(tmp_path, capsys):
    """A foreign file of weights beside an ONNX file would change the network, a side-car what is done with it."""
    (tmp_path / "model.onnx").write_bytes(b"graph")
    (tmp_path / "model.onnx.data").write_bytes(b"weights")
    outputs = {"onnx": artifact("onnx", tmp_path / "out")}
    outcome = Outcome("done", artifacts={"onnx": tmp_path / "model.onnx"})
    published = publish(Run("export", outcome, tmp_path, {}), outputs)
    given = artifact("onnx", tmp_path / "out", **published["onnx"]["artifacts"][0]["metadata"])
    check_digest(given)
    for name in ("model.onnx.data", "model.onnx.json"):
        (tmp_path / "out" / name).unlink(missing_ok=True)  # it is a hard link
        (tmp_path / "out" / name).write_bytes(b"others")
        with pytest.raises(ModelError, match="changed since its step wrote it"):
            check_digest(given)
        (tmp_path / "out" / name).unlink()
        shutil.copy(tmp_path / "model.onnx.data", tmp_path / "out")
    check_digest(given)


def test_an_engine_is_found_in_the_folder_that_publish_model_writes(tmp_path):
    (tmp_path / "model.engine").write_bytes(b"ftrt plan")
    sidecar = dict.fromkeys(SIDECAR_KEYS) | {"kind": "engine", "sha256": sha256_of(tmp_path / "model.engine")}
    write_sidecar(tmp_path / "model.engine", sidecar)
    (tmp_path / "metrics").write_text('{"epe": 1.0}')
    inputs = {"model": item(tmp_path / "model.engine"), "metrics": item(tmp_path / "metrics")}
    text = executor_input(tmp_path / "task", inputs, ("card",), {"uri": str(tmp_path / "shelf")})
    assert main(["publish_model", text]) == 0
    (version,) = (path for path in (tmp_path / "shelf").iterdir() if path.is_dir())
    assert sorted(path.name for path in version.iterdir()) == [
        "README.md",
        "metrics.json",
        "model.engine",
        "model.engine.json",
    ]
    assert content(artifact("engine", version)) == version / "model.engine"


@pytest.mark.parametrize("side", ["height", "width"])
def test_an_engine_of_a_range_of_sizes_takes_images_of_another_size(tmp_path, side):
    write_png(tmp_path / "l.png", np.zeros((6, 8, 3), np.uint8))
    (tmp_path / "l.txt").write_text("l.png l.png\n")
    size = {f"{which}_{way}": 32 for way in ("height", "width") for which in ("input", "min", "max")}
    source = DataSource(data_file=str(tmp_path / "l.txt"))
    check_frame(artifact("engine", tmp_path, **size | {f"max_{side}": 64}), source)
    with pytest.raises(ModelError, match="takes images of 32 x 32 px"):
        check_frame(artifact("engine", tmp_path, **size), source)
