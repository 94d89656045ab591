"""Wrong and missing artifacts end a step before any work."""

from __future__ import annotations

from pathlib import Path

import pytest
from messages import executor_input, item

from stereo_core.errors import DataError
from stereo_core.step.launch import main
from stereo_core.storage import local_path


@pytest.mark.parametrize(
    ("action", "port", "metadata", "message"),
    [
        ("export", "spec_file", {"kind": "metrics"}, "'spec' is wanted"),
        ("gen_trt_engine", "onnx", {"kind": "engine"}, "'onnx' is wanted"),
        ("trt_evaluate", "engine", {"kind": "onnx", "format": "onnx"}, "'engine' is wanted"),
        ("export", "checkpoint", {"kind": "checkpoint", "format": "tlt"}, "pth or safetensors is wanted"),
        ("convert", "images", {"kind": "annotations"}, "'images' is wanted"),
        ("export", "checkpoint", {"kind": "checkpoint", "sha256": "0" * 64}, "changed since it was made"),
        ("publish_model", "model", {"kind": "metrics"}, "'checkpoint' or 'onnx' or 'engine' is wanted"),
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
    assert capsys.readouterr().err.strip().endswith(f"input {missing}")


def test_remote_artifacts_are_where_kfp_puts_them():
    assert local_path("s3://bucket/a/b") == Path("/s3/bucket/a/b")
    assert local_path("aws://bucket/a") == Path("/s3/bucket/a")
    assert local_path("gs://bucket/a") == Path("/gcs/bucket/a")
    assert local_path("minio://mlpipeline/v2/x") == Path("/minio/mlpipeline/v2/x")
    assert local_path("/data/x") == Path("/data/x")
    with pytest.raises(DataError, match="ftp"):
        local_path("ftp://host/x")


@pytest.mark.parametrize(
    ("message", "told"),
    [
        ("[]", "the whole: a mapping is wanted, not []"),
        ('{"outputs": {}}', "an outputFile is missing"),
        ('{"outputs": {"outputFile": 5}}', "outputFile: text is wanted, not 5"),
        ('{"inputs": {"artifacts": {"images": []}}}', "artifacts.images: a mapping is wanted"),
        ('{"inputs": {"artifacts": {"images": {"artifacts": [7]}}}}', "artifact of images: a mapping is wanted, not 7"),
        ('{"inputs": {"artifacts": {"images": {"artifacts": [{"uri": {}}]}}}}', "uri: text is wanted, not {}"),
        ('{"outputs": {"outputFile": "/o", "parameters": {"epe": {}}}}', "an outputFile is missing"),
    ],
)
def test_what_is_no_message_is_refused_by_its_place(capsys, message, told):
    """An output parameter's, too, which is written after the work."""
    assert main(["convert", message]) == 2
    error = capsys.readouterr().err
    assert "EXECUTOR_INPUT_JSON is no ExecutorInput message" in error and told in error
