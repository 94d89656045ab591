"""Rights and names that are wrong: nothing lost, nothing partial (`bed` checks), then it goes well."""

from __future__ import annotations

import pytest
from objects import OLD, REFUSALS, answer, stored, written

from stereo_core import storage
from stereo_core.errors import DataError

pytestmark = [pytest.mark.service, pytest.mark.timeout(120)]


def test_wrong_secret(bed):
    bed.credentials("K", "not-this-one")
    bed.fails(DataError, "access denied", bed.get, bed.put, lambda: storage.children("s3://artifacts"))


def test_unknown_key(bed):
    bed.credentials("unknown-one", "S")
    bed.fails(DataError, "access denied", bed.get, bed.put)


def test_read_only_key(bed):
    bed.credentials("RK", "RS")
    assert bed.get() == OLD
    bed.fails(DataError, "access denied", bed.put, lambda: storage.remove(bed.uri))
    assert stored(bed.server, bed.key) == OLD


def test_no_credentials(bed):
    bed.patch.setenv("HOME", str(bed.tmp_path))
    bed.patience(instance=0.1)
    bed.credentials("", "")
    bed.fails(DataError, "no credentials found", bed.get)


def test_missing_bucket(bed):
    bed.fails(DataError, "s3://nowhere/x: no such bucket", lambda: storage.fetch("s3://nowhere/x"))
    bed.proxy.answers = [REFUSALS["nowhere"]]  # this server would make the bucket
    bed.fails(DataError, "s3://nowhere/x: no such bucket", lambda: storage.upload(bed.file, "s3://nowhere/x"))
    bed.fails(DataError, "s3://nowhere: no such bucket", lambda: storage.children("s3://nowhere"))


def test_missing_object(bed):
    bed.fails(DataError, "s3://artifacts/none: no such object", lambda: storage.fetch("s3://artifacts/none"))
    bed.fails(DataError, "no object below this prefix", lambda: storage.fetch_tree(f"{bed.uri}/none", bed.tmp_path))


def test_odd_characters_in_a_key(bed):
    for number, name in enumerate(("ä ö/ü#1 %41+?&=.png", "a'b\"c;$(x)d", "~/-_.!*()", "日本/左.pfm")):
        data = f"data {number}".encode()
        bed.others.append(data)
        storage.upload(written(bed.tmp_path / "small", data), f"{bed.uri}-odd/{name}")
        assert storage.read(f"{bed.uri}-odd/{name}") == data
        assert name in storage.children(f"{bed.uri}-odd", recursive=True)


def test_keys_that_lead_out_of_the_folder(bed):
    item = (
        "<Contents><Key>tree/{}</Key><LastModified>2026-01-01T00:00:00.000Z</LastModified><ETag>x</ETag><Size>1</Size>"
    )
    for name in ("../../escaped", "a/../../escaped", "/escaped"):
        listing = f"<Name>artifacts</Name>{item.format(name)}</Contents><IsTruncated>false</IsTruncated>"
        xml = f'<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">{listing}</ListBucketResult>'
        bed.proxy.answers = [answer("200 OK", xml)]
        into = bed.tmp_path / "in/tree"
        bed.fails(
            DataError, "the key has an empty part, . or ..", lambda i=into: storage.fetch_tree("s3://artifacts/tree", i)
        )
        assert not list(bed.tmp_path.rglob("escaped"))
