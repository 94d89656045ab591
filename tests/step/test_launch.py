"""The executor protocol: what goes in is checked, what comes out is complete, and the ports win."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from stereo_core.engines.files import SIDECAR_KEYS, write_sidecar
from stereo_core.errors import DataError, ModelError, UserError
from stereo_core.files import sha256_of
from stereo_core.run.outcome import Outcome
from stereo_core.step.launch import (
    Artifact,
    check_digest,
    content,
    main,
    merge,
    publish,
    user_spec,
    wire,
)
from stereo_core.storage import local_path
from stereo_core.values import with_integers

PATTERNS = {"image_dir_pattern": ["left/rgb"], "right_dir_pattern": ["right/rgb"], "image_extension": ".png"}


def item(path: Path, **metadata) -> dict:
    return {"artifacts": [{"name": path.name, "type": {"schemaTitle": "x"}, "uri": str(path), "metadata": metadata}]}


def executor_input(folder: Path, inputs: dict, outputs: tuple, parameters: dict | None = None) -> str:
    """What a KFP engine hands over for a task that writes into `folder`."""
    return json.dumps(
        {
            "inputs": {"parameterValues": parameters or {}, "artifacts": inputs},
            "outputs": {
                "artifacts": {port: item(folder / port) for port in outputs},
                "outputFile": str(folder / "executor_output.json"),
            },
        }
    )


def output_of(folder: Path, port: str) -> dict:
    return json.loads((folder / "executor_output.json").read_text())["artifacts"][port]["artifacts"][0]


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> dict:
    """The images artifact of a real synthesize task."""
    folder = tmp_path_factory.mktemp("synthesize")
    small = {"num_scenes": 3.0, "height": 64.0, "width": 96.0, "max_disparity": 24.0}
    command = [str(Path(sys.executable).parent / "depth_net-launch"), "synthesize"]
    subprocess.run([*command, executor_input(folder, {}, ("images",), small)], check=True)
    return output_of(folder, "images")


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
    assert json.loads((tmp_path / "results" / "status.json").read_text().splitlines()[-1])["status"] == "SUCCESS"


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
    assert told.startswith("2\nFalse\n") and "is for images of 128 x 96" in told and "left.png has 64 x 96" in told
    assert "evaluate.resize" in told and "is for images of" not in ended(64)


def test_same_spec_same_digest_elsewhere(images, tmp_path):
    """spec_sha256 is about what the user said, not about where the task ran."""
    digests = []
    for folder in (tmp_path / "a", tmp_path / "b"):
        folder.mkdir()
        text = executor_input(folder, {"images": {"artifacts": [images]}}, ("annotations",), {"spec": PATTERNS})
        assert main(["convert", text]) == 0
        digests.append(output_of(folder, "annotations")["metadata"])
    assert digests[0] == digests[1]


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

    assert "'images' is wanted" in told({}, {"images": {"kind": "metrics"}})
    assert "no artifact for input engine" in told({}, {}, ("annotations", "images"))
    assert "evaluate.batch_size" in told({"evaluate": {"batch_sise": 1}}, {})
    shape = told({"evaluate": {"resize": "none"}}, {"engine": size})
    assert "is for images of 128 x 128, and" in shape, "whole numbers, though KFP's are doubles"
    assert "input engine" in told({}, {}) and "changed since it was made" in told({}, {})


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
    [("convert", "images"), ("train", "annotations, images"), ("trt_evaluate", "annotations, engine, images")],
)
def test_a_port_without_an_artifact_is_named(tmp_path, capsys, action, missing):
    assert main([action, executor_input(tmp_path, {}, ())]) == 2
    assert capsys.readouterr().err.strip().endswith(f"input {missing}")


def test_unknown_spec_key_exits_2(images, tmp_path, capsys):
    parameters = {"spec": {"image_dir_patern": ["left"]}}
    text = executor_input(tmp_path, {"images": {"artifacts": [images]}}, ("annotations",), parameters)
    assert main(["convert", text]) == 2
    assert "image_dir_pattern" in capsys.readouterr().err


def test_results_that_can_not_be_published_fail_the_run(images, tmp_path):
    """An output the action does not have: exit 1, a FAILURE line, no executor_output.json."""
    text = executor_input(tmp_path, {"images": {"artifacts": [images]}}, ("annotations", "onnx"), {"spec": PATTERNS})
    assert main(["convert", text]) == 1
    assert not (tmp_path / "executor_output.json").exists()
    assert json.loads((tmp_path / "results" / "status.json").read_text().splitlines()[-1])["status"] == "FAILURE"


def test_remote_artifacts_are_where_kfp_puts_them():
    assert local_path("s3://bucket/a/b") == Path("/s3/bucket/a/b")
    assert local_path("aws://bucket/a") == Path("/s3/bucket/a")
    assert local_path("gs://bucket/a") == Path("/gcs/bucket/a")
    assert local_path("minio://mlpipeline/v2/x") == Path("/minio/mlpipeline/v2/x")
    assert local_path("/data/x") == Path("/data/x")
    with pytest.raises(DataError, match="ftp"):
        local_path("ftp://host/x")


def test_whole_floats_are_integers_again():
    assert with_integers({"a": [1.0, 0.5, True], "b": {"c": 3.0}}) == {"a": [1, 0.5, True], "b": {"c": 3}}
    assert [type(x) for x in with_integers([1.0, 0.5, True])] == [int, float, bool]


def artifact(port: str, path: Path, **metadata) -> Artifact:
    return Artifact(port, port, {}, str(path), path, metadata)


def test_spec_precedence(tmp_path):
    """spec_file < spec parameter < typed parameters < ports."""
    file = tmp_path / "spec.yaml"
    file.write_text(yaml.safe_dump({"train": {"num_epochs": 1, "precision": "bf16", "seed": 1, "results_dir": "/x"}}))
    said = {"train": {"seed": 2, "num_epochs": 2}}
    tree = user_spec("train", {"spec": said, "num_epochs": 3}, {"spec_file": artifact("spec_file", file)})
    assert tree["train"] == {"num_epochs": 3, "precision": "bf16", "seed": 2, "results_dir": "/x"}
    assert user_spec("train", {"spec": said, "num_epochs": 0}, {})["train"]["num_epochs"] == 2
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / "train.txt").touch()
    data = {name: artifact(name, tmp_path / name) for name in ("images", "annotations")}
    wire("train", tree, "", data, tmp_path / "results")
    assert tree["train"]["results_dir"] == str(tmp_path / "results")


def test_merge_replaces_lists_and_keeps_siblings():
    assert merge({"a": {"b": 1, "c": [1, 2]}}, {"a": {"c": [3]}}) == {"a": {"b": 1, "c": [3]}}


@pytest.mark.parametrize(("lists", "taken"), [(("test.txt", "val.txt"), "test.txt"), (("val.txt",), "val.txt")])
def test_evaluate_takes_the_test_list_else_the_validation_list(tmp_path, lists, taken):
    (tmp_path / "annotations").mkdir()
    for name in lists:
        (tmp_path / "annotations" / name).touch()
    (tmp_path / "checkpoint").mkdir()
    (tmp_path / "checkpoint" / "model.pth").touch()
    inputs = {name: artifact(name, tmp_path / name) for name in ("images", "annotations", "checkpoint")}
    tree = {"evaluate": {"trt_engine": "/old.engine"}}
    wire("evaluate", tree, "Kitti", inputs, tmp_path / "results")
    assert tree["dataset"]["test_dataset"]["data_sources"] == [
        {
            "data_file": str(tmp_path / "annotations" / taken),
            "dataset_name": "Kitti",
            "data_root": str(tmp_path / "images"),
        }
    ]
    assert tree["evaluate"]["checkpoint"] == str(tmp_path / "checkpoint" / "model.pth")
    assert tree["evaluate"]["trt_engine"] == "", "exactly one of checkpoint and trt_engine is set"


def test_the_users_data_sources_resolve_in_the_ports(tmp_path):
    (tmp_path / "annotations").mkdir()
    inputs = {name: artifact(name, tmp_path / name) for name in ("images", "annotations")}
    hard = tmp_path / "hard.txt"
    for path in (tmp_path / "annotations" / "easy.txt", hard):
        path.touch()
    source = {"data_file": "easy.txt", "dataset_name": "FSD", "disparity_format": "pfm"}
    other = {"data_file": str(hard), "dataset_name": "FSD", "data_root": "night"}
    tree = {"dataset": {"train_dataset": {"batch_size": 4, "data_sources": [source, other]}}}
    wire("train", tree, "", inputs, tmp_path / "results")
    train = tree["dataset"]["train_dataset"]
    assert train["batch_size"] == 4
    assert train["data_sources"] == [
        source | {"data_file": str(tmp_path / "annotations" / "easy.txt"), "data_root": str(tmp_path / "images")},
        other | {"data_root": str(tmp_path / "images" / "night")},
    ]
    assert "val_dataset" not in tree["dataset"], "no val.txt, no validation"
    with pytest.raises(UserError, match=r"no such list: .*nowhere\.txt; .* without data_sources the list"):
        wire(
            "train",
            {"dataset": {"train_dataset": {"data_sources": [{"data_file": "nowhere.txt"}]}}},
            "",
            inputs,
            tmp_path,
        )


def test_a_source_without_a_list_says_how_the_ports_list_is_read(tmp_path):
    """It was dropped without a word, and with it its disparity_scale."""
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / "train.txt").touch()
    inputs = {name: artifact(name, tmp_path / name) for name in ("images", "annotations")}
    coding = {"disparity_format": "png_u8", "disparity_scale": 4.0}
    tree = {"dataset": {"train_dataset": {"data_sources": [coding | {"data_file": ""}]}}}
    wire("train", tree, "Middlebury", inputs, tmp_path / "results")
    (source,) = tree["dataset"]["train_dataset"]["data_sources"]
    expected = {"data_file": str(tmp_path / "annotations" / "train.txt"), "dataset_name": "Middlebury"}
    assert source == coding | expected | {"data_root": str(tmp_path / "images")}
    tree = {"dataset": {"train_dataset": {"data_sources": [coding, {"data_file": "a.txt"}]}}}
    with pytest.raises(UserError, match=r"train_dataset\.data_sources: 1 of 2 sources name no data_file"):
        wire("train", tree, "", inputs, tmp_path / "results")


def test_missing_training_list_names_what_is_there(tmp_path):
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / "test.txt").touch()
    inputs = {name: artifact(name, tmp_path / name) for name in ("images", "annotations")}
    with pytest.raises(UserError, match=r"no train\.txt \(found: test\.txt\).*split_ratio"):
        wire("train", {}, "", inputs, tmp_path)


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
        published = publish(
            "gen_trt_engine", outcome, {"engine": artifact("engine", tmp_path / "engine")}, results, "s"
        )
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
    publish("train", Outcome("done", artifacts={"checkpoint": latest}), outputs, tmp_path, "s")
    file = tmp_path / "out" / "checkpoint" / "dn_model_latest.pth"
    assert file.is_file() and not file.is_symlink() and file.read_bytes() == b"weights"


def test_a_training_folder_given_as_a_model_is_its_newest_checkpoint(tmp_path):
    for name in ("model_epoch_000_step_00001.pth", "model_epoch_001_step_00002.pth"):
        (tmp_path / name).write_text(name)
    folder = Artifact("checkpoint", "checkpoint", {}, str(tmp_path), tmp_path)
    with pytest.raises(ModelError, match=r"one model file; found: model_epoch_000.*, model_epoch_001"):
        content(folder)
    (tmp_path / "dn_model_latest.pth").symlink_to("model_epoch_001_step_00002.pth")
    assert content(folder) == tmp_path.resolve() / "model_epoch_001_step_00002.pth"


def test_what_lies_beside_a_model_counts_too(tmp_path, capsys):
    """A foreign file of weights beside an ONNX file would change the network, a side-car what is done with it."""
    (tmp_path / "model.onnx").write_bytes(b"graph")
    (tmp_path / "model.onnx.data").write_bytes(b"weights")
    outputs = {"onnx": artifact("onnx", tmp_path / "out")}
    published = publish("export", Outcome("done", artifacts={"onnx": tmp_path / "model.onnx"}), outputs, tmp_path, "s")
    given = Artifact("onnx", "onnx", {}, "u", tmp_path / "out", published["onnx"]["artifacts"][0]["metadata"])
    check_digest(given)
    for name in ("model.onnx.data", "model.onnx.json"):
        (tmp_path / "out" / name).unlink(missing_ok=True)  # it is a hard link
        (tmp_path / "out" / name).write_bytes(b"others")
        with pytest.raises(ModelError, match="changed since it was made"):
            check_digest(given)
        (tmp_path / "out" / name).unlink()
        shutil.copy(tmp_path / "model.onnx.data", tmp_path / "out")
    check_digest(given)


def test_an_engine_is_found_in_the_folder_that_publish_model_writes(tmp_path):
    (tmp_path / "model.engine").write_bytes(b"ftrt plan")
    sidecar = dict.fromkeys(SIDECAR_KEYS) | {"kind": "engine", "sha256": sha256_of(tmp_path / "model.engine")}
    write_sidecar(tmp_path / "model.engine", sidecar)
    (tmp_path / "metrics").write_text('{"epe": 1.0}')
    inputs = {"model": item(tmp_path / "model.engine"), "metrics": item(tmp_path / "metrics")}
    text = executor_input(tmp_path / "task", inputs, ("card",), {"uri": str(tmp_path / "shelf")})
    assert main(["publish_model", text]) == 0
    (version,) = (path for path in (tmp_path / "shelf").iterdir() if path.is_dir())
    assert sorted(path.name for path in version.iterdir()) == [
        "README.md",
        "metrics.json",
        "model.engine",
        "model.engine.json",
    ]
    assert content(artifact("engine", version)) == version / "model.engine"


def test_a_cut_off_publication_is_no_obstacle(tmp_path):
    """Containers give every attempt the same process id."""
    (tmp_path / f".images.{os.getpid()}").mkdir()
    (tmp_path / "made").mkdir()
    artifact = Artifact("images", "images", {}, str(tmp_path / "images"), tmp_path / "images")
    outcome = Outcome("done", artifacts={"images": tmp_path / "made"})
    publish("synthesize", outcome, {"images": artifact}, tmp_path / "made", "")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images", "made"]


def test_metrics_metadata_is_strict_json(tmp_path):
    outputs = {"metrics": artifact("metrics", tmp_path / "metrics")}
    published = publish("evaluate", Outcome("done", kpi={"epe": 1.5, "d1": float("nan")}), outputs, tmp_path, "s")
    metadata = published["metrics"]["artifacts"][0]["metadata"]
    assert metadata["epe"] == 1.5 and metadata["d1"] == "nan"
    json.dumps(published, allow_nan=False)
    assert json.loads((tmp_path / "metrics").read_text()) == {"epe": 1.5, "d1": "nan"}


def test_import_is_light():
    """The launcher alone needs neither kfp nor torch nor yaml: it starts in an image without kfp, at once."""
    heavy = ("kfp", "torch", "yaml", "pydantic")
    code = f"import sys, stereo_core.step.launch; print([m for m in {heavy} if m in sys.modules])"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


def test_the_best_spec_is_what_the_user_said_with_the_best_values(tmp_path):
    """Paths of the searching task mean nothing elsewhere; the training's ports name the files again."""
    said = {"train": {"precision": "bf16", "optim": {"lr": 1e-4}}, "automl": {"algorithm": "asha"}}
    wired = tmp_path / "best_spec.yaml"
    wired.write_text("results_dir: /somewhere\n")
    outcome = Outcome(
        "done", artifacts={"best_spec": wired}, metadata={"best_spec": {"train.optim.lr": 3e-3, "model.corr_radius": 5}}
    )
    outputs = {"best_spec": artifact("best_spec", tmp_path / "out" / "best_spec")}
    published = publish("automl", outcome, outputs, tmp_path, "s", said)
    tree = yaml.safe_load((tmp_path / "out" / "best_spec").read_text())
    assert tree == {"train": {"precision": "bf16", "optim": {"lr": 3e-3}}, "model": {"corr_radius": 5}}
    metadata = published["best_spec"]["artifacts"][0]["metadata"]
    assert (metadata["kind"], metadata["format"], metadata["model.corr_radius"]) == ("spec", "yaml", 5)


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
    status = json.loads((tmp_path / "results" / "status.json").read_text().splitlines()[-1])
    assert status["kpi"] == {"one/epe": 1.0, "two/epe": 2.0, "three/epe": 3.0}
    many["artifacts"][1]["metadata"]["sha256"] = "0" * 64
    assert main(["report", executor_input(tmp_path, inputs, ("report",))]) == 2


def test_the_final_status_is_written_whatever_it_is(tmp_path):
    failed = {
        "state": "FAILED",
        "pipelineTaskName": "exit-handler-1",
        "error": {"code": 2, "message": "train: no | file"},
    }
    failures = [{"displayName": "train", "message": 'no "file"'}, {"displayName": "report"}]
    argo = {"state": "Failed", "error": {"message": json.dumps(json.dumps(failures))}}
    for status, words in (
        (failed, ("FAILED", "train: no | file")),
        (argo, ("Failed", '```\ntrain: no "file"\nreport: failed\n```')),
        (failed | {"error": {"message": '"cut off'}}, ("FAILED", '```\n"cut off\n```')),
        ({"state": "SUCCEEDED", "error": {"message": '"null"'}}, ("SUCCEEDED",)),
        ({}, ("UNKNOWN",)),
    ):
        text = executor_input(tmp_path, {}, ("summary",), {"status": status, "title": "night"})
        assert main(["final_status", text]) == 0
        summary = (tmp_path / "summary").read_text()
        assert summary.startswith(f"# night: {words[0]}\n") and all(word in summary for word in words)
        assert ("```" in summary) == (len(words) > 1), "an error where there was one"
    assert output_of(tmp_path, "summary")["metadata"]["format"] == "md"
    assert json.loads((tmp_path / "results" / "final_status.json").read_text()) == {}


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
