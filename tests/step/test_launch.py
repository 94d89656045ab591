"""The executor protocol: what goes in is checked, what comes out is complete, and in which order."""

from __future__ import annotations

import errno
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from messages import executor_input, item, last_status, output_of

from stereo_core.files import sha256_of
from stereo_core.step.launch import main

PATTERNS = {"image_dir_pattern": ["left/rgb"], "right_dir_pattern": ["right/rgb"], "image_extension": ".png"}


def test_synthesize_then_convert(images, tmp_path):
    assert images["metadata"]["kind"] == "images"
    assert images["metadata"]["sha256"] == sha256_of(images["uri"])
    assert not list(Path(images["uri"]).glob("*.json")), "status.json is about the run, not part of the data"

    spec = PATTERNS | {"split_ratio": 0.67}
    text = executor_input(tmp_path, {"images": {"artifacts": [images]}}, ("annotations",), {"spec": spec})
    assert main(["convert", text]) == 0
    annotations = output_of(tmp_path, "annotations")
    assert sorted(p.name for p in Path(annotations["uri"]).iterdir()) == ["train.txt", "val.txt"]
    lines = [line for p in Path(annotations["uri"]).iterdir() for line in p.read_text().splitlines()]
    assert len(lines) == 3
    for name in (name for line in lines for name in line.split()):
        assert not name.startswith("/") and (Path(images["uri"]) / name).is_file()
    metadata = annotations["metadata"]
    assert (metadata["kind"], metadata["format"]) == ("annotations", "txt")
    assert metadata["sha256"] == sha256_of(annotations["uri"])
    assert metadata["bytes"] == sum(p.stat().st_size for p in Path(annotations["uri"]).iterdir())
    assert metadata["producer"].startswith("stereo-pipelines ") and metadata["producer"].endswith(" convert")
    assert last_status(tmp_path)["status"] == "SUCCESS"


def test_a_message_longer_than_an_argument_may_be_is_in_a_file(tmp_path, capsys):
    """Argo's controller gives it so."""
    parameters = {"status": {"state": "SUCCEEDED"}, "title": "t" * 200_000}
    (tmp_path / "message").write_text(executor_input(tmp_path, {}, ("summary",), parameters))
    assert main(["final_status", f"@{tmp_path / 'message'}"]) == 0
    assert (tmp_path / "summary").read_text().startswith("# ttt")
    assert main(["final_status", f"@{tmp_path / 'nothing'}"]) == 2
    assert f"EXECUTOR_INPUT_JSON: cannot read {tmp_path / 'nothing'}" in capsys.readouterr().err


def test_an_engine_of_another_size_than_the_images_is_refused_before_any_work(images, tmp_path):
    """Where nothing brings them to it; torch is not even imported by then."""
    (tmp_path / "model.engine").write_bytes(b"engine")
    (tmp_path / "lists").mkdir()
    lines = "left.png right.png disparity.png\n"
    (tmp_path / "lists" / "test.txt").write_text(lines)
    scene = next(Path(images["uri"]).rglob("left/rgb/*.png"))
    shutil.copy(scene, tmp_path / "left.png")

    def ended(height: int) -> str:
        size = {f"{which}_height": height for which in ("input", "min", "max")}
        size |= {f"{which}_width": 96 for which in ("input", "min", "max")}
        inputs = {
            "engine": item(tmp_path / "model.engine", kind="engine", **size),
            "annotations": item(tmp_path / "lists"),
            "images": item(tmp_path),
        }
        message = executor_input(tmp_path / "task", inputs, ("metrics",), {"spec": {"evaluate": {"resize": "none"}}})
        code = f"import sys; from stereo_core.step.launch import main; print(main(['trt_evaluate', {message!r}]))"
        code += "; print('torch' in sys.modules)"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        return done.stdout + done.stderr

    told = ended(128)
    assert told.startswith("2\nFalse\n") and "takes images of 96 x 128 px" in told and "left.png has 96 x 64" in told
    assert "evaluate.resize" in told and "takes images of" not in ended(64)


def test_same_spec_same_digest_elsewhere(images, tmp_path):
    """spec_sha256 is about what the user said, not about where the task ran."""
    said = []
    for name, spec in (("a", PATTERNS), ("b", PATTERNS), ("c", PATTERNS | {"seed": 2})):
        (folder := tmp_path / name).mkdir()
        text = executor_input(folder, {"images": {"artifacts": [images]}}, ("annotations",), {"spec": spec})
        assert main(["convert", text]) == 0
        said.append(output_of(folder, "annotations")["metadata"])
    assert said[0] == said[1] and said[0]["spec_sha256"] != said[2]["spec_sha256"]


def test_large_inputs_are_hashed_last_and_models_before_data(images, tmp_path, capsys):
    """Every digest is wrong here: one that was looked at too early would be told instead."""
    (tmp_path / "model.engine").write_bytes(b"engine")
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists" / "test.txt").write_text("left.png right.png disparity.png\n")
    shutil.copy(next(Path(images["uri"]).rglob("left/rgb/*.png")), tmp_path / "left.png")
    size = {f"{which}_{side}": 128.0 for which in ("input", "min", "max") for side in ("height", "width")}
    paths = {"annotations": tmp_path / "lists", "engine": tmp_path / "model.engine", "images": tmp_path}

    def told(spec: dict, said: dict, ports: tuple = ("annotations", "engine", "images")) -> str:
        inputs = {port: item(paths[port], sha256="0" * 64, **said.get(port, {})) for port in ports}
        assert main(["trt_evaluate", executor_input(tmp_path / "task", inputs, (), {"spec": spec})]) == 2
        return capsys.readouterr().err

    assert "expected 'images'" in told({}, {"images": {"kind": "metrics"}})
    assert "no artifact for input engine" in told({}, {}, ("annotations", "images"))
    assert "evaluate.batch_size" in told({"evaluate": {"batch_sise": 1}}, {})
    shape = told({"evaluate": {"resize": "none"}}, {"engine": size})
    assert "takes images of 128 x 128 px, but" in shape, "whole numbers, though KFP's are doubles"
    assert "input engine" in told({}, {}) and "changed since its step wrote it" in told({}, {})


def test_unknown_spec_key_exits_2(images, tmp_path, capsys):
    parameters = {"spec": {"image_dir_patern": ["left"]}}
    text = executor_input(tmp_path, {"images": {"artifacts": [images]}}, ("annotations",), parameters)
    assert main(["convert", text]) == 2
    assert "image_dir_pattern" in capsys.readouterr().err


def test_import_is_light():
    """The launcher alone needs neither kfp nor torch nor yaml: it starts in an image without kfp, at once."""
    heavy = ("kfp", "torch", "yaml", "pydantic")
    code = f"import sys, stereo_core.step.launch; print([m for m in {heavy} if m in sys.modules])"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


def test_metrics_of_a_loop_stand_in_its_order(tmp_path):
    """A list port's artifacts come after the single ones, each checked; an output parameter is a file of its own."""
    files = [tmp_path / f"{name}.json" for name in "abc"]
    for index, file in enumerate(files):
        file.write_text(json.dumps({"epe": float(index + 1)}))
    many = {"artifacts": [one for file in files[1:] for one in item(file, kind="metrics")["artifacts"]]}
    inputs = {"many": many, "first": item(files[0], kind="metrics")}
    text = executor_input(
        tmp_path, inputs, ("report",), {"names": ["one", {"title": "two", "uri": "s3://a/b"}, {"uri": "three"}]}
    )
    assert main(["report", text]) == 0
    page = (tmp_path / "report").read_text()
    assert page.index("one") < page.index("two") < page.index("three")
    status = last_status(tmp_path)
    assert status["kpi"] == {"one/epe": 1.0, "two/epe": 2.0, "three/epe": 3.0}
    many["artifacts"][1]["metadata"]["sha256"] = "0" * 64
    assert main(["report", executor_input(tmp_path, inputs, ("report",))]) == 2


FAILED = {"state": "FAILED", "pipelineTaskName": "exit-handler-1"}
FAILURES = [{"displayName": "train", "message": 'no "file"'}, {"displayName": "report"}]


@pytest.mark.parametrize(
    ("status", "state", "told"),
    [
        (FAILED | {"error": {"code": 2, "message": "train: no | file"}}, "FAILED", "train: no | file"),
        (
            {"state": "Failed", "error": {"message": json.dumps(json.dumps(FAILURES))}},  # Argo's
            "Failed",
            '```\ntrain: no "file"\nreport: failed\n```',
        ),
        (FAILED | {"error": {"message": '"cut off'}}, "FAILED", '```\n"cut off\n```'),
        ({"state": "SUCCEEDED", "error": {"message": '"null"'}}, "SUCCEEDED", ""),
        ({}, "UNKNOWN", ""),
    ],
)
def test_the_final_status_is_written_whatever_it_is(tmp_path, status, state, told):
    text = executor_input(tmp_path, {}, ("summary",), {"status": status, "title": "night"})
    assert main(["final_status", text]) == 0
    summary = (tmp_path / "summary").read_text()
    assert summary.startswith(f"# night: {state}\n") and told in summary
    assert ("```" in summary) == bool(told), "an error where there was one"
    assert output_of(tmp_path, "summary")["metadata"]["format"] == "md"
    kept = json.loads((tmp_path / "results" / "final_status.json").read_text())
    assert kept.get("state") == status.get("state") and "pipelineTaskName" not in kept, "of a block, not of a step"


def test_nodes_that_share_a_folder_note_their_own_attempts(tmp_path, monkeypatch):
    """Else the second node would take the first node's note for an attempt of its own, and resume alone."""
    seen = []
    monkeypatch.setattr("stereo_core.run.perform.perform", lambda verb, spec, on_outcome: seen.append(spec.train) or 0)
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / "train.txt").write_text("a.png b.png c.pfm\n")
    (tmp_path / "images").mkdir()
    inputs = {name: item(tmp_path / name) for name in ("images", "annotations")}
    for node, resumed in (("0", ""), ("1", ""), ("1", "auto")):
        monkeypatch.setenv("PET_NODE_RANK", node)
        spec = {"model": {"stereo_backbone": {"allow_random_backbone": True}}}
        parameters = {"num_nodes": 2, "num_gpus": 3, "spec": spec}
        assert main(["train", executor_input(tmp_path, inputs, ("checkpoint",), parameters)]) == 0
        assert seen[-1].resume_training_checkpoint_path == resumed
        assert (seen[-1].num_nodes, seen[-1].num_gpus) == (2, 3)


def test_a_failure_that_explains_itself_shows_no_traceback(monkeypatch, capsys):
    def full(verb, message):
        raise OSError(errno.ENOSPC, "No space left on device", "/data/x")

    monkeypatch.setattr("stereo_core.step.launch.launch", full)
    assert main(["convert", "{}"]) == 1
    assert capsys.readouterr().err == (
        "depth_net-launch: error: File system error: [Errno 28] No space left on device: '/data/x'; "
        "free some space there\n"
    )
