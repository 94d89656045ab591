"""A folder with the files that the specs of these tests name."""

from __future__ import annotations

from pathlib import Path

import pytest

NAMES = (
    "data/train.txt",
    "data/val.txt",
    "data/test.txt",
    "data/infer.txt",
    "dn_model_latest.pth",
    "pretrained.pth",
    "depth_anything_v2_vits.pth",
    "edgenext.pth",
    "model.onnx",
    "model.engine",
)


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in NAMES:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("not read here")
    for folder in ("data/2014b/MiddEval3", "data/KITTI_2015/training", "data/KITTI_2012"):
        (tmp_path / folder).mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path
