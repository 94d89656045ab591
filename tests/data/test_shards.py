"""Packed data sets: read in place, they give what the loose files give, or say which file they can not give."""

from __future__ import annotations

import os
import shutil
import sys
import tarfile
import threading
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from torch.utils.data import DataLoader

from stereo_core.data import shards
from stereo_core.data.annotations import check_files, read_annotations, write_annotations
from stereo_core.data.codecs import read_disparity, write_disparity_png16, write_disparity_rgb, write_pfm
from stereo_core.data.datasets import StereoDataset, relative_names
from stereo_core.data.images import read_image, read_mask
from stereo_core.errors import DataError
from stereo_core.run.perform import perform
from stereo_core.spec import spec_from_dict
from stereo_core.storage.transfers import PART

SOURCE = SimpleNamespace(
    dataset_name="GenericDataset", disparity_format="auto", disparity_scale=None, image_bits="auto"
)


def pack(folder: Path, into: Path, limit: int = 20_000) -> Path:
    sizes = {path.relative_to(folder).as_posix(): path.stat().st_size for path in folder.rglob("*") if path.is_file()}
    shards.pack(sizes, lambda name: (folder / name).read_bytes(), into, limit)
    return into


def test_packing_has_a_bar_on_a_terminal_of_the_main_thread(tmp_path, monkeypatch, terminal):
    monkeypatch.setattr(sys, "stderr", terminal)
    sizes, limit = {"a": PART, "b": 5}, 2 * PART  # less than a part is packed without a bar
    thread = threading.Thread(target=shards.pack, args=(sizes, lambda name: bytes(sizes[name]), tmp_path / "x", limit))
    thread.start()
    thread.join()
    assert terminal.getvalue() == ""
    shards.pack(sizes, lambda name: bytes(sizes[name]), tmp_path / "packed", limit)
    assert "packed" in terminal.getvalue() and "16.8/16.8 MB" in terminal.getvalue()
    assert set(shards.packed(str(tmp_path / "packed"))) == {"a", "b"}


@pytest.fixture
def loose(tmp_path) -> Path:
    """Six pairs with disparity and mask, a file of each format, and a list with relative paths."""
    folder, random = tmp_path / "loose", np.random.default_rng(0)
    rows = []
    for number in range(6):
        row = [f"{name}/{number} a.png" for name in ("left", "right", "disparity", "nocc")]
        rows.append(row)
        for name in row:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
        for name in row[:2]:
            cv2.imwrite(str(folder / name), random.integers(0, 255, (32, 48, 3), np.uint8))
        write_disparity_rgb(folder / row[2], random.uniform(1, 20, (32, 48)))
        cv2.imwrite(str(folder / row[3]), 255 * random.integers(0, 2, (32, 48), np.uint8))
    write_annotations(tmp_path / "list.txt", rows)
    return folder


def test_pack_gives_a_plain_tar_and_an_index_of_offsets(loose, tmp_path):
    packed = pack(loose, tmp_path / "packed")
    names = sorted(path.name for path in packed.glob("*.tar"))
    assert len(names) > 2 and names == [f"shard-{n:05d}-of-{len(names):05d}.tar" for n in range(len(names))]
    found = []
    for name in names:
        assert (packed / name).stat().st_size < 60_000
        with tarfile.open(packed / name, "r:") as tar:
            lines = (packed / f"{name}.index").read_text().splitlines()
            assert lines[0] == f"# shard of {len(tar.getmembers())} files: offset size crc32 name"
            for member, line in zip(tar.getmembers(), lines[1:], strict=True):
                offset, size, _, member_name = line.split(" ", 3)
                assert (int(offset), int(size), member_name) == (member.offset_data, member.size, member.name)
                assert tar.extractfile(member).read() == (loose / member.name).read_bytes()
                found.append(member.name)
    assert len(found) == 24
    again = pack(loose, tmp_path / "again")
    assert all((packed / name).read_bytes() == (again / name).read_bytes() for name in names)


def test_long_and_odd_names(tmp_path):
    names = ["a" * 120 + "/" + "b" * 120 + ".txt", "ä ö/ü #1.txt", "x\u2028y.txt", "empty", os.fsdecode(b"\xff.txt")]
    shards.pack(dict.fromkeys(names, 1), lambda name: os.fsencode(name) if name != "empty" else b"", tmp_path, 10**6)
    found = shards.packed(str(tmp_path))
    assert sorted(found) == sorted(names)
    for name in names:
        assert shards.read(*shards.parts(found[name])) == (os.fsencode(name) if name != "empty" else b"")
    with pytest.raises(DataError, match="line break"):
        shards.pack({"a\nb": 1}, os.fsencode, tmp_path / "other", 10)


def test_every_format_reads_from_a_shard_as_from_a_file(tmp_path):
    folder, random = tmp_path / "loose", np.random.default_rng(1)
    folder.mkdir()
    disparity = random.uniform(1, 20, (24, 40)).astype(np.float32)
    image = random.integers(0, 255, (24, 40, 3), np.uint8)
    for suffix in ("png", "jpg", "tiff", "bmp", "webp"):
        cv2.imwrite(str(folder / f"image.{suffix}"), image)
    cv2.imwrite(str(folder / "deep.png"), image.astype(np.uint16) * 257)
    cv2.imwrite(str(folder / "mask.png"), (image[..., 0] > 99).astype(np.uint8) * 255)
    write_pfm(folder / "d.pfm", disparity)
    write_disparity_rgb(folder / "rgb.png", disparity)
    write_disparity_png16(folder / "u16.png", disparity)
    cv2.imwrite(str(folder / "u8.png"), (disparity * 4).astype(np.uint8))
    cv2.imwrite(str(folder / "d.tiff"), disparity)
    np.save(folder / "d.npy", disparity)
    np.savez(folder / "d.npz", disparity=disparity)
    files = shards.packed(str(pack(folder, tmp_path / "packed", 3000)))

    for name in ("image.png", "image.jpg", "image.tiff", "image.bmp", "image.webp", "deep.png"):
        assert np.array_equal(read_image(files[name]), read_image(folder / name)), name
    assert np.array_equal(read_mask(files["mask.png"]), read_mask(folder / "mask.png"))
    given = {"rgb.png": {"dataset_name": "FSD"}, "u16.png": {"dataset_name": "Kitti"}, "u8.png": {"scale": 4.0}}
    for name in ("d.pfm", "d.tiff", "d.npy", "d.npz", *given):
        read, wanted = (read_disparity(path, **given.get(name, {})) for path in (files[name], folder / name))
        assert np.array_equal(read[0], wanted[0]) and np.array_equal(read[1], wanted[1]), name
        assert np.abs(read[0] - disparity).max() < 0.3, name


def test_an_unchanged_list_with_the_packed_folder_as_its_root(loose, tmp_path):
    """In loader processes too, and below the packed folder as well as in it."""
    packed = pack(loose, tmp_path / "packed")
    datasets = []
    for root in (loose, packed):
        samples = read_annotations(tmp_path / "list.txt", root)
        check_files(samples)
        rels = relative_names(samples, [str(root)] * 6)
        assert rels == [f"left/{number} a" for number in range(6)]
        datasets.append(StereoDataset(samples, [SOURCE] * 6, rels))
    loader = DataLoader(datasets[1], batch_size=None, num_workers=2)
    for wanted, item in zip(datasets[0], loader, strict=True):
        assert all((item[name] == wanted[name]).all() for name in ("left", "right", "disparity", "valid"))
    write_annotations(tmp_path / "below.txt", [["0 a.png", "../right/0 a.png"]])
    (below,) = read_annotations(tmp_path / "below.txt", packed / "left")
    assert below.left == datasets[1].samples[0].left
    with pytest.raises(DataError, match=r"below.txt:1: no such right file"):
        check_files([below])


def test_a_missing_file_is_named_with_its_line(loose, tmp_path):
    (loose / "right/3 a.png").unlink()
    packed = pack(loose, tmp_path / "packed")
    with pytest.raises(DataError, match=r"list.txt:4: no such right file: .*packed/right/3 a.png"):
        check_files(read_annotations(tmp_path / "list.txt", packed))


def damaged(packed: Path, name: str, how: str) -> str:
    """Damage one file in its shard; returns its path there."""
    path = shards.packed(str(packed))[name]
    shard = Path(shards.parts(path)[0])
    with tarfile.open(shard, "r:") as tar:
        offset = tar.getmember(name).offset_data
    if how == "truncate":
        os.truncate(shard, offset + 10)
    else:
        with shard.open("r+b") as file:
            file.seek(offset + 100)
            file.write(b"\0\1\2\3\4\5")
    return path


@pytest.mark.parametrize("how, told", [("truncate", "the shard is truncated, 10 of"), ("flip", "the file is damaged")])
def test_damage_names_the_file_and_can_be_skipped(loose, tmp_path, how, told):
    packed = pack(loose, tmp_path / "packed", 10**9)
    path = damaged(packed, "right/5 a.png", how)
    samples = read_annotations(tmp_path / "list.txt", packed)
    dataset = StereoDataset(samples, [SOURCE] * 6, list("abcdef"))
    with pytest.raises(DataError, match=rf"list.txt:6: {path}: .*{told}"):
        dataset[5]
    assert dataset[4]["skipped"] == 0
    dataset.skip_unreadable = True
    item = dataset[5]
    assert item["skipped"] == 1 and told in item["unreadable"] and item["index"] != 5
    assert shards.fault(*shards.parts(path)) == ("the shard is truncated" if how == "truncate" else "")


def test_incomplete_and_mixed_packings_are_refused(loose, tmp_path):
    packed = pack(loose, tmp_path / "packed")
    index = sorted(packed.glob("*.index"))[1]
    kept = index.read_text()
    index.unlink()
    with pytest.raises(DataError, match=r"1 of \d+ shards are missing, the first one is number 1"):
        read_annotations(tmp_path / "list.txt", packed)
    index.write_text(kept.rsplit("\n", 2)[0] + "\n")
    with pytest.raises(DataError, match=f"{index.name}: the index is truncated"):
        read_annotations(tmp_path / "list.txt", packed)
    index.write_text(kept.replace("disparity/", "../disparity/"))
    with pytest.raises(DataError, match=f"{index.name}:2: expected 'offset size crc32 name'"):
        read_annotations(tmp_path / "list.txt", packed)
    index.write_text(kept)
    shutil.copy(index, packed / "shard-00000-of-00001.tar.index")
    with pytest.raises(DataError, match="shards of two packings"):
        read_annotations(tmp_path / "list.txt", packed)
    assert len(shards.packed(str(pack(loose, packed)))) == 24, "packing anew puts all in order"


def test_fetch_dataset_packs_a_folder_and_convert_lists_it(loose, tmp_path, capsys):
    packed, lists = str(tmp_path / "packed"), {}
    fetch = {"uri": str(loose), "mode": "pack", "results_dir": packed}
    assert perform("fetch_dataset", spec_from_dict("fetch_dataset", fetch)) == 0
    patterns = {"image_dir_pattern": ["left"], "right_dir_pattern": ["right"], "image_extension": ".png"}
    for root in (str(loose), packed):
        spec = patterns | {"data_root": root, "results_dir": f"{root}-lists", "relative_paths": True}
        assert perform("convert", spec_from_dict("convert", spec)) == 0
        lists[root] = Path(f"{root}-lists/test.txt").read_text()
    assert lists[packed] == lists[str(loose)] and lists[packed].count("\n") == 6
    spec = patterns | {"data_root": packed, "results_dir": str(tmp_path / "lists")}
    assert perform("convert", spec_from_dict("convert", spec)) == 2
    assert "is a packed folder: set relative_paths=true" in capsys.readouterr().err
    for wrong, told in (({"uri": packed, "results_dir": f"{packed}2"}, "already packed"),
                        ({"results_dir": f"{loose}/inside"}, "is inside")):  # fmt: skip
        assert perform("fetch_dataset", spec_from_dict("fetch_dataset", fetch | wrong)) == 2
        assert told in capsys.readouterr().err


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("0 9999999999999999 0 {}", "truncated, 1[0-9]* of the file's 9999999999999999 bytes"),
        ("9999999999999999999 4 0 {}", "truncated, 0 of"),
        ("9" * 5000 + " 4 0 {}", "expected 'offset size crc32 name'"),
        ("512 4 1", "expected 'offset size crc32 name'"),
        ("\u0663 4 0 {}", "expected 'offset size crc32 name'"),
    ],
)
def test_an_index_may_say_anything(tmp_path, line, told):
    """No number in it makes Python read, or ask for, more than is there."""
    (shard,) = shards.pack({"a": 4}, {"a": b"data"}.get, tmp_path, 100)
    Path(f"{shard}.index").write_text(f"# shard of 1 files: offset size crc32 name\n{line.format('a')}\n")
    with pytest.raises(DataError, match=told):
        shards.read(str(shard), "a")
