"""What the inputs of a task stand for, as far as the run has come."""

from dataclasses import replace
from pathlib import Path

import pytest
from small_ir import DATASET, sums

from stereo_core.orchestration.dag import Argument, Collected, Constant, Filled, FinalStatus, GraphError, OneOf, Output
from stereo_core.orchestration.graph import load_pipeline
from stereo_core.orchestration.local.values import artifacts_of, is_there, parameters_of, value_of
from stereo_core.orchestration.record import Made, Record, TaskRun

GONE, FIRST, SECOND = Output("gone", "n"), Output("first", "n"), Output("second", "n")


@pytest.fixture
def record() -> Record:
    """A run in which two tasks gave n, and one was skipped."""
    tasks = {
        "first": TaskRun("succeeded", parameters={"n": 1}),
        "second": TaskRun("reused", parameters={"n": 2}),
        "gone": TaskRun("skipped", parameters={"n": 9}),
    }
    return Record(Path("/run"), "test", tasks, {"argument": "given"})


@pytest.mark.parametrize(
    ("source", "value"),
    [
        (Constant([1]), [1]),
        (Argument("argument"), "given"),
        (SECOND, 2),
        (Filled({"is": "{{$.inputs.parameters['x']}}!"}, {"x": Argument("argument")}), {"is": "given!"}),
        (OneOf((GONE, SECOND, FIRST)), 2),
        (Collected((SECOND, GONE, FIRST)), [2, 1]),
    ],
)
def test_a_source_has_a_value(record, source, value):
    assert value_of(source, record) == value


def test_what_a_task_did_not_give_is_named(record):
    with pytest.raises(GraphError, match=r"task gone \(skipped\) wrote no output parameter m"):
        value_of(Output("gone", "m"), record)


@pytest.mark.parametrize(
    ("source", "there"),
    [
        (Constant(1), True),
        (FIRST, True),
        (GONE, False),
        (Filled("", {"a": FIRST, "b": GONE}), False),
        (OneOf((GONE, FIRST)), True),
        (OneOf((GONE,)), False),
        (Collected((GONE,)), True),
    ],
)
def test_a_source_is_there_when_its_tasks_have_made_it(record, source, there):
    assert is_there(source, record) is there


@pytest.mark.parametrize(
    ("state", "cancelled", "told", "code"),
    [("succeeded", False, "SUCCEEDED", 0), ("failed", False, "FAILED", 3), ("failed", True, "CANCELLED", 3)],
)
def test_an_exit_handler_is_told_how_its_tasks_ended(record, state, cancelled, told, code):
    record.cancelled = cancelled
    record.tasks["first"] = TaskRun(state, message="why", exit_code=code)
    status = value_of(FinalStatus("handler", ("first", "second")), record)
    message = "" if state == "succeeded" else "first failed: why"
    assert status["state"] == told and status["error"] == {"code": code, "message": message}
    assert status["pipelineTaskName"] == "handler" and status["pipelineJobResourceName"] == "test in /run"


def test_parameters_are_of_their_types(compiled):
    tasks = load_pipeline(compiled(sums())).tasks
    record = Record(Path("run"), "test", {"make": TaskRun("succeeded", parameters={"sum": "21"})}, {"n": 20})
    assert parameters_of(tasks["make"], record) == {"n": 20}
    with pytest.raises(GraphError, match="parameter sum: expected an integer, got '21'"):
        parameters_of(tasks["use"], record)


def test_output_parameters_reach_the_next_step(execute, tmp_path):
    code, run = execute(sums())
    assert code == 0, (tmp_path / "run/tasks/use/log.txt").read_text()
    assert run.tasks["make"].parameters == {"sum": 21}
    assert (tmp_path / "run/tasks/use/out").read_text() == "it's 21"


def test_artifacts_of_a_list_are_those_that_were_made(compiled, record):
    for name in record.tasks:
        record.tasks[name].artifacts = {"n": Made(DATASET, name, "", 0)}
    wired = {"many": Collected((FIRST, GONE, SECOND)), "one": OneOf((GONE, SECOND)), "none": GONE}
    task = replace(load_pipeline(compiled(sums())).tasks["use"], artifacts=wired)
    made = {port: [one.path for one in many] for port, many in artifacts_of(task, record).items()}
    assert made == {"many": ["first", "second"], "one": ["second"]}
