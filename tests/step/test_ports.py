"""Wrong and missing artifacts end a step before any work."""

from __future__ import annotations

from pathlib import Path

import pytest
from messages import executor_input, item

from stereo_core.errors import DataError
from stereo_core.step.launch import main
from stereo_core.step.ports import ENGINE_FORMATS, Artifact, check_artifact, input_artifacts
from stereo_core.storage import local_path


@pytest.mark.parametrize(
    ("action", "port", "metadata", "message"),
    [
        ("export", "spec_file", {"kind": "metrics"}, "expected 'spec'"),
        ("gen_trt_engine", "onnx", {"kind": "engine"}, "expected 'onnx'"),
        ("trt_evaluate", "engine", {"kind": "onnx", "format": "onnx"}, "expected 'engine'"),
        ("export", "checkpoint", {"kind": "checkpoint", "format": "tlt"}, "expected pth or safetensors"),
        ("convert", "images", {"kind": "annotations"}, "expected 'images'"),
        ("export", "checkpoint", {"kind": "checkpoint", "sha256": "0" * 64}, "changed since its step wrote it"),
        ("publish_model", "model", {"kind": "metrics"}, "expected 'checkpoint' or 'onnx' or 'engine'"),
    ],
)
def test_wrong_input_is_refused_before_any_work(tmp_path, capsys, action, port, metadata, message):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "model.pth").write_bytes(b"x")
    text = executor_input(tmp_path, {port: item(tmp_path / "in", **metadata)}, ())
    assert main([action, text]) == 2
    error = capsys.readouterr().err
    assert message in error and f"input {port}" in error
    assert not (tmp_path / "results").exists() and not (tmp_path / "executor_output.json").exists()


@pytest.mark.parametrize("port", ["engine", "model"])
@pytest.mark.parametrize("form", ENGINE_FORMATS.values())
def test_an_engine_of_every_backend_is_taken(tmp_path, port, form):
    check_artifact(Artifact(port, port, tmp_path, metadata={"kind": "engine", "format": form}))


def test_absent_input_and_bad_command_lines(tmp_path, capsys):
    assert main(["convert", executor_input(tmp_path, {"images": item(tmp_path / "gone")}, ())]) == 2
    assert "gone" in capsys.readouterr().err
    for argv in ([], ["convert"], ["nonsense", "{}"], ["convert", "{"], ["convert", "{}"]):
        assert main(argv) == 2
        assert "error" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("action", "missing"),
    [
        ("convert", "images"),
        ("automl", "annotations, images"),
        ("trt_evaluate", "annotations, engine, images"),
        ("quantize", "annotations, checkpoint or onnx, images"),
    ],
)
def test_a_port_without_an_artifact_is_named(tmp_path, capsys, action, missing):
    assert main([action, executor_input(tmp_path, {}, ())]) == 2
    assert capsys.readouterr().err.strip().endswith(f"input {missing}; connect one")


def test_a_name_longer_than_a_file_s_may_be_is_of_no_input(tmp_path, capsys):
    long = "x" * 300
    (tmp_path / "lists").mkdir()
    data = {"images": item(tmp_path), "annotations": item(tmp_path / "lists")}
    spec = {"dataset": {"train_dataset": {"data_sources": [{"data_file": long}]}}}
    for action, inputs, parameters, told in (
        ("export", {"checkpoint": item(tmp_path / long)}, {}, "does not exist"),
        ("export", {"checkpoint": item(tmp_path, file=long)}, {}, f"has no file {long}"),
        ("train", data, {"spec": spec}, "no such annotation file"),
    ):
        assert main([action, executor_input(tmp_path, inputs, (), parameters)]) == 2
        assert told in (error := capsys.readouterr().err) and long in error


def test_an_input_that_the_verb_does_not_have_is_refused(tmp_path, capsys):
    """It was left unread: a task with a name mistyped ran without its optional input."""
    assert main(["train", executor_input(tmp_path, {"chekpoint": item(tmp_path)}, ())]) == 2
    assert "train: unknown input chekpoint; known: " in capsys.readouterr().err


def test_remote_artifacts_are_where_kfp_puts_them():
    assert local_path("s3://bucket/a/b") == Path("/s3/bucket/a/b")
    assert local_path("aws://bucket/a") == Path("/s3/bucket/a")
    assert local_path("gs://bucket/a") == Path("/gcs/bucket/a")
    assert local_path("minio://mlpipeline/v2/x") == Path("/minio/mlpipeline/v2/x")
    assert local_path("/data/x") == Path("/data/x")
    with pytest.raises(DataError, match="ftp"):
        local_path("ftp://host/x")


def test_an_artifact_with_a_path_of_its_own_is_there():
    item = {"uri": "s3://bucket/a", "customPath": "/mnt/a"}
    found = input_artifacts("export", {"artifacts": {"checkpoint": {"artifacts": [item]}}})
    assert found["checkpoint"].path == Path("/mnt/a")


@pytest.mark.parametrize(
    ("message", "told"),
    [
        ("[]", "the message: expected a mapping, got []"),
        ('{"outputs": {}}', "outputFile is missing"),
        ('{"outputs": {"outputFile": 5}}', "outputFile: expected text, got 5"),
        ('{"inputs": {"artifacts": {"images": []}}}', "artifacts.images: expected a mapping"),
        ('{"inputs": {"artifacts": {"images": {"artifacts": [7]}}}}', "artifact of images: expected a mapping, got 7"),
        ('{"inputs": {"artifacts": {"images": {"artifacts": [{"uri": {}}]}}}}', "uri: expected text, got {}"),
        ('{"outputs": {"outputFile": "/o", "parameters": {"epe": {}}}}', "outputFile is missing"),
    ],
)
def test_what_is_no_message_is_refused_by_its_place(capsys, message, told):
    """An output parameter's, too, which is written after the work."""
    assert main(["convert", message]) == 2
    error = capsys.readouterr().err
    assert "EXECUTOR_INPUT_JSON: not a valid ExecutorInput message" in error and told in error
