"""Faults of the storage and of the way to it: nothing lost, nothing partial (`bed` checks), then it goes well."""

from __future__ import annotations

import time

import pytest
from objects import NEW, OLD, REFUSALS, stored

from stereo_core import storage
from stereo_core.errors import DataError
from stereo_core.storage import StorageError

pytestmark = [pytest.mark.service, pytest.mark.timeout(120)]


def test_no_server(bed):
    bed.patch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    bed.fails(StorageError, "cannot be reached", bed.get, bed.put)


def test_slow_server(bed):
    """One that takes longer than it may be silent, in pieces."""
    bed.patience(silence=1.5, pauses=())
    bed.look()
    bed.proxy.pause, begin = 0.05, time.monotonic()
    assert storage.read(bed.uri) == OLD
    assert time.monotonic() - begin > 2 * 1.5


def test_silent_server(bed):
    bed.patience(silence=0.3)
    bed.look()
    bed.proxy.pause = 2
    bed.fails(StorageError, "cannot be reached or gave no valid answer", lambda: storage.fetch(bed.uri))


def test_download_that_breaks_off_once(bed):
    bed.look()
    bed.proxy.passed, bed.proxy.cuts = 0, [2**20, 2**19]
    assert storage.read(bed.uri) == OLD
    assert not bed.proxy.cuts and bed.proxy.passed < 8 * 2**20, "what had arrived was not asked for again"


def test_download_that_always_breaks_off(bed):
    bed.look()
    bed.proxy.cuts = [65536] * 40
    bed.fails(StorageError, "cannot be reached or gave no valid answer", lambda: storage.fetch(bed.uri))


def test_upload_that_is_never_answered(bed):
    bed.proxy.answers = [None, None] + [b""] * 40
    bed.fails(StorageError, "cannot be reached or gave no valid answer", bed.put)
    assert stored(bed.server, bed.key) == OLD


def test_upload_that_breaks_off_once(bed):
    bed.proxy.answers = [None, None, b""]
    bed.put()
    assert stored(bed.server, bed.key) == NEW


def test_upload_whose_first_or_last_request_fails_once(bed):
    """One to begin it, four parts, one to end it."""
    for before, refusal in ((0, "busy"), (5, "none"), (5, "many")):
        bed.proxy.answers = [None] * before + [REFUSALS[refusal]]
        bed.put()
        assert bed.proxy.answers == [] and stored(bed.server, bed.key) == NEW


def test_upload_whose_last_answer_is_lost(bed):
    """To the second asking AWS says that there is no such upload; this server does not."""
    bed.proxy.losing, bed.proxy.answers = 1, [None] * 5 + [REFUSALS["over"]]
    bed.put()
    assert bed.proxy.losing == 0 and bed.proxy.answers == [] and stored(bed.server, bed.key) == NEW


def test_busy_for_a_moment(bed):
    bed.proxy.answers = [REFUSALS["busy"]]
    assert bed.get() == OLD


def test_busy_for_good(bed):
    bed.proxy.answers = [REFUSALS["busy"]] * 40
    bed.fails(StorageError, "cannot be reached or gave no valid answer", bed.get, bed.put)


def test_server_error_in_the_middle_of_an_upload(bed):
    bed.proxy.answers = [None, None, REFUSALS["broken"]]
    bed.put()
    assert stored(bed.server, bed.key) == NEW


def test_token_that_expires_in_the_middle_of_a_get(bed):
    bed.look()
    bed.proxy.answers = [None, REFUSALS["expired"]]
    bed.fails(DataError, "access denied .ExpiredToken", lambda: storage.fetch(bed.uri))


def test_token_that_expires_in_the_middle_of_a_put(bed):
    bed.proxy.answers = [None, None, REFUSALS["expired"]]
    bed.fails(DataError, "access denied .ExpiredToken", bed.put)
    assert stored(bed.server, bed.key) == OLD
