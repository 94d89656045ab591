"""Objects that change, and files that are damaged: nothing lost, nothing partial (`bed` checks), then it goes well."""

from __future__ import annotations

import hashlib
import os

import pytest
from objects import NEW, OLD, put

from stereo_core import storage
from stereo_core.storage import StorageError

pytestmark = [pytest.mark.service, pytest.mark.timeout(120)]


def test_object_that_changes_in_the_middle_of_a_run(bed):
    bed.look()
    put(bed.server, bed.key, NEW)
    bed.fails(StorageError, "changed during the run", lambda: storage.fetch(bed.uri))


def test_object_that_changes_between_two_runs(bed):
    assert bed.get() == OLD
    put(bed.server, bed.key, NEW)
    assert bed.get() == NEW


def test_object_that_is_not_what_was_stored(bed):
    uri = put(bed.server, f"{bed.key}-wrong", b"damaged", metadata={"sha256": hashlib.sha256(b"genuine").hexdigest()})
    bed.fails(StorageError, "checksum does not match", lambda: storage.fetch(uri))


def test_bits_that_flip_on_the_way(bed):
    """Of an object that another program stored: its MD5 tells."""
    pwrite = os.pwrite
    bed.patch.setattr(os, "pwrite", lambda file, data, start: pwrite(file, b"1" + data[1:], start))
    uri = put(bed.server, f"{bed.key}-bits", b"0" * 100)
    bed.fails(StorageError, "checksum does not match", lambda: storage.fetch(uri))
    bed.patch.setattr(os, "pwrite", pwrite)


def test_truncated_file_in_the_cache(bed):
    bed.look()
    os.truncate(storage.fetch(bed.uri), 4)
    assert bed.get() == OLD


def test_cache_that_another_program_writes_to(bed):
    bed.look()
    path = storage.fetch_to(bed.uri, bed.tmp_path / "mine")
    with path.open("r+b") as file:
        file.write(b"changed")
    assert bed.get() == OLD
