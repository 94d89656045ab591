"""What a URI may be; needs no server."""

import subprocess
import sys

import pytest

from stereo_core import storage
from stereo_core.errors import DataError
from stereo_core.run.staging import staged
from stereo_core.spec import spec_from_dict
from stereo_core.storage import local_path
from stereo_core.storage.client import ENDPOINTS


def test_parts_of_a_uri():
    assert storage.split("s3://bucket/a/b c.png") == ("bucket", "a/b c.png")
    assert storage.split("aws://bucket/folder/") == ("bucket", "folder")
    assert storage.split("minio://bucket") == ("bucket", "")


@pytest.mark.parametrize("uri", ["s3://", "s3:///key", "s3://b/a/../c", "s3://b//a", "s3://b/./a"])
def test_uris_that_no_path_can_stand_for(uri):
    with pytest.raises(DataError, match=r"the bucket is missing|empty part"):
        storage.split(uri)


@pytest.mark.parametrize("uri", ["s3://mykey:hu5h@bucket/x", "minio://hu5h@bucket", "aws://mykey:hu5/h@bucket/x"])
def test_a_secret_in_a_uri_is_refused_and_not_shown(uri, tmp_path, monkeypatch):
    monkeypatch.setenv("STEREO_CACHE", str(tmp_path))
    spec = spec_from_dict("export", {"export": {"checkpoint": uri, "onnx_file": "m.onnx"}})
    for refuse in (storage.split, local_path, lambda _: staged("export", spec).__enter__()):
        with pytest.raises(DataError, match="come from the environment") as told:
            refuse(uri)
        assert "mykey" not in str(told.value) and "hu5" not in str(told.value)


def test_minio_needs_a_server(monkeypatch):
    for name in ENDPOINTS:
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(DataError, match=r"address is unknown; set AWS_ENDPOINT_URL"):
        storage.look("minio://bucket/key")


@pytest.mark.parametrize("endpoint", ["127.0.0.1:9", "http://", "http://host/path", "http://key:secret@host"])
def test_endpoints_that_are_none(monkeypatch, endpoint):
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", endpoint)
    with pytest.raises(DataError, match="expected http://host:port") as told:
        storage.look("s3://bucket/key")
    assert "secret" not in str(told.value)


def test_the_client_is_imported_when_it_is_used():
    code = "import stereo_core.storage, sys; assert not {'minio', 'urllib3', 'rich'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
