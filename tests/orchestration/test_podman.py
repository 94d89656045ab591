"""The command line of a step's container; tests/images run them."""

import pytest
from small_ir import container, pipeline

from stereo_core.orchestration.graph import load_pipeline
from stereo_core.orchestration.podman import Containers


@pytest.mark.usefixtures("fake_podman")
@pytest.mark.parametrize(("uri", "seen"), [("s3://bucket/x", True), ("/data/x", False)])
def test_a_container_that_reads_storage_sees_the_files_of_credentials(compiled, tmp_path, monkeypatch, uri, seen):
    task = load_pipeline(compiled(pipeline({"a": container("", ())}))).tasks["a"]
    token, place = tmp_path / "token", tmp_path / "run/tasks/a"
    place.mkdir(parents=True)
    token.touch()
    monkeypatch.setenv("AWS_WEB_IDENTITY_TOKEN_FILE", str(token))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    message = {"inputs": {"parameterValues": {"uri": uri}, "artifacts": {}}}
    with Containers("podman").container(task, ["true"], place, message, []) as line:
        assert (f"--mount=type=bind,src={token},dst={token},ro" in line) == seen
        assert (f"--env=AWS_WEB_IDENTITY_TOKEN_FILE={token}" in line) == seen
        assert not [part for part in line if f"src={tmp_path / 'none'}" in part]
