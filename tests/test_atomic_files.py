from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from stereo_core.files import UniqueNames, atomic_path, flat_name


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
    assert flat_name("a/b c/left.v1") == "a_b c_left.v1"
    name = flat_name("写真/" * 60 + "left")
    assert name.endswith("写真_left")
    with atomic_path(tmp_path / f"{name}.png") as temporary:
        temporary.write_text("whole")
    assert (tmp_path / f"{name}.png").is_file()


def test_names_never_collide():
    names = UniqueNames()
    assert [names(n) for n in ("a", "b", "a", "a-2", "a")] == ["a", "b", "a-2", "a-2-2", "a-3"]


def test_a_full_disk_is_said_with_the_file(tmp_path):
    """`[Errno 28] No space left on device` alone leaves open which disk."""
    path = tmp_path / "cloud.ply"
    said = pytest.raises(OSError, match=r"No space left on device: '.*cloud\.ply'")
    with said, atomic_path(path), Path("/dev/full").open("wb", buffering=0) as full:
        full.write(b"x")
