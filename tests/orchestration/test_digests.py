"""Digests of imported data are those of the content, and are not computed again for files that did not change."""

import json
import os

import pytest

from stereo_core.files import sha256_of
from stereo_core.orchestration.dag import GraphError
from stereo_core.orchestration.digests import Digests


def write(path, text: str, age: float = 100.0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    stamp = path.stat().st_mtime - age
    os.utime(path, (stamp, stamp))


def test_files_that_did_not_change_are_not_read_again(tmp_path):
    data, memory = tmp_path / "data", tmp_path / "digests.json"
    write(data / "a/1.png", "one", 100)
    write(data / "2.png", "two", 200)
    first = Digests(memory).sha256_of(data)
    assert first == sha256_of(data)

    known = json.loads(memory.read_text())
    assert set(known) == {str(data / "a/1.png"), str(data / "2.png")}
    known[str(data / "2.png")][2] = "0" * 64  # what is remembered is what counts: the file is not read
    memory.write_text(json.dumps(known))
    assert Digests(memory).sha256_of(data) != first
    assert Digests(memory).sha256_of(data / "2.png") == "0" * 64

    write(data / "2.png", "TWO", 300)
    assert Digests(memory).sha256_of(data) == sha256_of(data) != first


def test_a_file_written_just_now_is_not_remembered(tmp_path):
    """A second change within the clock's grain would leave size and time as they are."""
    write(tmp_path / "new", "text", 0)
    assert Digests(tmp_path / "digests.json").sha256_of(tmp_path / "new") == sha256_of(tmp_path / "new")
    assert json.loads((tmp_path / "digests.json").read_text()) == {}


def test_a_damaged_memory_is_named(tmp_path):
    (tmp_path / "digests.json").write_text("{")
    with pytest.raises(GraphError, match=r"digests\.json.*remove the file"):
        Digests(tmp_path / "digests.json")
