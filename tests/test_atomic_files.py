from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from stereo_core.files import UniqueNames, atomic_path, flat_names, sha256_of, stems


@pytest.fixture
def umask():
    before = os.umask(0o027)
    yield
    os.umask(before)


def test_a_file_is_whole_or_absent(tmp_path):
    path = tmp_path / "new" / "model.pth"
    with pytest.raises(RuntimeError), atomic_path(path) as temporary:
        temporary.write_bytes(b"half")
        assert temporary.suffix == ".pth" and not path.exists()
        raise RuntimeError
    assert list(path.parent.iterdir()) == []
    with atomic_path(path) as temporary:
        temporary.write_bytes(b"whole")
    assert [(p, p.read_bytes()) for p in path.parent.iterdir()] == [(path, b"whole")]


def test_the_rights_are_those_of_any_file_and_no_other_thread_sees_the_mask_change(tmp_path, umask, monkeypatch):
    monkeypatch.setattr(os, "umask", lambda mask: pytest.fail("the mask is the process's, not this thread's"))
    with atomic_path(tmp_path / "file") as temporary:
        temporary.write_bytes(b"x")
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o640


def test_the_name_of_a_deep_path_fits_a_file_system(tmp_path):
    """Of 255 bytes; a letter may take three."""
    [short, name] = flat_names(["a/b c/left.v1", "写真/" * 60 + "left"])
    assert short == "a_b c_left.v1"
    assert name.endswith("写真_left")
    with atomic_path(tmp_path / f"{name}.png") as temporary:
        temporary.write_text("whole")
    assert (tmp_path / f"{name}.png").is_file()


def test_a_name_that_is_no_utf_8_is_kept():
    names = [os.fsdecode(b"a/l\xe9"), os.fsdecode(b"a/" + b"x" * 300 + b"\xe9")]
    found = [os.fsencode(name) for name in flat_names(names)]
    assert found[0] == b"a_l\xe9" and found[1] == b"x" * 199 + b"\xe9"


def test_a_folder_with_a_name_that_is_no_utf_8_has_a_digest(tmp_path):
    empty = sha256_of(tmp_path)
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xe9")).touch()
    assert sha256_of(tmp_path) != empty


def test_a_picture_s_name_does_not_depend_on_the_order_of_the_pairs():
    """The second of two that flatten alike was `a_b-2`, so that a shuffled list changed what `a_b.png` shows."""
    rels = ["a/b", "a_b", "c/d", "long/" * 60 + "e", "longer/" + "long/" * 60 + "e"]
    named = dict(zip(rels, flat_names(rels), strict=True))
    assert named["c/d"] == "c_d" and len(set(named.values())) == 5
    assert all(named[rel].startswith("a_b-") for rel in ("a/b", "a_b"))
    assert dict(zip(rels[::-1], flat_names(rels[::-1]), strict=True)) == named


def test_files_that_differ_in_their_suffix_alone_keep_it():
    files = ["x/a.png", "x/a.jpg", "x/b.png"]
    assert stems(files, files) == ["x/a_png", "x/a_jpg", "x/b"]


def test_names_never_collide():
    names = UniqueNames()
    assert [names(n) for n in ("a", "b", "a", "a-2", "a")] == ["a", "b", "a-2", "a-2-2", "a-3"]


def test_a_full_disk_is_said_with_the_file(tmp_path):
    """`[Errno 28] No space left on device` alone leaves open which disk."""
    path = tmp_path / "cloud.ply"
    said = pytest.raises(OSError, match=r"No space left on device: '.*cloud\.ply'")
    with said, atomic_path(path), Path("/dev/full").open("wb", buffering=0) as full:
        full.write(b"x")
