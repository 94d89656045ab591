"""The pipelines of the library: they load everywhere, and each step gets what it needs."""

import json
from pathlib import Path

import pytest
import yaml
from kfp import components

from stereo_core.orchestration.compile import compiled_path, pipeline_folders, pipeline_tables
from stereo_core.orchestration.dag import Argument, Constant, Importer, Output
from stereo_core.orchestration.graph import load_pipeline, unrolled
from stereo_core.orchestration.local import LocalRun
from stereo_core.run.perform import perform
from stereo_core.spec import spec_from_dict

FOLDERS = {folder.name: folder for folder in pipeline_folders()}
STEPS = {
    "convert": {"images"},
    "train": {"images", "annotations"},
    "evaluate": {"images", "annotations", "checkpoint"},
    "inference": {"images", "annotations", "checkpoint"},
    "export": {"checkpoint"},
    "gen-trt-engine": {"onnx"},
    "trt-evaluate": {"images", "annotations", "engine"},
    "trt-inference": {"images", "annotations", "engine"},
}
OF_DEMO = {"convert": "convert-2", "evaluate": "evaluate-3"}


@pytest.mark.parametrize("name", ["train_to_engine", "demo"])
def test_graph(name):
    graph = load_pipeline(compiled_path(FOLDERS[name]))
    others, own = {"importer"}, {}
    if name == "demo":
        others, own = {"synthesize", "synthesize-2", "convert", "evaluate", "evaluate-2"}, OF_DEMO
        for zero_shot in ("evaluate", "evaluate-2"):
            assert set(graph.tasks[zero_shot].artifacts) == {"images", "annotations"}, "the spec names the starter"
    steps = {own.get(step, step): inputs for step, inputs in STEPS.items()}
    trained, lists = own.get("evaluate", "evaluate"), own.get("convert", "convert")
    assert set(graph.tasks) - {"final-status"} == {*others, *steps}
    for step, inputs in steps.items():
        task = graph.tasks[step]
        assert set(task.artifacts) == inputs
        assert task.retry.count == 1
        assert task.cache == (step != lists), "the step that reads a location others may change always runs"
    assert graph.tasks[trained].artifacts["checkpoint"] == Output("train", "checkpoint")
    assert graph.tasks["trt-evaluate"].artifacts["engine"] == Output("gen-trt-engine", "engine")
    same = [graph.tasks[step].parameters["spec"] for step in (trained, "trt-evaluate")]
    assert same[0] == same[1], "checkpoint and engine are measured alike"


def test_users_images_are_imported_as_images():
    graph = load_pipeline(compiled_path(FOLDERS["train_to_engine"]))
    executor = graph.tasks["importer"].component.executor
    assert isinstance(executor, Importer) and executor.metadata == {"kind": "images"}
    assert [p.name for p in graph.parameters.values() if p.required] == ["images_uri"]


def test_every_engine_comes_from_the_one_onnx_file():
    graph = load_pipeline(compiled_path(FOLDERS["export_and_build"]))
    builds = {task.title: task for task in graph.tasks.values() if "onnx" in task.artifacts}
    assert set(builds) == {f"{size} {precision}" for size in ("small", "large") for precision in ("fp32", "fp16")}
    for title, task in builds.items():
        assert task.artifacts["onnx"] == Output("export", "onnx")
        assert task.parameters["precision"].value == title.split()[1]
        assert task.parameters["spec"].name == f"{title.split()[0]}_spec"


def test_precisions_are_measured_alike():
    graph = load_pipeline(compiled_path(FOLDERS["quantize_and_compare"]))
    report = graph.tasks["report"]
    assert report.parameters["names"].value == ["fp32", "fp16", "int8"]
    measured = [graph.tasks[report.artifacts[port].task] for port in ("first", "second", "third")]
    built = [graph.tasks[task.artifacts["engine"].task] for task in measured]
    assert [task.parameters["precision"].value for task in built] == ["fp32", "fp16", "int8"]
    sources = [task.artifacts["onnx"] for task in built]
    assert sources == [Output("export", "onnx")] * 2 + [Output("quantize", "quantized")]
    assert len({(task.artifacts["images"], task.artifacts["annotations"]) for task in measured}) == 1
    assert len({task.parameters["spec"].name for task in measured}) == 1


def test_the_training_after_a_search_takes_the_best_spec_alone():
    """A spec parameter would win over the file, and with it the values that the search has bettered."""
    graph = load_pipeline(compiled_path(FOLDERS["tune_and_train"]))
    train = graph.tasks["train"]
    assert train.artifacts["spec_file"] == Output("automl", "best_spec")
    assert set(train.parameters) == {"dataset_name", "disparity_format", "disparity_scale", "num_epochs"}
    report = graph.tasks["report"]
    measured = [graph.tasks[report.artifacts[port].task].artifacts["checkpoint"] for port in ("first", "second")]
    assert measured == [Output("automl", "checkpoint"), Output("train", "checkpoint")]


@pytest.mark.parametrize(
    ("name", "least"),
    [
        ("train_to_engine", 2),
        ("tune_and_train", 2),
        ("finetune_and_compare", 2),
        ("nightly_regression", 2),
        ("quantize_and_compare", 2),
        ("starter", 1),
    ],
)
def test_every_step_that_reads_disparities_is_told_how_they_are_coded(name, least):
    readers = [
        task.parameters
        for task in load_pipeline(compiled_path(FOLDERS[name])).tasks.values()
        if task.parameters.get("dataset_name") == Argument("dataset_name")
    ]
    assert len(readers) >= least
    for key in ("disparity_format", "disparity_scale"):
        assert [parameters.get(key) for parameters in readers] == [Argument(key)] * len(readers)


def test_every_benchmark_has_its_title_in_the_reports():
    """Not `name`: an item of a loop has an attribute of that name already, and kfp takes it for a constant."""
    one = load_pipeline(compiled_path(FOLDERS["finetune_and_compare"]))
    one = unrolled(one, one.arguments({"images_uri": "/images", "model_uri": "/model"}))
    titles = [task.parameters["title"] for name, task in one.tasks.items() if name.endswith("report-2")]
    assert titles == [Constant("KITTI 2015"), Constant("Middlebury")]
    suite = load_pipeline(compiled_path(FOLDERS["evaluate_suite"]))
    assert suite.tasks["report"].parameters["names"] == Argument("data_sets"), "of any number, in their order"


def _picture(name: str) -> list[str]:
    text = compiled_path(FOLDERS[name]).read_text()
    drawn = pipeline_tables(text, compiled_path(FOLDERS[name])).partition("```mermaid\n")[2].partition("```")[0]
    return [line.strip() for line in drawn.splitlines()]


def test_the_picture_names_what_equal_steps_are_for():
    lines = _picture("export_and_build")
    assert 'gen-trt-engine-2["gen-trt-engine-2 (small fp16)"]' in lines and 'export["export"]' in lines
    assert "export -->|onnx| gen-trt-engine-2" in lines


def test_the_picture_shows_conditions():
    lines = _picture("finetune_and_compare")
    (start,) = [index for index, line in enumerate(lines) if line.startswith("subgraph")]
    assert lines[start].endswith('["if evaluate-2-epe <= evaluate-epe"]')
    assert lines[start + 1 : start + 4] == ['export["export"]', 'gen-trt-engine["gen-trt-engine"]', "end"]


@pytest.mark.parametrize("name", FOLDERS)
def test_reloads_with_kfp(name):
    component = components.load_component_from_file(str(compiled_path(FOLDERS[name])))
    graph = load_pipeline(compiled_path(FOLDERS[name]))
    assert set(component.component_spec.inputs) == set(graph.parameters)
    assert component.component_spec.description == graph.description


@pytest.mark.parametrize("name", FOLDERS)
def test_every_parameter_is_documented_and_used(name):
    spec = next(yaml.safe_load_all(compiled_path(FOLDERS[name]).read_text()))
    parameters = spec["root"]["inputDefinitions"]["parameters"]
    assert all(item.get("description") for item in parameters.values())
    used = {
        source["componentInputParameter"]
        for task in spec["root"]["dag"]["tasks"].values()
        for source in task.get("inputs", {}).get("parameters", {}).values()
        if "componentInputParameter" in source
    }
    assert used == set(parameters)


def test_demo_specs_are_accepted_by_the_actions(tmp_path):
    """Typing errors in the demo's spec dicts are found without running it."""
    from stereo_core.spec import spec_class

    graph = load_pipeline(compiled_path(FOLDERS["demo"]))
    for step in STEPS:
        verb = step.replace("-", "_")
        parameter = graph.tasks[OF_DEMO.get(step, step)].parameters["spec"].name
        spec_class(verb).model_validate(graph.parameters[parameter].default)


# what reads a place that others may change, or has an effect outside of its outputs, always runs
LOOP = {f"for-loop-2-{index}-{step}" for index in (0, 1) for step in ("fetch-dataset", "convert")}
ALWAYS = {
    "train_to_engine": {"convert"},
    "tune_and_train": {"convert"},
    "export_and_build": {"export"},
    "quantize_and_compare": {"convert", "export"},
    "evaluate_suite": LOOP,
    "finetune_and_compare": {"convert"} | {name.replace("convert", "convert-2") for name in LOOP},
    "nightly_regression": {"convert", "train", "export", "gen-trt-engine", "trt-evaluate", "publish-model"},
    "starter": {"evaluate", "publish-model"},
}


@pytest.mark.parametrize("name", ALWAYS)
def test_caching_retries_and_the_exit_handler(name):
    graph = load_pipeline(compiled_path(FOLDERS[name]))
    steps = [task for task in graph.tasks.values() if not isinstance(task.component.executor, Importer)]
    assert {task.name for task in steps if not task.cache} == ALWAYS[name] | {"final-status"}
    assert {task.retry.count for task in steps} == {1}
    last = graph.tasks["final-status"]
    assert last.exit and last.behind == set(graph.tasks) - {"final-status"}


def seconds(text: str) -> int:
    return int(text.removesuffix("s"))


@pytest.mark.parametrize("name", FOLDERS)
def test_kubeflow_lets_a_second_attempt_take_its_time(name):
    """The longest back-off becomes Argo's maxDuration, a total over all attempts; an engine here waits no such time."""
    spec, platform = yaml.safe_load_all(compiled_path(FOLDERS[name]).read_text())
    limits = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    dags = [spec["root"], *(c for c in spec["components"].values() if "dag" in c)]
    tasks = [task for dag in dags for task in dag["dag"]["tasks"].values() if "retryPolicy" in task]
    assert tasks
    for task in tasks:
        label = spec["components"][task["componentRef"]["name"]]["executorLabel"]
        policy = task["retryPolicy"]
        attempts = policy["maxRetryCount"] + 1
        assert seconds(policy["backoffMaxDuration"]) > attempts * int(limits[label]["activeDeadlineSeconds"])
    for task in load_pipeline(compiled_path(FOLDERS[name])).tasks.values():
        assert task.retry.longest <= 3600


def test_an_engine_is_built_only_of_a_better_model():
    graph = load_pipeline(compiled_path(FOLDERS["finetune_and_compare"]))
    own = {
        task.artifacts["checkpoint"]: task.name
        for task in graph.tasks.values()
        if task.title.startswith("evaluate") and not task.name.startswith("for-loop")
    }
    after, before = own[Output("train", "checkpoint")], own[graph.tasks["train"].artifacts["pretrained"]]
    for name in ("export", "gen-trt-engine"):
        (test,) = graph.tasks[name].when
        assert (test.left, test.operator, test.right) == (Output(after, "epe"), "<=", Output(before, "epe"))
        assert not test.negated


def test_the_last_good_run_is_compared_with_the_engine_that_was_measured():
    graph = load_pipeline(compiled_path(FOLDERS["nightly_regression"]))
    publish = graph.tasks["publish-model"]
    assert publish.artifacts["model"] == graph.tasks["trt-evaluate"].artifacts["engine"]
    assert publish.artifacts["metrics"] == Output("trt-evaluate", "metrics")
    assert publish.parameters["existing"].value == "compare"
    assert publish.parameters["max_epe_increase"].name == "max_epe_increase"


def test_a_hardware_profile_is_chosen_when_compiling(monkeypatch):
    """Steps with a GPU get the named profile, the others `cpu`."""
    from kfp import dsl
    from stereo_components import export, final_status
    from stereo_pipelines import steps
    from stereo_pipelines.profiles import PROFILES

    monkeypatch.setattr(steps, "HEAVY", PROFILES["h100"])
    monkeypatch.setattr(steps, "LIGHT", PROFILES["cpu"])

    @dsl.pipeline(name="placed")
    def placed(uri: str):
        with dsl.ExitHandler(steps.policy(final_status(), light=True)):
            steps.policy(export(checkpoint=steps.importer(uri, "model")))

    executors = placed.pipeline_spec.deployment_spec["executors"]
    gpu = {
        name: "accelerator" in executors[name]["container"]["resources"]
        for name in executors
        if name != "exec-importer"
    }
    assert gpu == {"exec-export": True, "exec-final-status": False}


@pytest.fixture(scope="module")
def scenes(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("scenes")
    spec = {"results_dir": str(folder), "num_scenes": 4, "height": 64, "width": 96, "max_disparity": 24}
    assert perform("synthesize", spec_from_dict("synthesize", spec)) == 0
    (folder / "status.json").unlink()
    return folder


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_night_that_is_worse_fails_and_says_so(scenes, tmp_path):
    """Two nights on the same images: the first is published, the second, spoilt, is not; both are reported."""
    demo = load_pipeline(compiled_path(FOLDERS["demo"])).parameters
    graph = load_pipeline(compiled_path(FOLDERS["nightly_regression"]))
    good = tmp_path / "good"
    arguments = {"images_uri": str(scenes), "last_good_uri": str(good), "dataset_name": "FSD", "backend": "onnxruntime"}
    arguments |= {key: demo[key].default for key in ("convert_spec", "train_spec", "evaluate_spec")} | {"num_epochs": 1}
    arguments["export_spec"] = {"export": {"input_height": 64, "input_width": 96, "batch_size": 1, "on_cpu": True}}
    first = LocalRun(graph, arguments, tmp_path / "first", parallel=1)
    assert first.execute() == 0, {name: task.message for name, task in first.tasks.items()}
    said = json.loads((good / "published.json").read_text())
    assert said["metrics"]["epe"] == first.tasks["trt-evaluate"].parameters["epe"] and said["kind"] == "engine"

    said["metrics"]["epe"] /= 2  # the last good run was twice as good
    (good / "published.json").write_text(json.dumps(said | {"version": "better"}))
    second = LocalRun(graph, arguments, tmp_path / "first", parallel=1, from_step="publish-model")
    assert second.execute() == 1
    assert {name for name, task in second.tasks.items() if task.state == "failed"} == {"publish-model"}
    assert json.loads((good / "published.json").read_text())["version"] == "better"
    summary = (tmp_path / "first/tasks/final-status/summary").read_text()
    assert summary.startswith("# nightly-regression: FAILED") and "publish-model" in summary
