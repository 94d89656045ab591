"""Verbs whose spec names objects: the whole way from bucket to bucket, by the command line."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from buckets import left_over, names
from torch.utils.data import DataLoader

from stereo_core import storage
from stereo_core.data.annotations import check_files, read_annotations
from stereo_core.data.datasets import StereoDataset, relative_names
from stereo_core.data.images import read_image
from stereo_core.errors import DataError
from stereo_core.run.perform import perform
from stereo_core.run.staging import staged
from stereo_core.spec import spec_from_dict
from stereo_core.step import launch as launcher
from stereo_core.step.ports import Artifact
from stereo_core.step.wiring import wire
from stereo_core.values import counted

DEPTH_NET = Path(sys.executable).parent / "depth_net"
PATTERNS = {
    "image_dir_pattern": ["left/rgb"],
    "right_dir_pattern": ["right/rgb"],
    "depth_dir_pattern": ["left/disparity"],
    "image_extension": ".png",
}
pytestmark = [pytest.mark.service, pytest.mark.timeout(300)]


def run(verb: str, **spec) -> int:
    return perform(verb, spec_from_dict(verb, spec))


@pytest.fixture
def scenes(store, tmp_path) -> str:
    """A data set that synthesize wrote to a bucket."""
    uri = f"s3://artifacts/{tmp_path.name}/scenes"
    assert run("synthesize", results_dir=uri, num_scenes=2, height=64, width=96, max_disparity=24) == 0
    assert "status.json" in names(uri) and f"scene_0001/{LEFT}" in names(uri)
    assert left_over(tmp_path) == []
    return uri


LEFT = "dataset/data/left/rgb/0000.png"


def test_a_list_of_objects_is_read_lazily(scenes, store, tmp_path):
    lists = scenes.replace("scenes", "lists")
    assert run("convert", data_root=scenes, results_dir=lists, relative_paths=True, **PATTERNS) == 0
    assert not (tmp_path / "cache/objects").exists(), "convert needs names alone"
    samples = read_annotations(storage.fetch(f"{lists}/test.txt"), scenes)
    check_files(samples)
    assert [sample.left for sample in samples] == [f"{scenes}/scene_000{number}/{LEFT}" for number in (0, 1)]
    assert relative_names(samples, [scenes] * 2) == [f"scene_000{n}/{LEFT.removesuffix('.png')}" for n in (0, 1)]

    source = spec_from_dict("convert", {"data_root": scenes, "results_dir": "x"}).model_copy(
        update={"disparity_format": "auto", "disparity_scale": None, "dataset_name": "FSD", "image_bits": "auto"}
    )
    before = len(list((tmp_path / "cache/objects").glob("*/*")))
    item = StereoDataset(samples, [source] * 2, ["a", "b"])[1]
    assert item["left"].shape == (3, 64, 96) and 0 < item["disparity"].max() < 24
    assert len(list((tmp_path / "cache/objects").glob("*/*"))) == before + 3, "the three files of one pair"


def test_fetch_dataset_by_copy_and_by_reference(scenes, store, tmp_path, capsys):
    """Through the launcher: what it gives is taken by convert, and a change of the bucket is noticed."""

    def launch(action: str, parameters: dict, inputs: dict, port: str) -> tuple[int, dict]:
        folder = tmp_path / f"{action}-{len(list(tmp_path.iterdir()))}"
        item = {"name": port, "type": {"schemaTitle": "system.Dataset"}, "uri": str(folder / port)}
        outputs = {"artifacts": {port: {"artifacts": [item]}}, "outputFile": str(folder / "output.json")}
        given = {"parameterValues": parameters, "artifacts": inputs}
        code = launcher.main([action, json.dumps({"inputs": given, "outputs": outputs})])
        done = json.loads((folder / "output.json").read_text()) if code == 0 else {}
        return code, done.get("artifacts", {}).get(port)

    lists = {}
    for mode in ("copy", "reference"):
        code, images = launch("fetch_dataset", {"uri": scenes, "mode": mode}, {}, "images")
        folder = Path(images["artifacts"][0]["uri"])
        assert code == 0 and (folder / "scene_0001" / LEFT).is_file() == (mode == "copy")
        code, annotations = launch("convert", {"spec": PATTERNS}, {"images": images}, "annotations")
        assert code == 0
        lists[mode] = Path(annotations["artifacts"][0]["uri"], "test.txt").read_text()
    assert lists["copy"] == lists["reference"] and LEFT in lists["copy"]

    inputs = {"images": Artifact("images", "images", folder)}
    inputs["annotations"] = Artifact("annotations", "annotations", Path(annotations["artifacts"][0]["uri"]))
    tree = {"dataset": {"test_dataset": {"data_sources": [{"data_file": "test.txt", "data_root": "scene_0000"}]}}}
    inputs["checkpoint"] = Artifact("checkpoint", "checkpoint", tmp_path, metadata={"file": "spec"})
    (tmp_path / "spec").touch()
    wire("evaluate", tree, "", inputs, tmp_path)
    assert tree["dataset"]["test_dataset"]["data_sources"][0]["data_root"] == f"{scenes}/scene_0000"

    storage.upload(folder / "reference.json", f"{scenes}/one-more.json")
    assert launch("convert", {"spec": PATTERNS}, {"images": images}, "annotations")[0] == 2
    assert "added, removed or changed" in capsys.readouterr().err


def test_info_of_a_bucket_into_a_bucket(scenes, store, tmp_path):
    """A flat spec with a list of sections: list, images and results are objects."""
    assert run("convert", data_root=scenes, results_dir=scenes, relative_paths=True, **PATTERNS) == 0
    results = scenes.replace("scenes", "info")
    assert run("info", data_sources=[{"data_file": f"{scenes}/test.txt"}], results_dir=results) == 0
    assert names(results) == {"info.json", "report.html", "disparities.png", "status.json"}
    text = storage.read(f"{results}/info.json").decode()
    assert json.loads(text)["total"]["sizes"] == {"96x64": 2} and str(tmp_path) not in text
    assert left_over(tmp_path) == []


def test_a_missing_object_is_named_with_its_line(scenes, tmp_path):
    path = tmp_path / "list.txt"
    path.write_text(f"scene_0000/{LEFT} scene_0009/{LEFT}\n")
    with pytest.raises(DataError, match=r"list.txt:1: no such right file: s3://.*scene_0009"):
        check_files(read_annotations(path, scenes))


def train_spec(scenes: str, results: str, train: dict, tmp_path: Path) -> Path:
    """A list beside the images, without data_root: its paths are relative to itself."""
    assert run("convert", data_root=scenes, results_dir=scenes, relative_paths=True, **PATTERNS) == 0
    source = [{"data_file": f"{scenes}/test.txt", "dataset_name": "FSD"}]
    spec = {
        "results_dir": results,
        "model": {"preset": "tiny", "stereo_backbone": {"allow_random_backbone": True}},
        "dataset": {
            "max_disparity": 64,
            "train_dataset": {"data_sources": source, "workers": 1, "augmentation": {"crop_size": [64, 96]}},
            "test_dataset": {"data_sources": source, "workers": 0},
        },
        "train": train,
        "evaluate": {"checkpoint": f"{results}/train/dn_model_latest.pth"},
    }
    file = tmp_path / "spec.yaml"
    file.write_text(yaml.safe_dump(spec))
    return file


def test_train_and_evaluate_from_bucket_to_bucket(scenes, store, tmp_path):
    """List, images, checkpoint and results are objects, for processes that know only the environment.

    Training is killed as soon as a checkpoint is in the bucket, and goes on from there on another machine.
    """
    results, keep = scenes.replace("scenes", "results"), {"num_epochs": 40, "checkpoint_interval": 1}
    file = train_spec(scenes, results, keep, tmp_path)
    with subprocess.Popen([DEPTH_NET, "train", "-e", file], cwd=tmp_path, stderr=subprocess.DEVNULL) as training:
        while "train/dn_model_latest.pth" not in names(results):
            assert training.poll() is None
            time.sleep(0.2)
        training.kill()
    assert last_line(results)["status"] in ("STARTED", "RUNNING"), "no end, for there was none"
    latest = storage.stored_digest(f"{results}/train/dn_model_latest.pth")
    whole = [name for name in names(results) if "model_epoch_" in name and name.endswith(".pth")]
    (same,) = [name for name in whole if storage.stored_digest(f"{results}/{name}") == latest]
    epochs = int(same.split("_")[2]) + 1

    shutil.rmtree(tmp_path / "cache")
    storage.forget()
    anew = subprocess.run([DEPTH_NET, "train", "-e", file], capture_output=True, text=True, cwd=tmp_path)
    assert anew.returncode == 2 and f"{results}/train holds checkpoints of another training" in anew.stderr
    overrides = [f"train.num_epochs={epochs + 5}", "train.resume_training_checkpoint_path=auto"]
    for verb, more in (("train", overrides), ("evaluate", [])):
        ended = subprocess.run([DEPTH_NET, verb, "-e", file, *more], capture_output=True, text=True, cwd=tmp_path)
        assert ended.returncode == 0, ended.stderr
        assert f"Results: {results}" in ended.stdout and str(tmp_path / "cache") not in ended.stdout
        assert store.url.removeprefix("http://") not in ended.stdout + ended.stderr
    storage.forget()
    told = [json.loads(line) for line in storage.read(f"{results}/train/status.json").splitlines()]
    (resumed,) = [line["message"] for line in told if line["message"].startswith("Resuming")]
    assert f"{counted(epochs, 'epoch')} and 0 batches are done" in resumed
    assert [line["epoch"] for line in told if "epoch" in line][-5:] == list(range(epochs, epochs + 5))
    assert told[-1]["status"] == "SUCCESS" and told[0]["status"] == "STARTED"
    kept = sorted(name for name in names(results) if name.endswith(".pth") and "model_epoch" in name)
    last = [f"train/model_epoch_{n:03d}_step_{2 * n + 2:05d}.pth" for n in range(epochs + 2, epochs + 5)]
    assert kept[-3:] == last and len(kept) < 6, "train.keep_checkpoints counts in the bucket too"
    assert {"train/dn_model_latest.pth", "evaluate/results.json", "evaluate/status.json"} <= names(results)
    said = yaml.safe_load(storage.read(f"{results}/evaluate/experiment.yaml"))
    assert said["evaluate"]["checkpoint"] == f"{results}/train/dn_model_latest.pth"

    spec = {"results_dir": f"{results}/report", "results": [f"{results}/evaluate", f"{results}/evaluate/results.json"]}
    assert run("report", **spec, names=["a", "b"]) == 0
    assert last_line(f"{results}/report")["message"] == f"Report of 2 evaluations: {results}/report/report.html"
    assert b"<html" in storage.read(f"{results}/report/report.html")


def test_a_training_goes_on_where_no_links_can_be_made(store, tmp_path, monkeypatch):
    """It ended in a traceback. The call is refused as such file systems do; a real one can not be mounted here."""
    results, (first, last) = (
        f"s3://artifacts/{tmp_path.name}/r",
        (f"model_epoch_00{n}_step_0000{n}.pth" for n in (1, 2)),
    )
    for name, content in ((first, b"1"), (last, b"2"), ("dn_model_latest.pth", b"2"), ("dn_model_best.pth", b"gone")):
        (tmp_path / name).write_bytes(content)
        storage.upload(tmp_path / name, f"{results}/train/{name}")

    def refuse(*_, **__):
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "symlink", refuse)
    drawn = {"data_sources": [{"dataset_name": "Synthetic"}]}
    tree = {"results_dir": results, "train": {"resume_training_checkpoint_path": "auto"}}
    tree |= {"dataset": {"train_dataset": drawn, "val_dataset": drawn}, "model": {"preset": "small"}}
    spec = spec_from_dict("train", tree)
    with staged("train", spec) as stage:
        (folder,) = (path / "train" for path in stage.results)
        folder.mkdir(parents=True)
        stage.claim_results()
        assert (folder / "dn_model_latest.pth").read_bytes() == b"2"
        assert sorted(path.name for path in folder.iterdir()) == ["dn_model_latest.pth", first, last]


def last_line(results: str) -> dict:
    storage.forget()
    (name,) = [name for name in names(results) if name in ("status.json", "train/status.json")]
    return json.loads(storage.read(f"{results}/{name}").splitlines()[-1])


def test_a_packed_data_set_in_a_bucket(scenes, store, tmp_path):
    packed, samples = scenes.replace("scenes", "packed"), {}
    assert run("fetch_dataset", uri=scenes, mode="pack", results_dir=packed) == 0
    assert names(packed) == {"status.json", "shard-00000-of-00001.tar", "shard-00000-of-00001.tar.index"}
    lists = {root: f"{tmp_path}/{number}" for number, root in enumerate((scenes, packed))}
    for root, folder in lists.items():
        assert run("convert", data_root=root, results_dir=folder, relative_paths=True, **PATTERNS) == 0
        samples[root] = read_annotations(f"{folder}/test.txt", root)
        check_files(samples[root])
    assert Path(lists[scenes], "test.txt").read_text() == Path(lists[packed], "test.txt").read_text()
    source = SimpleNamespace(disparity_format="auto", disparity_scale=None, dataset_name="FSD", image_bits="auto")
    loose, within = (StereoDataset(samples[root], [source] * 2, ["a", "b"]) for root in (scenes, packed))
    for mine, other in zip(DataLoader(within, batch_size=None, num_workers=2), loose, strict=True):
        assert (mine["left"] == other["left"]).all() and (mine["disparity"] == other["disparity"]).all()
    below = f"{packed}/scene_0001"
    Path(tmp_path, "below.txt").write_text(f"{LEFT} {LEFT}\n")
    (sample,) = read_annotations(tmp_path / "below.txt", below)
    assert sample.left == samples[packed][1].left and read_image(sample.left).shape == (64, 96, 3)


def test_a_failed_run_stores_its_status(store, tmp_path, capsys):
    uri = f"s3://artifacts/{tmp_path.name}"
    spec = {"results_dir": uri, "export": {"checkpoint": f"{uri}/none.pth", "onnx_file": f"{uri}/out/model.onnx"}}
    assert run("export", **spec) == 2
    assert f"{uri}/none.pth: no such object" in capsys.readouterr().err
    assert "FAILURE" in storage.read(f"{uri}/export/status.json").decode()
    assert "out/model.onnx" not in names(uri)


def test_a_key_that_may_not_write_is_refused_before_any_work(store, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "RK")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "RS")
    storage.CLIENTS.forget()
    assert run("synthesize", results_dir="s3://artifacts/forbidden", num_scenes=1) == 2
    assert not list(tmp_path.rglob("scene_0000"))
    told = capsys.readouterr()
    assert "access denied" in told.err and "FAIL" in told.out and "PASS" not in told.out


def test_results_stay_here_where_they_can_not_be_stored(store, tmp_path, monkeypatch, capsys):
    def cut_off(_) -> None:
        monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")

    spec = spec_from_dict("synthesize", {"results_dir": f"s3://artifacts/{tmp_path.name}/cut", "num_scenes": 1})
    assert perform("synthesize", spec, on_outcome=cut_off) == 1
    (folder,) = left_over(tmp_path)
    assert (folder / "results/results_dir/scene_0000" / LEFT).is_file()
    told = capsys.readouterr()
    assert "cannot be reached" in told.err and "FAIL" in told.out and "PASS" not in told.out


def test_a_signal_while_the_results_are_stored(store, proxy, tmp_path, monkeypatch, capsys):
    """By a server that has gone silent, long before anybody's patience has."""

    def silence(_) -> None:
        proxy.pause = 100
        threading.Timer(1, os.kill, (os.getpid(), signal.SIGTERM)).start()

    begin = time.monotonic()
    spec = spec_from_dict("synthesize", {"results_dir": f"s3://artifacts/{tmp_path.name}/slow", "num_scenes": 1})
    assert perform("synthesize", spec, on_outcome=silence) == 143
    assert time.monotonic() - begin < 15
    (folder,) = left_over(tmp_path)
    assert (folder / "results/results_dir/scene_0000" / LEFT).is_file()
    assert f"SIGTERM; the results are still in {folder}" in capsys.readouterr().err


@pytest.mark.slow
def test_a_signal_while_inputs_come_from_a_server_that_has_gone_silent(store, proxy, tmp_path):
    """The engine waits 20 s before it kills, Kubernetes 30."""
    uri, file = f"s3://artifacts/{tmp_path.name}", tmp_path / "file"
    file.write_bytes(bytes(40 * 2**20))
    storage.upload(file, f"{uri}/in/file")
    proxy.passed, proxy.pause = 0, 0.02
    command = [DEPTH_NET, "fetch_dataset", f"uri={uri}/in", f"results_dir={uri}/out"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as fetching:
        while proxy.passed < 2 * 2**20:
            time.sleep(0.01)
        proxy.pause, begin = 100, time.monotonic()
        fetching.terminate()
        told = fetching.communicate()[0]
    assert time.monotonic() - begin < 20
    assert fetching.returncode == 143 and "FAIL" in told and str(left_over(tmp_path)[0]) in told, told


def test_side_cars_come_along(store, tmp_path, monkeypatch):
    uri = f"s3://artifacts/{tmp_path.name}/models"
    for name in ("model.onnx", "model.onnx.data", "model.onnx2", "other.onnx"):
        (tmp_path / name).write_text(name)
        storage.upload(tmp_path / name, f"{uri}/{name}")
    spec = {"gen_trt_engine": {"onnx_file": f"{uri}/model.onnx", "trt_engine": f"{uri}/engines/model.engine"}}
    children, listed = storage.children, []
    monkeypatch.setattr(storage, "children", lambda *a, **how: listed.extend(found := children(*a, **how)) or found)
    with staged("gen_trt_engine", spec_from_dict("gen_trt_engine", spec)) as stage:
        stage.fetch()
        assert listed == ["model.onnx.data"], "not all that lies in the bucket beside it"
        here = Path(stage.spec.gen_trt_engine.onnx_file)
        assert sorted(os.listdir(here.parent)) == ["model.onnx", "model.onnx.data"]
        engine = Path(stage.spec.gen_trt_engine.trt_engine)
        engine.parent.mkdir(parents=True)
        for name in (engine, Path(f"{engine}.json")):
            name.write_text("engine")
        stage.store()
    assert names(f"{uri}/engines") == {"model.engine", "model.engine.json"}
    assert left_over(tmp_path) == []
