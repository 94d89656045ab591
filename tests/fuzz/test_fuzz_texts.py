"""Specs, overrides, pipelines, URIs, records and messages of any content are read or refused by name."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from argo_documents import REPOSITORY
from hypothesis import strategies as st
from messages import executor_input, item
from mutations import damaged, damaged_text, damaged_tree, inputs
from small_ir import sums

from stereo_core.actions.fetch_dataset import referred
from stereo_core.actions.final_status import readable
from stereo_core.actions.publish_model import published
from stereo_core.actions.report import read_figures
from stereo_core.automl.trials import StatusReader
from stereo_core.errors import UserError
from stereo_core.orchestration.argo import manifests
from stereo_core.orchestration.digests import Digests
from stereo_core.orchestration.graph import load_pipeline
from stereo_core.orchestration.record import Made, Record, TaskRun, read_record
from stereo_core.report.curves import read_curves
from stereo_core.run.status import StatusLog
from stereo_core.spec import load_spec, spec_from_dict
from stereo_core.spec.schema import default_specs
from stereo_core.step.launch import trees_of
from stereo_core.step.message import read_message
from stereo_core.storage.uris import bucket_of, is_uri, local_path, split
from stereo_core.verbs import VERBS

TREES = [
    {"results_dir": "r", "dataset": {"train_dataset": {"data_sources": [{"data_file": "l.txt", "data_root": "/"}]}}},
    {"train": {"num_epochs": 3, "optim": {"lr": 1e-4}}, "model": {"preset": "tiny", "stereo_backbone": None}},
    {"evaluate": {"checkpoint": "${results_dir}/c.pth", "vis": True}, "results_dir": "~/x", "wandb": {"tags": ["a"]}},
    {"data_root": "/d", "image_dir_pattern": ["left"], "right_dir_pattern": ["right"], "split_ratio": 0.5},
]
ALIASES = "a: &a [x, x, x]\nb: &b [*a, *a]\nmodel: {<<: {preset: tiny}}\n"
OVERRIDES = [
    ["train.num_epochs=3", "dataset.train_dataset.data_sources[0].data_file=l.txt"],
    ["data_sources=[{data_file:a.txt,dataset_name:Kitti}]", "model.encoder='vitl'", "results_dir=${model_name}/x"],
    ["train.optim={lr: 1e-4, momentum: 0.9}", 'wandb.tags=["a", b]', "evaluate.checkpoint=???", "+a=1", "~b=2"],
]
SPEC_VERBS = st.sampled_from([verb for verb, row in VERBS.items() if row.spec])


def refused_or_read(read: Callable, *arguments) -> None:
    try:
        read(*arguments)
    except UserError as error:
        assert str(error)


def dumped(tree: object) -> bytes:
    return yaml.safe_dump(tree, allow_unicode=False).encode()


# -- what a user says -------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("little_memory")
def test_a_damaged_spec(tmp_path, counted):
    path = tmp_path / "spec.yaml"
    seeds = [*map(dumped, TREES), default_specs("train").encode(), ALIASES.encode()]

    @inputs(SPEC_VERBS, st.one_of(damaged(seeds), damaged_tree(TREES).map(dumped)))
    def attempt(verb: str, text: bytes) -> None:
        counted()
        path.write_bytes(text)
        refused_or_read(load_spec, verb, path)

    attempt()


@pytest.mark.usefixtures("little_memory")
def test_damaged_overrides(counted):
    tokens = st.lists(damaged_text([token for row in OVERRIDES for token in row]), min_size=1, max_size=4)

    @inputs(SPEC_VERBS, tokens)
    def attempt(verb: str, said: list[str]) -> None:
        counted()
        refused_or_read(load_spec, verb, None, said)

    attempt()


def test_any_text_as_a_uri(counted):
    seeds = ["s3://bucket/a/b.png", "minio://key:secret@bucket/x", "gs://b", "file:///a", "s3://", "aws://b/../x"]

    @inputs(st.one_of(st.text(), damaged_text(seeds)))
    def attempt(text: str) -> None:
        counted()
        for read in (is_uri, bucket_of, split, local_path):
            refused_or_read(read, text)

    attempt()


# -- pipelines --------------------------------------------------------------------------------------------------------


def blocks() -> dict:
    """The sums in a loop, a step with a retry policy in a condition, and a platform's words beside them."""
    spec = sums()
    root, components = spec["root"]["dag"], spec["components"]
    number = {"parameters": {"n": {"parameterType": "NUMBER_INTEGER"}}}
    components["comp-for-loop-1"] = {"dag": {"tasks": root["tasks"]}, "inputDefinitions": number}
    components["comp-condition-1"] = {"dag": {"tasks": {"again": copy.deepcopy(root["tasks"]["make"])}}} | {
        "inputDefinitions": number
    }
    components["comp-condition-1"]["dag"]["tasks"]["again"]["retryPolicy"] = {"maxRetryCount": 2}
    of_n = {"parameters": {"n": {"componentInputParameter": "n"}}}
    root["tasks"] = {
        "for-loop-1": {
            "componentRef": {"name": "comp-for-loop-1"},
            "parameterIterator": {"itemInput": "n", "items": {"raw": "[1, 2]"}},
            "iteratorPolicy": {"parallelismLimit": 1},
        },
        "condition-1": {
            "componentRef": {"name": "comp-condition-1"},
            "dependentTasks": ["for-loop-1"],
            "inputs": of_n,
            "triggerPolicy": {"condition": "int(inputs.parameter_values['n']) > 3 && !(1 == 2)"},
        },
    }
    return spec


@pytest.mark.usefixtures("little_memory")
def test_a_damaged_pipeline(tmp_path, counted):
    path = tmp_path / "pipeline.yaml"
    seeds = [sums(), blocks()]

    @inputs(st.one_of(damaged([dumped(seed) for seed in seeds]), damaged_tree(seeds).map(dumped)))
    def attempt(text: bytes) -> None:
        counted()
        path.write_bytes(text)
        refused_or_read(lambda: manifests(load_pipeline(path), {}, REPOSITORY))

    attempt()


def test_the_pipelines_are_whole(tmp_path):
    tasks = []
    for seed in (sums(), blocks()):
        (tmp_path / "p.yaml").write_bytes(dumped(seed))
        tasks.append(list((pipeline := load_pipeline(tmp_path / "p.yaml")).tasks))
        assert manifests(pipeline, {}, REPOSITORY)
    rounds = [f"for-loop-1-{number}-{name}" for number in (0, 1) for name in ("make", "use")]
    assert tasks == [["make", "use"], [*rounds, "again"]]


# -- what an engine says to a step ------------------------------------------------------------------------------------


def messages(folder: Path) -> dict[str, str]:
    """Verb -> a task that it can do, with inputs that are there."""
    (folder / "lists").mkdir()
    for name in ("train", "val", "test"):
        (folder / "lists" / f"{name}.txt").write_text("l.png r.png d.pfm\n")
    (folder / "c.pth").write_bytes(b"x")
    (folder / "spec.yaml").write_bytes(dumped(TREES[1]))
    data = {"images": item(folder, kind="images"), "annotations": item(folder / "lists", format="txt")}
    said = {"spec_file": item(folder / "spec.yaml"), "checkpoint": item(folder / "c.pth", kind="checkpoint", epoch=3.0)}
    coding = {"dataset_name": "Kitti", "disparity_format": "png_u16_256", "disparity_scale": 256.0}
    spec = {"spec": {"train": {"num_epochs": 2.0}, "dataset": {"max_disparity": 64}}}
    sources = [{"data_file": "val.txt", "data_root": "lists"}]
    wanted = {"dataset": {"test_dataset": {"data_sources": sources}}, "evaluate": {"resize": "none"}}
    return {
        "train": executor_input(folder, data | {"spec_file": said["spec_file"]}, ("checkpoint",), coding | spec),
        "evaluate": executor_input(folder, data | {"checkpoint": said["checkpoint"]}, ("metrics",), {"spec": wanted}),
        "export": executor_input(folder, said, ("onnx",), {"spec": {"export": {"input_height": 64.0}}}),
        "final_status": executor_input(folder, {}, ("summary",), {"status": {"state": "FAILED"}, "title": "t"}),
    }


def asked(verb: str, text: str, results: Path) -> object:
    tree, _ = trees_of(verb, read_message(verb, text), results)
    return spec_from_dict(verb, tree)


@pytest.mark.usefixtures("little_memory")
def test_a_damaged_message_to_a_step(tmp_path, counted, monkeypatch):
    monkeypatch.chdir(tmp_path)
    whole = messages(tmp_path)
    cases = [
        st.tuples(st.just(verb), st.one_of(damaged_text([text]), damaged_tree([json.loads(text)]).map(json.dumps)))
        for verb, text in whole.items()
    ]

    @inputs(st.one_of(*cases))
    def attempt(case: tuple[str, str]) -> None:
        counted()
        refused_or_read(asked, *case, tmp_path / "results")

    attempt()


def test_the_messages_are_whole(tmp_path):
    specs = {verb: asked(verb, text, tmp_path / "results") for verb, text in messages(tmp_path).items()}
    assert specs["train"].train.num_epochs == 2 and specs["train"].model.preset == "tiny"
    assert specs["evaluate"].evaluate.checkpoint == str(tmp_path / "c.pth")


# -- what runs leave --------------------------------------------------------------------------------------------------


def notes(tree: object) -> st.SearchStrategy[bytes]:
    trees = damaged_tree([tree]).map(lambda found: json.dumps(found).encode("utf-8", "surrogatepass"))
    return st.one_of(damaged([json.dumps(tree).encode()]), trees)


def test_a_damaged_record_of_a_run(tmp_path, counted):
    made = Made({"schemaTitle": "system.Model"}, "tasks/a/out", "0" * 64, 12)
    record = Record(tmp_path, "p", {"a": TaskRun("succeeded", made=True, artifacts={"out": made}), "b": TaskRun()})
    record.write()

    @inputs(notes(json.loads((tmp_path / "run.json").read_text())))
    def attempt(text: bytes) -> None:
        counted()
        (tmp_path / "run.json").write_bytes(text)
        refused_or_read(read_record, tmp_path)

    attempt()


def test_a_damaged_status_file(tmp_path, counted):
    log = StatusLog(tmp_path)
    log.started("x")
    log.running("Eval metrics generated.", kpi={"val_loss": 1.0, "epe": 2.0})
    log.running("Train metrics generated.", kpi={"train_loss": 1.0}, epoch=0, step=4, step_time=0.5)
    lines = (path := tmp_path / "status.json").read_text().splitlines()
    trees = st.lists(damaged_tree([json.loads(line) for line in lines]), min_size=1, max_size=3)

    def joined(found: list) -> bytes:
        return "\n".join(map(json.dumps, found)).encode()

    @inputs(st.one_of(damaged(["\n".join(lines).encode()]), trees.map(joined)))
    def attempt(text: bytes) -> None:
        counted()
        path.write_bytes(text)
        refused_or_read(read_curves, tmp_path)
        assert all(math.isfinite(value) for _, value in StatusReader(path, "val_loss").validations())

    attempt()


NOTES = {
    "reference.json": (referred, {"uri": "no/where/at_all", "files": 2, "bytes": 10, "digest": "0" * 64}),
    "published.json": (lambda folder: published(str(folder)), {"version": "1", "metrics": {"epe": 0.5}}),
    "results.json": (read_figures, {"epe": 0.5, "bp1": 0.1, "images": 3}),
    "digests.json": (lambda folder: Digests(folder / "digests.json"), {"/a": [1, 2, "0" * 64]}),
}


@pytest.mark.parametrize("name", NOTES)
def test_a_damaged_note(name, tmp_path, counted, monkeypatch):
    monkeypatch.chdir(tmp_path)  # a damaged URI may be this folder, or be relative to it
    read, whole = NOTES[name]

    @inputs(notes(whole))
    def attempt(text: bytes) -> None:
        counted()
        (tmp_path / name).write_bytes(text)
        refused_or_read(read, tmp_path)

    attempt()


def test_a_damaged_message_of_failures(counted):
    whole = json.dumps(json.dumps([{"displayName": "train(0)", "message": "exit code 1", "phase": "Failed"}]))

    @inputs(damaged_text([whole]))
    def attempt(text: str) -> None:
        counted()
        assert isinstance(readable(text), str)

    attempt()
