"""The data source Synthetic: pairs without a file, the same ones however they are loaded and wherever one goes on."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from samples import make_spec

from stereo_core.data.datasets import build_dataset
from stereo_core.data.loaders import StereoLoaders
from stereo_core.errors import SpecError
from stereo_core.spec import spec_from_dict

SOURCE = {
    "dataset_name": "synthetic",
    "pairs_per_epoch": 6,
    "height": 64,
    "width": 96,
    "scene_disparity": [4, 20],
}
CROP = {"augmentation": {"crop_size": [32, 64]}}


def batches(workers: int = 0, epoch: int = 0, start: int = 0) -> list[dict]:
    loaders = StereoLoaders(make_spec("train", [SOURCE], batch_size=2, workers=workers, **CROP))
    loaders.setup("fit")
    loader = loaders.train_dataloader()
    loader.sampler.set_epoch(epoch)
    loader.sampler.start = start
    return list(loader)


def equal(one: dict, other: dict) -> bool:
    return all(torch.equal(one[name], other[name]) for name in ("left", "right", "disparity", "valid", "index"))


def test_a_scene_does_not_depend_on_the_workers():
    for epoch in (0, 3):
        for alone, shared in zip(batches(0, epoch), batches(2, epoch), strict=True):
            assert equal(alone, shared)


def test_a_resumed_epoch_goes_on_with_the_next_scene():
    whole, rest = batches(epoch=1), batches(epoch=1, start=2)
    assert len(whole) == 3 and len(rest) == 2
    assert all(equal(expected, had) for expected, had in zip(whole[1:], rest, strict=True))


def test_no_epoch_repeats_a_scene_of_another():
    dataset = build_dataset(make_spec("val", [SOURCE]), "val")
    assert len(dataset) == 6
    seen = {dataset[index, epoch]["left"].numpy().tobytes() for epoch in range(3) for index in range(6)}
    assert len(seen) == 18


def test_splits_and_sources_have_scenes_of_their_own():
    first = [build_dataset(make_spec(split, [SOURCE]), split)[0]["disparity"] for split in ("val", "test")]
    assert not torch.equal(*first)
    two = build_dataset(make_spec("val", [SOURCE, SOURCE]), "val")
    assert len(two) == 12 and len(set(two.rels)) == 12
    assert not torch.equal(two[0]["disparity"], two[6]["disparity"])


@pytest.mark.parametrize("style", ["rich", "planes"])
def test_items_are_as_those_of_files(style):
    item = build_dataset(make_spec("val", [SOURCE | {"style": style}]), "val")[0]
    assert item["left"].shape == (3, 64, 96) and item["left"].dtype == torch.float32
    assert item["disparity"].shape == (1, 64, 96) and 0 < item["disparity"].min() <= item["disparity"].max() < 20
    assert item["valid"].all() and not item["skipped"]


def test_files_and_scenes_side_by_side(pairs):
    files = {"data_file": str(pairs / "list.txt"), "dataset_name": "Kitti"}
    dataset = build_dataset(make_spec("val", [files, SOURCE]), "val")
    assert len(dataset) == 5 + 6
    assert np.isfinite(dataset[10]["disparity"].numpy()).all() and dataset[0]["left"].shape != dataset[10]["left"].shape


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (SOURCE | {"data_file": "list.txt"}, r"train_dataset.data_sources\[0\].data_file: .*leave it out"),
        (
            SOURCE | {"scene_disparity": [20, 4]},
            r"data_sources\[0\].scene_disparity: \[20.*\] is not an ascending range",
        ),
        (SOURCE | {"pairs_per_epoch": 0}, r"pairs_per_epoch"),
    ],
)
def test_mistakes_are_named(source, message, tmp_path):
    with pytest.raises(SpecError, match=message):
        spec_from_dict(
            "train", {"results_dir": str(tmp_path), "dataset": {"train_dataset": {"data_sources": [source]}}}
        )
