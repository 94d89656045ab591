"""What a step leaves is whole, and its metadata say what it is."""

from __future__ import annotations

import errno
import json
import os

import pytest
import yaml
from messages import artifact, executor_input, item, last_status

from stereo_core.actions.report import read_figures, read_warnings
from stereo_core.errors import UserError
from stereo_core.files import sha256_of
from stereo_core.run.outcome import Outcome
from stereo_core.run.status import StatusLog
from stereo_core.step.launch import main
from stereo_core.step.ports import output_artifacts
from stereo_core.step.publish import Run, publish

PATTERNS = {"image_dir_pattern": ["left/rgb"], "right_dir_pattern": ["right/rgb"], "image_extension": ".png"}


def test_results_that_can_not_be_published_fail_the_run(images, tmp_path):
    """Exit 1, a FAILURE line, no executor_output.json."""
    text = executor_input(tmp_path, {"images": {"artifacts": [images]}}, ("annotations",), {"spec": PATTERNS})
    (tmp_path / "file").touch()
    message = json.loads(text)
    message["outputs"]["artifacts"]["annotations"]["artifacts"][0]["uri"] = str(tmp_path / "file" / "annotations")
    assert main(["convert", json.dumps(message)]) == 1
    assert not (tmp_path / "executor_output.json").exists()
    assert last_status(tmp_path)["status"] == "FAILURE"


def test_an_output_that_the_verb_does_not_have_is_refused_before_any_work(images, tmp_path, capsys):
    text = executor_input(tmp_path, {"images": {"artifacts": [images]}}, ("annotations", "onnx"), {"spec": PATTERNS})
    assert main(["convert", text]) == 2
    assert "convert: unknown output onnx; known: annotations" in capsys.readouterr().err
    assert not (tmp_path / "results").exists()


def test_an_output_that_the_run_did_not_make_is_named_and_none_is_published(tmp_path):
    """A dry run leaves no checkpoint; it ended in a bare KeyError."""
    outputs = {port: artifact(port, tmp_path / port) for port in ("metrics", "checkpoint")}
    run = Run("train", Outcome("Dry run finished"), tmp_path / "results", {})
    with pytest.raises(UserError, match=r"output checkpoint: this run of train wrote nothing .*\(Dry run.*is_dry_run"):
        publish(run, outputs)
    assert list(tmp_path.iterdir()) == []


def test_an_output_parameter_without_its_figure_is_named(images, tmp_path, capsys):
    """A figure of the run's is a parameter for the steps that follow."""
    message = json.loads(executor_input(tmp_path, {"images": {"artifacts": [images]}}, (), {"spec": PATTERNS}))
    message["outputs"]["parameters"] = {"epe": {"outputFile": str(tmp_path / "epe")}}
    assert main(["convert", json.dumps(message)]) == 2
    assert "output epe: this run has no metric of that name; it has " in last_status(tmp_path)["message"]
    assert not (tmp_path / "executor_output.json").exists()


def test_an_engine_travels_with_its_side_car(tmp_path):
    results = tmp_path / "results"
    results.mkdir()
    engine = results / "model.ort.onnx"
    engine.write_bytes(b"engine")
    side_car = results / "model.ort.onnx.json"
    side_car.write_text(json.dumps({"kind": "engine", "backend": "onnxruntime"}))
    (results / "status.json").touch()
    info = {"input_height": 128, "max_batch": None}
    outcome = Outcome("done", artifacts={"engine": engine}, metadata={"engine": info})
    for _ in range(2):  # the second time over what is there: a retry
        run = Run("gen_trt_engine", outcome, results, {})
        published = publish(run, {"engine": artifact("engine", tmp_path / "engine")})
    assert sorted(p.name for p in (tmp_path / "engine").iterdir()) == ["model.ort.onnx", "model.ort.onnx.json"]
    metadata = published["engine"]["artifacts"][0]["metadata"]
    assert metadata["format"] == "ort" and metadata["file"] == "model.ort.onnx" and metadata["input_height"] == 128
    assert metadata["sha256"] == sha256_of(engine) and "max_batch" not in metadata
    assert engine.is_file(), "the action's own files stay where they are"


def test_checkpoint_behind_a_symbolic_link_becomes_a_file(tmp_path):
    (tmp_path / "model_epoch_001_step_00010.pth").write_bytes(b"weights")
    latest = tmp_path / "dn_model_latest.pth"
    latest.symlink_to("model_epoch_001_step_00010.pth")
    outputs = {"checkpoint": artifact("checkpoint", tmp_path / "out" / "checkpoint")}
    publish(Run("train", Outcome("done", artifacts={"checkpoint": latest}), tmp_path, {}), outputs)
    file = tmp_path / "out" / "checkpoint" / "dn_model_latest.pth"
    assert file.is_file() and not file.is_symlink() and file.read_bytes() == b"weights"


def test_results_on_another_file_system_than_the_artifacts_are_copied(tmp_path, monkeypatch):
    """Object storage that is mounted has no hard links either."""

    def refused(source, target):
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refused)
    (tmp_path / "made").mkdir()
    (tmp_path / "made" / "0.png").write_bytes(b"px")
    outputs = {"images": artifact("images", tmp_path / "images")}
    outcome = Outcome("done", artifacts={"images": tmp_path / "made"})
    publish(Run("synthesize", outcome, tmp_path / "made", {}), outputs)
    assert (tmp_path / "images" / "0.png").read_bytes() == b"px"


def test_a_cut_off_publication_is_no_obstacle(tmp_path):
    """Containers give every attempt the same process id."""
    (tmp_path / f".images.{os.getpid()}").mkdir()
    (tmp_path / "made").mkdir()
    outcome = Outcome("done", artifacts={"images": tmp_path / "made"})
    outputs = {"images": artifact("images", tmp_path / "images")}
    publish(Run("synthesize", outcome, tmp_path / "made", {}), outputs)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images", "made"]


def test_metrics_metadata_is_strict_json(tmp_path):
    outputs = {"metrics": artifact("metrics", tmp_path / "metrics")}
    outcome = Outcome("done", kpi={"epe": 1.5, "d1": float("nan")})
    published = publish(Run("evaluate", outcome, tmp_path, {}), outputs)
    metadata = published["metrics"]["artifacts"][0]["metadata"]
    assert metadata["epe"] == 1.5 and metadata["d1"] == "nan"
    json.dumps(published, allow_nan=False)
    assert json.loads((tmp_path / "metrics").read_text()) == {"epe": 1.5, "d1": "nan"}


def test_page_and_figures_of_a_step_have_its_warnings(tmp_path):
    """`report` reads the figures of the steps before it, and their warnings there."""
    (tmp_path / "results").mkdir()
    StatusLog(tmp_path / "results").warning("images are scaled down")
    outputs = {port: artifact(port, tmp_path / port) for port in ("metrics", "report")}
    run = Run("trt_evaluate", Outcome("done", kpi={"epe": 1.5}), tmp_path / "results", {})
    metadata = publish(run, outputs)["metrics"]["artifacts"][0]["metadata"]
    assert "images are scaled down" in (tmp_path / "report").read_text()
    assert read_warnings(tmp_path / "metrics") == ["images are scaled down"]
    assert read_figures(tmp_path / "metrics") == {"epe": 1.5} and "warnings" not in metadata


def test_the_best_spec_is_what_the_user_said_with_the_best_values(tmp_path):
    """Paths of the searching task mean nothing elsewhere; the training's ports name the files again."""
    said = {"train": {"precision": "bf16", "optim": {"lr": 1e-4}}, "automl": {"algorithm": "asha"}}
    wired = tmp_path / "best_spec.yaml"
    wired.write_text("results_dir: /somewhere\n")
    outcome = Outcome(
        "done", artifacts={"best_spec": wired}, metadata={"best_spec": {"train.optim.lr": 3e-3, "model.corr_radius": 5}}
    )
    outputs = {"best_spec": artifact("best_spec", tmp_path / "out" / "best_spec", "spec")}
    published = publish(Run("automl", outcome, tmp_path, said), outputs)
    tree = yaml.safe_load((tmp_path / "out" / "best_spec").read_text())
    assert tree == {"train": {"precision": "bf16", "optim": {"lr": 3e-3}}, "model": {"corr_radius": 5}}
    metadata = published["best_spec"]["artifacts"][0]["metadata"]
    assert (metadata["kind"], metadata["format"], metadata["model.corr_radius"]) == ("spec", "yaml", 5)


def test_an_engine_of_a_backend_that_is_not_known_has_its_file_s_format(tmp_path):
    engine = tmp_path / "results" / "model.new"
    engine.parent.mkdir()
    engine.write_bytes(b"engine")
    engine.with_name("model.new.json").write_text('{"kind": "engine", "backend": "of tomorrow"}')
    run = Run("gen_trt_engine", Outcome("done", artifacts={"engine": engine}), engine.parent, {})
    published = publish(run, {"engine": artifact("engine", tmp_path / "engine")})
    assert published["engine"]["artifacts"][0]["metadata"]["format"] == "new"


def test_an_artifact_keeps_its_type_and_a_spec_its_digest_in_any_order(tmp_path):
    message = {"artifacts": {"metrics": item(tmp_path / "metrics")}, "outputFile": "/o"}
    digests = []
    for spec in ({"a": 1, "b": {"c": 2, "d": 3}}, {"b": {"d": 3, "c": 2}, "a": 1}):
        outputs = output_artifacts("evaluate", message)
        published = publish(Run("evaluate", Outcome("done", kpi={"epe": 1.5}), tmp_path, spec), outputs)
        [made] = published["metrics"]["artifacts"]
        assert made["type"] == {"schemaTitle": "x"}
        digests.append(made["metadata"]["spec_sha256"])
    assert digests[0] == digests[1]
