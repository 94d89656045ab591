from __future__ import annotations

from typing import get_args

import cv2
import numpy as np
import pytest
import torch
from samples import PLAIN, make_pair, make_spec

from stereo_core.data.annotations import Sample, write_annotations
from stereo_core.data.codecs import write_pfm
from stereo_core.data.datasets import build_dataset, collate, group_by_size, relative_names
from stereo_core.errors import DataError
from stereo_core.spec.fields import DatasetName


def kitti(folder, **more):
    return {"data_file": str(folder / "list.txt"), "dataset_name": "kItTi", **more}


def test_an_item(pairs):
    dataset = build_dataset(make_spec("test", [kitti(pairs)]), "test")
    assert len(dataset) == 5
    item = dataset[3]
    left = cv2.imread(str(pairs / "left/003.png"))[..., ::-1]
    assert item["left"].dtype == torch.float32 and item["left"].shape == (3, 40, 70)
    assert np.array_equal(item["left"].numpy(), left.transpose(2, 0, 1))
    assert np.array_equal(item["right"].numpy()[2], cv2.imread(str(pairs / "right/003.png"))[..., 0])
    disparity, valid = item["disparity"], item["valid"]
    assert disparity.shape == valid.shape == (1, 40, 70) and valid.dtype == torch.bool
    assert disparity[0, 5, 32] == 3.0
    assert not valid[0, 0].any()  # the mask is 128 there
    assert not valid[0, 2, 3] and int((~valid).sum()) == 70 + 1
    assert (disparity[~valid] == 0).all() and (disparity[valid] >= 1).all()
    assert (item["index"], item["rel"]) == (3, "left/003")
    assert item["path"] == str(pairs / "left/003.png")


@pytest.mark.parametrize("name", sorted({*get_args(get_args(DatasetName)[0])} - {"", "Synthetic"}))
@pytest.mark.parametrize("columns", [2, 3, 4])
def test_every_data_set_takes_two_three_and_four_columns(tmp_path, name, columns):
    paths = make_pair(tmp_path, "000")
    write_pfm(tmp_path / "gt.pfm", np.full((40, 70), 7.0))
    write_annotations(tmp_path / "list.txt", [[paths[0], paths[1], str(tmp_path / "gt.pfm"), paths[3]][:columns]])
    item = build_dataset(make_spec("test", [kitti(tmp_path, dataset_name=name)]), "test")[0]
    assert int(item["valid"].sum()) == {2: 0, 3: 40 * 70, 4: 39 * 70}[columns]


def test_several_sources_keep_their_own_format_and_root(pairs, tmp_path_factory):
    other = tmp_path_factory.mktemp("other")
    make_pair(other / "a", "x", 20, 30)
    write_annotations(other / "list.txt", [[f"a/{side}/x.png" for side in ("left", "right", "disparity")]])
    sources = [
        kitti(pairs),
        kitti(other, dataset_name="GenericDataset", disparity_format="png_u16_32", data_root=str(other)),
    ]
    dataset = build_dataset(make_spec("test", sources), "test")
    assert len(dataset) == 6
    assert dataset[5]["disparity"][0, 0, 16] == 2.0 * 256 / 32
    assert dataset[0]["disparity"][0, 1, 16] == 2.0
    assert dataset[5]["rel"] == "a/left/x"


@pytest.fixture
def deep_list(tmp_path):
    """(largest value of each pair's left image) -> a list of such pairs in 16-bit files, the right half as bright."""

    def write(*largest: int):
        rows = []
        for number, value in enumerate(largest):
            rows.append([str(tmp_path / f"{side}{number}.png") for side in ("left", "right")])
            for path, top in zip(rows[-1], (value, value // 2), strict=True):
                cv2.imwrite(path, np.linspace(0, top, 40 * 70).reshape(40, 70).astype(np.uint16))
        write_annotations(tmp_path / "list.txt", rows)
        return tmp_path

    return write


def about_bits(caplog) -> list[str]:
    return [text for record in caplog.records if "16-bit" in (text := record.getMessage())]


def test_twelve_bit_images_are_read_with_their_grey_levels_and_a_warning(deep_list, caplog):
    folder = deep_list(4012, 900)
    dataset = build_dataset(make_spec("infer", [kitti(folder)]), "infer")
    [said] = about_bits(caplog)
    assert said.startswith("dataset.infer_dataset.data_sources[0]: the largest value in its 16-bit images is 4012")
    assert "left0.png" in said and "12-bit" in said and "image_bits=12" in said
    assert len(dataset[0]["left"].unique()) > 240
    assert [item["left"].max().item() for item in (dataset[0], dataset[1])] == [250, 56], "one scale for the source"


@pytest.mark.parametrize(("largest", "bits"), [((65535, 900), "auto"), ((4012, 900), 16), ((4012, 900), 12)])
def test_no_warning_where_there_is_no_doubt(deep_list, caplog, largest, bits):
    dataset = build_dataset(make_spec("infer", [kitti(deep_list(*largest), image_bits=bits)]), "infer")
    full = 4095 if bits == 12 else 65535
    assert [item["left"].max().item() for item in (dataset[0], dataset[1])] == [round(v * 255 / full) for v in largest]
    assert not about_bits(caplog)


def test_values_above_the_source_s_bits_name_the_line(deep_list):
    dataset = build_dataset(make_spec("infer", [kitti(deep_list(4012), image_bits=10)]), "infer")
    with pytest.raises(
        DataError, match=r"list\.txt:1: .*left0\.png: the largest value is 4012, which does not fit in 10 bits"
    ):
        dataset[0]


@pytest.mark.parametrize(
    ("column", "complaint"),
    [(1, "is 33 x 40 px, but the left image .* is 70 x 40 px"), (2, "is 33 x 40 px"), (3, "is 33 x 40 px")],
)
def test_files_of_different_size_are_named_with_the_line(tmp_path, column, complaint):
    good, bad = make_pair(tmp_path, "good"), make_pair(tmp_path, "bad", width=33)
    write_annotations(tmp_path / "list.txt", [good, [*good[:column], bad[column], *good[column + 1 :]]])
    dataset = build_dataset(make_spec("test", [kitti(tmp_path)]), "test")
    dataset[0]
    with pytest.raises(DataError, match=rf"list\.txt:2: .*bad\.png {complaint}"):
        dataset[1]


def test_a_truncated_image_is_named_with_the_line(pairs):
    path = pairs / "right/001.png"
    path.write_bytes(path.read_bytes()[:-100])
    dataset = build_dataset(make_spec("test", [kitti(pairs)]), "test")
    with pytest.raises(DataError, match=r"list\.txt:2: .*right/001\.png: the image is truncated"):
        dataset[1]


def test_a_missing_file_is_found_before_any_work(pairs):
    (pairs / "mask/004.png").unlink()
    with pytest.raises(DataError, match=r"list\.txt:5: no such mask file: .*004\.png"):
        build_dataset(make_spec("test", [kitti(pairs)]), "test")


@pytest.mark.parametrize("split", ["train", "val"])
def test_training_and_validation_need_ground_truth(tmp_path, split):
    write_annotations(tmp_path / "list.txt", [make_pair(tmp_path, "a"), make_pair(tmp_path, "b")[:2]])
    with pytest.raises(DataError, match=rf"list\.txt:2: the line has 2 columns, but dataset\.{split}_dataset"):
        build_dataset(make_spec(split, [kitti(tmp_path)]), split)


@pytest.fixture
def uncounted(tmp_path_factory):
    """A list of three pairs without a pixel of ground truth that counts."""
    other = tmp_path_factory.mktemp("other")
    rows = [make_pair(other, name) for name in "abc"]
    write_pfm(other / "gt.pfm", np.full((40, 70), -7.0))
    write_annotations(other / "list.txt", [[left, right, str(other / "gt.pfm")] for left, right, *_ in rows])
    return other


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_source_without_a_pixel_that_counts_is_refused_and_named(pairs, uncounted, split):
    """Beside one that has some: it was trained on, with a loss of 0."""
    with pytest.raises(DataError, match=rf"dataset\.{split}_dataset\.data_sources\[1\] .*none of its pairs \(3\)"):
        build_dataset(make_spec(split, [kitti(pairs), kitti(uncounted)]), split)
    good = make_pair(uncounted, "a")
    write_annotations(uncounted / "list.txt", [[*good[:2], str(uncounted / "gt.pfm")], good, good])
    dataset = build_dataset(make_spec(split, [kitti(pairs), kitti(uncounted)]), split)
    assert [dataset[index]["source"] for index in (0, 4, 5)] == [0, 0, 1]


def test_evaluate_needs_one_source_with_a_pixel_that_counts(pairs, uncounted):
    """With none it failed only after the network had seen all pairs."""
    build_dataset(make_spec("test", [kitti(pairs), kitti(uncounted)]), "test")
    with pytest.raises(DataError, match=r"dataset\.test_dataset\.data_sources\[0\] .*none of its pairs \(3\)"):
        build_dataset(make_spec("test", [kitti(uncounted)]), "test")


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_a_mask_of_another_size_is_left_to_the_full_read(pairs, split):
    """It ended in NumPy's error, without the name of a file."""
    pair = make_pair(pairs, "a")
    cv2.imwrite(pair[3], np.full((8, 8), 255, np.uint8))
    write_annotations(pairs / "list.txt", [pair])
    dataset = build_dataset(make_spec(split, [kitti(pairs)]), split)
    with pytest.raises(DataError, match=r"list\.txt:1: .*mask/a\.png is 8 x 8 px, but the left image"):
        dataset[0]


def test_a_split_without_a_source(pairs):
    with pytest.raises(DataError, match=r"dataset\.val_dataset\.data_sources"):
        build_dataset(make_spec("test", [kitti(pairs)]), "val")


# -- training crops ---------------------------------------------------------------------------------------------------


def train_set(folder, size):
    return build_dataset(make_spec("train", [kitti(folder)], augmentation={"crop_size": size, **PLAIN}), "train")


def test_a_crop_is_one_window_of_all_maps(pairs):
    whole, dataset = build_dataset(make_spec("test", [kitti(pairs)]), "test")[1], train_set(pairs, [32, 64])
    places = set()
    for epoch in range(20):
        item = dataset[1, epoch]
        assert item["left"].shape == (3, 32, 64) and item["disparity"].shape == item["valid"].shape == (1, 32, 64)
        [(top, start)] = [
            (y, x)
            for y in range(40 - 32 + 1)
            for x in range(70 - 64 + 1)
            if torch.equal(whole["left"][:, y : y + 32, x : x + 64], item["left"])
        ]
        for name in ("right", "disparity", "valid"):
            assert torch.equal(whole[name][:, top : top + 32, start : start + 64], item[name])
        places.add((top, start))
    assert len(places) > 8
    assert {y for y, _ in places} & {0, 8} and {x for _, x in places} & {0, 6}  # up to the border


def test_a_crop_depends_on_seed_epoch_and_index_alone(pairs):
    first, again = train_set(pairs, [32, 32]), train_set(pairs, [32, 32])
    again[0, 0], again[4, 2]
    assert torch.equal(first[2, 1]["left"], again[2, 1]["left"])
    assert not torch.equal(first[2, 1]["left"], first[2, 2]["left"])
    again.seed = 99
    assert not torch.equal(first[2, 1]["left"], again[2, 1]["left"])


def test_padding_to_multiples_of_32_is_invalid(pairs):
    item = train_set(pairs, [30, 50])[0, 0]
    assert item["left"].shape == (3, 32, 64)
    assert not item["valid"][0, 30:].any() and not item["valid"][0, :, 50:].any()
    assert not item["disparity"][0, 30:].any() and not item["disparity"][0, :, 50:].any()
    assert item["valid"][0, 3:30, :50].all()
    assert torch.equal(item["left"][:, 31, :50], item["left"][:, 29, :50])
    assert torch.equal(item["right"][:, :, 63], item["right"][:, :, 49])


@pytest.mark.parametrize("size", [[41, 32], [32, 71]])
def test_a_crop_larger_than_the_image_is_padded_and_the_padding_invalid(pairs, size):
    item = train_set(pairs, size)[2, 0]
    height, width = min(size[0], 40), min(size[1], 70)
    assert item["left"].shape[1:] == (-(-size[0] // 32) * 32, -(-size[1] // 32) * 32)
    assert not item["valid"][0, height:].any() and not item["valid"][0, :, width:].any()
    assert item["valid"][0, 3:height, :width].all()
    below = item["right"][:, height - 1 :, :width]
    assert torch.equal(below, below[:, :1].expand_as(below))


def test_on_error_of_the_spec(pairs):
    for on_error in ("fail", "skip"):
        spec = make_spec("train", [kitti(pairs)])
        spec.dataset.on_error = on_error
        assert build_dataset(spec, "train").skip_unreadable == (on_error == "skip")


# -- names and batches ------------------------------------------------------------------------------------------------


def names(lefts, roots=None, list_file="/lists/list.txt"):
    samples = [Sample(left, "r", None, None, list_file, n) for n, left in enumerate(lefts)]
    return relative_names(samples, roots or [""] * len(lefts))


def test_relative_names():
    assert names(["/d/a/im0.png", "/d/b/c/im0.png"], ["/d", "/d"]) == ["a/im0", "b/c/im0"]
    assert names(["/d/a/im0.png", "/d/b/c/im0.png"], list_file="/d/list.txt") == ["a/im0", "b/c/im0"]
    assert names(["/d/a/im0.png"]) == ["d/a/im0"]
    assert names(["s3://bucket/d/a/im0.png"]) == ["bucket/d/a/im0"]
    # two roots with the same files below
    assert names(["/d/a/im0.png", "/d/b/im0.png"], ["/d/a", "/d/b"]) == ["d/a/im0", "d/b/im0"]
    # a file outside its root never leads out of the results folder
    assert names(["/d/x/a.png", "/e/b.png"], ["/d", "/d"]) == ["x/a", "e/b"]
    assert names(["/d/a.v1.png", "/d/a.v2.png"], ["/d", "/d"]) == ["a.v1", "a.v2"]
    assert names(["/d/a.png", "/d/a.jpg", "/d/b.png"], ["/d"] * 3) == ["d/a_png", "d/a_jpg", "b"]
    assert names(["/d/a.png", "/d/a.png"], ["/d"] * 2) == ["a", "a-2"]


def test_a_left_image_with_several_right_ones_is_named_by_them_in_any_order():
    rows = [("/d/a.png", f"/d/right{number}.png") for number in (1, 2, 2)]
    samples = [Sample(left, right, None, None, "/l/x.txt", 1) for left, right in rows]
    first, second, again = relative_names(samples, ["/d"] * 3)
    assert first.startswith("a-") and again == f"{second}-2" and len({first, second}) == 2
    assert relative_names(samples[1::-1], ["/d"] * 2) == [second, first]


@pytest.mark.parametrize(("roots", "list_file"), [(["/d"], "/l/x.txt"), ([""], "/d/x.txt"), ([""], "/l/x.txt")])
def test_a_name_does_not_depend_on_the_other_pairs(roots, list_file):
    lefts = ["/d/a/im0.png", "/d/b/im0.png", "/e/c.png"]
    together = names(lefts, roots * 3, list_file)
    assert together == [names([left], roots, list_file)[0] for left in lefts]


def test_grouping_by_size_keeps_every_item(tmp_path):
    sizes = [(32, 40), (40, 32), (32, 40)]
    rows = [make_pair(tmp_path, str(n), *size, seed=n) for n, size in enumerate(sizes)]
    write_annotations(tmp_path / "list.txt", rows)
    dataset = build_dataset(make_spec("test", [kitti(tmp_path)]), "test")
    items = collate([dataset[n] for n in range(3)])
    groups = group_by_size(items)
    assert [group["index"].tolist() for group in groups] == [[0, 2], [1]]
    assert groups[0]["left"].shape == (2, 3, 32, 40) and groups[0]["rel"] == ["left/0", "left/2"]
    assert torch.equal(groups[0]["right"][1], items[2]["right"])
