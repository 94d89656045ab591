"""Parameters and artifacts make the spec, and the ports win."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from messages import artifact

from stereo_core.errors import UserError
from stereo_core.run.parameters import merge
from stereo_core.step.wiring import user_spec, wire


def test_spec_precedence(tmp_path):
    """spec_file < spec parameter < typed parameters < ports."""
    file = tmp_path / "spec.yaml"
    file.write_text(yaml.safe_dump({"train": {"num_epochs": 1, "precision": "bf16", "seed": 1, "results_dir": "/x"}}))
    said = {"train": {"seed": 2, "num_epochs": 2}}
    tree = user_spec("train", {"spec": said, "num_epochs": 3}, {"spec_file": artifact("spec_file", file, "spec")})
    assert tree["train"] == {"num_epochs": 3, "precision": "bf16", "seed": 2, "results_dir": "/x"}
    assert user_spec("train", {"spec": said, "num_epochs": 0}, {})["train"]["num_epochs"] == 2
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / "train.txt").touch()
    data = {name: artifact(name, tmp_path / name) for name in ("images", "annotations")}
    wire("train", tree, "", data, tmp_path / "results")
    assert tree["train"]["results_dir"] == str(tmp_path / "results")


def test_merge_replaces_lists_and_keeps_siblings():
    assert merge({"a": {"b": 1, "c": [1, 2]}}, {"a": {"c": [3]}}) == {"a": {"b": 1, "c": [3]}}


@pytest.mark.parametrize(("lists", "taken"), [(("test.txt", "val.txt"), "test.txt"), (("val.txt",), "val.txt")])
def test_evaluate_takes_the_test_list_else_the_validation_list(tmp_path, lists, taken):
    (tmp_path / "annotations").mkdir()
    for name in lists:
        (tmp_path / "annotations" / name).touch()
    (tmp_path / "checkpoint").mkdir()
    (tmp_path / "checkpoint" / "model.pth").touch()
    inputs = {name: artifact(name, tmp_path / name) for name in ("images", "annotations", "checkpoint")}
    tree = {"evaluate": {"trt_engine": "/old.engine"}}
    wire("evaluate", tree, "Kitti", inputs, tmp_path / "results")
    assert tree["dataset"]["test_dataset"]["data_sources"] == [
        {
            "data_file": str(tmp_path / "annotations" / taken),
            "dataset_name": "Kitti",
            "data_root": str(tmp_path / "images"),
        }
    ]
    assert tree["evaluate"]["checkpoint"] == str(tmp_path / "checkpoint" / "model.pth")
    assert tree["evaluate"]["trt_engine"] == "", "exactly one of checkpoint and trt_engine is set"


def test_the_users_data_sources_resolve_in_the_ports(tmp_path):
    (tmp_path / "annotations").mkdir()
    inputs = {name: artifact(name, tmp_path / name) for name in ("images", "annotations")}
    hard = tmp_path / "hard.txt"
    for path in (tmp_path / "annotations" / "easy.txt", hard):
        path.touch()
    source = {"data_file": "easy.txt", "dataset_name": "FSD", "disparity_format": "pfm"}
    other = {"data_file": str(hard), "dataset_name": "FSD", "data_root": "night"}
    tree = {"dataset": {"train_dataset": {"batch_size": 4, "data_sources": [source, other]}}}
    wire("train", tree, "", inputs, tmp_path / "results")
    train = tree["dataset"]["train_dataset"]
    assert train["batch_size"] == 4
    assert train["data_sources"] == [
        source | {"data_file": str(tmp_path / "annotations" / "easy.txt"), "data_root": str(tmp_path / "images")},
        other | {"data_root": str(tmp_path / "images" / "night")},
    ]
    assert "val_dataset" not in tree["dataset"], "no val.txt, no validation"
    with pytest.raises(UserError, match=r"no such annotation file: .*nowhere\.txt; .* Leave data_sources out"):
        wire(
            "train",
            {"dataset": {"train_dataset": {"data_sources": [{"data_file": "nowhere.txt"}]}}},
            "",
            inputs,
            tmp_path,
        )


def test_a_source_without_a_list_says_how_the_ports_list_is_read(tmp_path):
    """It was dropped without a word, and with it its disparity_scale."""
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / "train.txt").touch()
    inputs = {name: artifact(name, tmp_path / name) for name in ("images", "annotations")}
    coding = {"disparity_format": "png_u8", "disparity_scale": 4.0}
    tree = {"dataset": {"train_dataset": {"data_sources": [coding | {"data_file": ""}]}}}
    wire("train", tree, "Middlebury", inputs, tmp_path / "results")
    (source,) = tree["dataset"]["train_dataset"]["data_sources"]
    expected = {"data_file": str(tmp_path / "annotations" / "train.txt"), "dataset_name": "Middlebury"}
    assert source == coding | expected | {"data_root": str(tmp_path / "images")}
    tree = {"dataset": {"train_dataset": {"data_sources": [coding, {"data_file": "a.txt"}]}}}
    with pytest.raises(UserError, match=r"train_dataset\.data_sources: 1 of 2 sources have no data_file"):
        wire("train", tree, "", inputs, tmp_path / "results")


def test_parameters_say_how_the_ports_list_is_coded(tmp_path):
    """They win over the source without a list, and leave a source that names one alone."""
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / "train.txt").touch()
    inputs = {name: artifact(name, tmp_path / name) for name in ("images", "annotations")}

    def coded(*said: dict) -> tuple:
        tree = {"dataset": {"train_dataset": {"data_sources": [*said]}}}
        coding = {"disparity_format": "png_u8", "disparity_scale": 4.0}
        wire("train", tree, "Middlebury", inputs, tmp_path / "results", coding)
        (source,) = tree["dataset"]["train_dataset"]["data_sources"]
        return source.get("disparity_format"), source.get("disparity_scale")

    assert coded() == coded({"disparity_scale": 3}) == ("png_u8", 4.0)
    assert coded({"data_file": "train.txt"}) == (None, None)


def test_a_synthetic_source_needs_no_list(tmp_path):
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / "train.txt").touch()
    inputs = {name: artifact(name, tmp_path / name) for name in ("images", "annotations")}
    drawn, listed = {"dataset_name": "Synthetic", "pairs_per_epoch": 8}, {"data_file": "train.txt"}
    tree = {"dataset": {"train_dataset": {"data_sources": [drawn, listed]}}}
    wire("train", tree, "", inputs, tmp_path / "results")
    first, second = tree["dataset"]["train_dataset"]["data_sources"]
    assert first == drawn
    assert second["data_file"] == str(tmp_path / "annotations" / "train.txt")


def test_a_list_in_a_storage_is_not_looked_up_here(tmp_path):
    inputs = {name: artifact(name, tmp_path / name) for name in ("images", "annotations")}
    tree = {"dataset": {"train_dataset": {"data_sources": [{"data_file": "s3://data/train.txt"}]}}}
    wire("train", tree, "", inputs, tmp_path / "results")
    assert tree["dataset"]["train_dataset"]["data_sources"][0]["data_file"] == "s3://data/train.txt"


def test_statistics_need_pairs(tmp_path):
    with pytest.raises(UserError, match="data_sources: needs pairs from files, but nothing is connected"):
        wire("info", {}, "", {}, tmp_path)


def test_training_on_scenes_alone_needs_no_inputs(tmp_path):
    drawn = {"dataset_name": "synthetic"}
    tree = {"dataset": {"train_dataset": {"data_sources": [drawn]}}}
    wire("train", tree, "", {}, tmp_path)
    assert tree["dataset"] == {"train_dataset": {"data_sources": [drawn]}}


@pytest.mark.parametrize(("split", "source"), [("train", None), ("train", "train.txt"), ("val", "val.txt")])
def test_training_on_files_needs_both_inputs(tmp_path, split, source):
    (tmp_path / "images").mkdir()
    dataset = {"train_dataset": {"data_sources": [{"dataset_name": "Synthetic"}]}}
    dataset[f"{split}_dataset"] = {"data_sources": [{"data_file": source}]} if source else {}
    message = rf"dataset\.{split}_dataset\.data_sources: .*input annotations; connect it"
    with pytest.raises(UserError, match=message):
        wire("train", {"dataset": dataset}, "", {"images": artifact("images", tmp_path / "images")}, tmp_path)


def test_missing_training_list_names_what_is_there(tmp_path):
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / "test.txt").touch()
    inputs = {name: artifact(name, tmp_path / name) for name in ("images", "annotations")}
    with pytest.raises(UserError, match=r"no train\.txt \(found: test\.txt\).*split_ratio"):
        wire("train", {}, "", inputs, tmp_path)


def test_info_takes_every_list_there_is_or_those_that_the_user_names(tmp_path):
    (tmp_path / "annotations").mkdir()
    for name in ("train.txt", "val.txt", "other.txt"):
        (tmp_path / "annotations" / name).touch()
    inputs = {name: artifact(name, tmp_path / name) for name in ("images", "annotations")}

    def lists(said: list[dict]) -> list[tuple[str, str, float | None]]:
        tree = {"data_sources": said}
        wire("info", tree, "Kitti", inputs, tmp_path / "results")
        assert tree["results_dir"] == str(tmp_path / "results")
        assert {source["data_root"] for source in tree["data_sources"]} == {str(tmp_path / "images")}
        sources = tree["data_sources"]
        return [(Path(s["data_file"]).name, s.get("dataset_name"), s.get("disparity_scale")) for s in sources]

    assert lists([]) == [("train.txt", "Kitti", None), ("val.txt", "Kitti", None)]
    assert lists([{"disparity_scale": 4.0}]) == [("train.txt", "Kitti", 4.0), ("val.txt", "Kitti", 4.0)]
    assert lists([{"data_file": "other.txt"}]) == [("other.txt", None, None)]
