"""Messages between the engine and a step."""

import json
from dataclasses import replace

import pytest
from local_steps import write
from small_ir import DATASET, pipeline, sums

from stereo_core.files import sha256_of
from stereo_core.orchestration.dag import GraphError, Task
from stereo_core.orchestration.graph import load_pipeline
from stereo_core.orchestration.local.message import OUTPUT, command_of, executor_input, outputs_of
from stereo_core.orchestration.record import Made


@pytest.fixture
def place(tmp_path):
    """A task's folder."""
    path = tmp_path / "tasks/a"
    path.mkdir(parents=True)
    return path


@pytest.fixture
def task(compiled):
    """Takes an artifact and makes one."""
    steps = {"first": write("a"), "a": write("b", "in")}
    return load_pipeline(compiled(pipeline(steps, {"a": {"in": ("first", "out")}}))).tasks["a"]


@pytest.fixture
def message(task, tmp_path, place):
    made = Made(DATASET, "tasks/first/out", "", 0, {"kind": "images"})
    return executor_input(task.component, tmp_path, place, {"text": "it's", "spec": {"n": 1}}, {"in": [made]})


def with_command(task: Task, *command: str) -> Task:
    container = replace(task.component.executor, command=command, args=())
    return replace(task, component=replace(task.component, executor=container))


def test_a_message_names_what_goes_in_and_where_outputs_belong(message, tmp_path, place):
    (item,) = message["inputs"]["artifacts"]["in"]["artifacts"]
    assert item == {
        "name": "in",
        "type": DATASET,
        "uri": str(tmp_path / "tasks/first/out"),
        "metadata": {"kind": "images"},
    }
    assert message["outputs"]["artifacts"]["out"]["artifacts"][0]["uri"] == str(place / "out")
    assert message["outputs"]["outputFile"] == str(place / OUTPUT)


def test_an_imported_artifact_keeps_its_own_path(task, tmp_path, place):
    message = executor_input(task.component, tmp_path, place, {}, {"in": [Made(DATASET, "/data/images", "", 0)]})
    assert message["inputs"]["artifacts"]["in"]["artifacts"][0]["uri"] == "/data/images"


@pytest.mark.parametrize(
    ("part", "wanted"),
    [
        ("as it is", "as it is"),
        ("<{{$.inputs.parameters['text']}}>", "<it's>"),
        ("{{$.inputs.parameters['spec']}}", '{"n": 1}'),
        ("{{$.inputs.artifacts['in'].path}}", "{folder}/tasks/first/out"),
        ("{{$.outputs.artifacts['out'].uri}}", "{folder}/tasks/a/out"),
        ("{{$.outputs.output_file}}", "{folder}/tasks/a/executor_output.json"),
    ],
)
def test_placeholders_are_filled(task, message, tmp_path, part, wanted):
    (filled,) = command_of(with_command(task, part), message)
    assert filled == wanted.replace("{folder}", str(tmp_path))


def test_a_command_may_take_the_whole_message(task, message):
    (filled,) = command_of(with_command(task, "{{$}}"), message)
    assert json.loads(filled) == message


def test_a_placeholder_that_is_unknown_is_named(task, message):
    with pytest.raises(GraphError, match=r"task a: placeholder \{\{\$\.pipeline_job_uuid\}\} is not supported"):
        command_of(with_command(task, "{{$.pipeline_job_uuid}}"), message)


def test_artifacts_are_known_by_content_and_told_by_relative_paths(task, tmp_path, place):
    (place / "out").write_text("made")
    (place / OUTPUT).write_text(json.dumps({"artifacts": {"out": {"artifacts": [{"metadata": {"epe": 1.5}}]}}}))
    made = outputs_of(task.component, tmp_path, place)["artifacts"]["out"]
    assert (made.path, made.bytes, made.metadata) == ("tasks/a/out", 4, {"epe": 1.5})
    assert made.sha256 == sha256_of(place / "out")


def test_an_artifact_that_was_not_made_has_no_digest(task, tmp_path, place):
    made = outputs_of(task.component, tmp_path, place)["artifacts"]["out"]
    assert (made.sha256, made.bytes, made.metadata) == ("", 0, {})


def test_output_parameters_are_read_from_files_and_from_the_message(compiled, tmp_path, place):
    component = load_pipeline(compiled(sums())).tasks["make"].component
    (place / OUTPUT).write_text('{"parameterValues": {"sum": 20.0}}')
    assert outputs_of(component, tmp_path, place)["parameters"] == {"sum": 20}
    (place / "sum").write_text("21")
    assert outputs_of(component, tmp_path, place)["parameters"] == {"sum": 21}
