"""Order, tasks side by side, and what a failure or a condition does to those that come after."""

import itertools
from dataclasses import replace
from pathlib import Path

import pytest
from local_steps import saved, states, step, write
from small_ir import pipeline

from stereo_core.orchestration.dag import Comparison, Constant, Output
from stereo_core.orchestration.graph import load_pipeline
from stereo_core.orchestration.local.scheduling import READY, outlook
from stereo_core.orchestration.record import Record, TaskRun

AFTER = {"after": {"in": ("first", "out")}}
SKIPPED = {"state": "skipped", "message": "needs first"}


@pytest.fixture
def after(compiled):
    """A task that needs `first`."""
    return load_pipeline(compiled(pipeline({"first": write("a"), "after": write("b", "in")}, AFTER))).tasks["after"]


def record(**first) -> Record:
    """A run in which `first` has come so far."""
    return Record(Path("run"), "test", {"first": TaskRun(**first), "after": TaskRun()})


@pytest.mark.parametrize(
    ("first", "wanted"),
    [
        ({"state": "waiting"}, {}),
        ({"state": "running"}, {}),
        ({"state": "succeeded"}, READY),
        ({"state": "reused"}, READY),
        ({"state": "failed"}, SKIPPED),
        ({"state": "stopped"}, SKIPPED),
        ({"state": "skipped"}, SKIPPED),
        ({"state": "skipped", "left_out": True}, READY),
    ],
)
def test_what_a_task_comes_to_after_another(after, first, wanted):
    assert outlook(after, record(**first)) == wanted


@pytest.mark.parametrize(("state", "wanted"), [("running", {}), ("failed", READY), ("stopped", READY)])
def test_a_task_that_only_comes_behind_another_minds_no_failure(after, state, wanted):
    behind = replace(after, after=frozenset(), behind=frozenset({"first"}))
    assert outlook(behind, record(state=state)) == wanted


def test_a_condition_is_asked_when_all_before_has_ended(after):
    asked = replace(after, when=(Comparison(Output("first", "n"), "==", Constant(1), text="n == 1"),))
    assert outlook(asked, record(state="running")) == {}
    assert outlook(asked, record(state="succeeded", parameters={"n": 1})) == READY
    assert outlook(asked, record(state="succeeded", parameters={"n": 2})) == {
        "state": "skipped",
        "left_out": True,
        "message": "its condition is false: n == 1",
    }


def test_a_condition_that_can_not_be_told_fails_the_task(after):
    asked = replace(after, when=(Comparison(Constant("a"), "<", Constant(1), text="n < 1"),))
    said = "condition n < 1: 'a' and 1 cannot be compared; compare values of one type"
    assert outlook(asked, record(state="succeeded")) == {"state": "failed", "exit_code": 2, "message": said}


def test_artifacts_flow_and_independent_tasks_run_side_by_side(execute, tmp_path):
    """b and c each wait until they see the other: one after the other they would never end."""
    steps = {
        "a": write("a"),
        "b": step("meet", "b", "c", inputs=("in",)),
        "c": step("meet", "c", "b", inputs=("in",)),
        "d": write("d", "left", "right"),
    }
    wires = {"b": {"in": ("a", "out")}, "c": {"in": ("a", "out")}, "d": {"left": ("b", "out"), "right": ("c", "out")}}
    assert execute(pipeline(steps, wires), parallel=2)[0] == 0
    assert (tmp_path / "run/tasks/d/out").read_text() == "abacd"


@pytest.mark.parametrize("parallel", [1, 2])
def test_no_more_tasks_at_a_time_than_parallel(execute, tmp_path, parallel):
    assert execute(pipeline({name: step("see_gpus") for name in "abcdef"}), parallel=parallel)[0] == 0
    marks = (tmp_path / "run/times").read_text()
    at_once = list(itertools.accumulate(1 if mark == "(" else -1 for mark in marks))
    assert (max(at_once), at_once[-1], len(marks)) == (parallel, 0, 12)


def test_a_failure_skips_what_depends_on_it_only(execute, tmp_path):
    steps = {"bad": step("fail"), "after": write("x", "in"), "last": write("x", "in"), "other": write("x")}
    code, run = execute(pipeline(steps, {"after": {"in": ("bad", "out")}, "last": {"in": ("after", "out")}}))
    assert code == 1
    assert states(run) == {"bad": "failed", "after": "skipped", "last": "skipped", "other": "succeeded"}
    assert run.tasks["bad"].exit_code == 3 and run.tasks["after"].message == "needs bad"
    assert "why it failed" in (tmp_path / "run/tasks/bad/log.txt").read_text()
    assert saved(tmp_path / "run")["state"] == "failed"


@pytest.mark.parametrize(("codes", "wanted"), [((2, 2), 2), ((2, 1), 1)])
def test_a_run_is_the_users_to_mend_where_all_that_failed_is(execute, codes, wanted):
    steps = {name: step("count", 99, code) for name, code in zip("ab", codes, strict=True)}
    assert execute(pipeline(steps))[0] == wanted
