"""publish_model: whole or not at all, never over another model unless told, and not worse than the one before."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from stereo_core.actions import publish_model
from stereo_core.errors import SpecError
from stereo_core.files import sha256_of
from stereo_core.models import create_model
from stereo_core.models.checkpoints import save_checkpoint
from stereo_core.run.perform import perform
from stereo_core.spec import spec_from_dict


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """A checkpoint of the tiny network with a note beside it."""
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    save_checkpoint(create_model(preset="tiny"), folder / "night.pth")
    (folder / "night.pth.json").write_text("{}")
    (folder / "other.pth").write_bytes(b"")
    return folder / "night.pth"


@pytest.fixture
def publish(model, tmp_path):
    """Publish the model with an epe (none: without metrics) at tmp_path/place; returns the exit code."""

    def run(epe: float | None = None, **keys) -> int:
        metrics = tmp_path / "metrics.json"
        metrics.write_text(json.dumps({"epe": epe, "bp1": 0.25}))
        spec = {"model_path": str(model), "uri": str(tmp_path / "place"), "results_dir": str(tmp_path / "results")}
        spec |= {"metrics_path": str(metrics)} if epe is not None else {}
        return perform("publish_model", spec_from_dict("publish_model", spec | keys))

    return run


def note(place: Path) -> dict:
    return json.loads((place / "published.json").read_text())


def test_what_lies_there(publish, model, tmp_path):
    assert publish(epe=1.5, title="Night | v1") == 0
    place, said = tmp_path / "place", note(tmp_path / "place")
    (folder,) = [path for path in place.iterdir() if path.is_dir()]
    assert folder.name == said["version"] and (said["file"], said["kind"]) == ("night.pth", "checkpoint")
    assert {file.name for file in folder.iterdir()} == {"night.pth", "night.pth.json", "metrics.json", "README.md"}
    assert said["sha256"] == {file.name: sha256_of(file) for file in folder.iterdir()}
    assert said["sha256"]["night.pth"] == sha256_of(model) and said["metrics"] == {"epe": 1.5, "bp1": 0.25}
    card = (folder / "README.md").read_text()
    assert (
        card.startswith("# Night | v1\n")
        and "| EPE (px) | 1.500 | epe |" in card
        and "| BP-1 (%) | 25.00 | bp1 |" in card
        and "| encoder | vitt |" in card
    )
    assert str(tmp_path) not in card and str(model.parent) not in card, "no path of the machine that published it"


def test_another_model_is_not_overwritten_unless_told(publish, tmp_path, capfd):
    assert publish(epe=1.5) == 0
    first = note(tmp_path / "place")
    assert publish(epe=1.5) == 0, "another attempt ends where the first did"
    assert note(tmp_path / "place") == first
    assert publish(epe=1.0) == 2
    assert "existing=replace" in capfd.readouterr().err and note(tmp_path / "place") == first
    assert publish(epe=1.0, existing="replace") == 0
    assert note(tmp_path / "place")["metrics"]["epe"] == 1.0
    assert (tmp_path / "place" / first["version"] / "night.pth").is_file(), "the one before stays, to go back to"


def test_a_worse_model_fails_and_the_last_good_stays(publish, tmp_path, capfd, monkeypatch):
    log = tmp_path / "termination-log"
    log.touch()
    monkeypatch.setenv("STEREO_TERMINATION_LOG", str(log))
    compare = {"existing": "compare", "max_epe_increase": 0.1}
    assert publish(epe=1.0, **compare) == 0, "nothing to compare with: the first is published"
    assert publish(epe=1.05, **compare) == 0
    good = note(tmp_path / "place")
    card = (tmp_path / "place" / good["version"] / "README.md").read_text()
    assert "| EPE (px) | 1.050 | 1.000 | epe |" in card and "| EPE (px) | -0.050 |" in card
    assert publish(epe=1.2, **compare) == 1
    assert "0.1500 px above" in capfd.readouterr().err and "failure" in log.read_text()
    assert publish(epe=float("nan"), **compare) in (1, 2)
    assert publish(**compare) == 2, "without figures there is nothing to compare"
    assert note(tmp_path / "place") == good


def test_cut_off_before_the_note_the_one_before_counts(publish, tmp_path, monkeypatch):
    assert publish(epe=1.5) == 0
    first, put = note(tmp_path / "place"), publish_model._copy

    def break_off(file, uri, digest):
        if uri.endswith("README.md"):
            raise OSError("the disk is full")
        put(file, uri, digest)

    monkeypatch.setattr(publish_model, "_copy", break_off)
    assert publish(epe=1.0, existing="replace") == 1
    assert note(tmp_path / "place") == first
    monkeypatch.undo()
    assert publish(epe=1.0, existing="replace") == 0 and note(tmp_path / "place") != first


def test_what_is_no_model_is_refused(publish, model, tmp_path, capfd):
    (tmp_path / "x.pth").write_bytes(b"no model")
    assert publish(model_path=str(tmp_path / "x.pth")) == 2
    assert "nor a checkpoint" in capfd.readouterr().err and not (tmp_path / "place").exists()


@pytest.mark.parametrize("uri", ["gs://models/night", "file:///models", "https://models.example/night"])
def test_a_place_that_cannot_be_written_is_no_folder_of_that_name(publish, uri, tmp_path, monkeypatch):
    """Else the model would lie in ./gs:/models/night, and the run would end in PASS."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SpecError, match=f"uri: {uri}: this kind of URI is not supported; use a folder, or a URI that"):
        publish(uri=uri)


def test_figures_of_another_engine_are_not_published(publish, tmp_path, capfd):
    """They would stand on the model's card, and decide with existing=compare."""
    metrics = tmp_path / "results.json"
    metrics.write_text(json.dumps({"epe": 1.0, "settings": {"engine": "other.engine", "sha256": "c0ffee" * 3}}))
    assert publish(metrics_path=str(metrics)) == 2
    assert "figures of another engine (its SHA-256 begins with c0ffeec0ffee" in capfd.readouterr().err
    assert not (tmp_path / "place").exists()


def settings_with(tmp_path, **settings) -> str:
    """The path of a results.json with these settings."""
    (tmp_path / "results.json").write_text(json.dumps({"epe": 1.0, "settings": settings}))
    return str(tmp_path / "results.json")


def said(tmp_path) -> str:
    return (tmp_path / "results" / "status.json").read_text()


def test_figures_of_another_checkpoint_are_not_published(publish, model, tmp_path, capfd):
    assert publish(metrics_path=settings_with(tmp_path, checkpoint="x.pth", sha256="c0ffee" * 3)) == 2
    assert "figures of another checkpoint (its SHA-256 begins with c0ffeec0ffee" in capfd.readouterr().err
    assert publish(metrics_path=settings_with(tmp_path, checkpoint="x.pth", sha256=sha256_of(model))) == 0
    assert "nothing says" not in said(tmp_path)


def test_figures_that_name_no_model_are_published_with_a_warning(publish, tmp_path):
    assert publish(metrics_path=settings_with(tmp_path, checkpoint="x.pth")) == 0
    assert "nothing says whether these are the figures of" in said(tmp_path)


def test_an_onnx_file_has_the_figures_of_its_checkpoint_and_of_its_engines(publish, model, tmp_path, capfd):
    file = tmp_path / "night.onnx"
    keys = {"checkpoint": str(model), "onnx_file": str(file), "input_height": 64, "input_width": 96, "check": False}
    spec = {"export": keys, "model": {"valid_iters": 1}, "results_dir": str(tmp_path / "export")}
    assert perform("export", spec_from_dict("export", spec)) == 0
    of_it = [{"sha256": sha256_of(model)}, {"engine": "e", "sha256": "beef", "onnx_sha256": sha256_of(file)}]
    for settings in of_it:
        assert publish(model_path=str(file), metrics_path=settings_with(tmp_path, **settings), existing="replace") == 0
        assert "nothing says" not in said(tmp_path)
    for settings in ({"sha256": "c0ffee"}, {"engine": "e", "sha256": "beef", "onnx_sha256": "c0ffee"}):
        capfd.readouterr()
        assert publish(model_path=str(file), metrics_path=settings_with(tmp_path, **settings), existing="replace") == 2
        assert "evaluate the checkpoint that it was exported from, or an engine that" in capfd.readouterr().err


def test_a_checkpoint_is_named_as_elsewhere(publish, model, tmp_path):
    """The message about a folder advises it."""
    run = tmp_path / "run"
    run.mkdir()
    (run / "model_epoch_000_step_00003.pth").write_bytes(model.read_bytes())
    (run / "dn_model_best.pth").symlink_to("model_epoch_000_step_00003.pth")
    assert publish(model_path=f"{run}@best") == 0
    assert note(tmp_path / "place")["file"] == "model_epoch_000_step_00003.pth"
    assert publish(model_path="starter", uri=str(tmp_path / "other")) == 0
    assert note(tmp_path / "other")["file"] == "starter.safetensors"


def test_a_place_that_is_a_file_is_refused_by_its_key(publish, model, capfd):
    assert publish(uri=str(model)) == 2
    assert f"uri: {model} is a file; name a folder" in capfd.readouterr().err
