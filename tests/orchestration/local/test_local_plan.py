"""Which steps a run does: all, those from one on, or one alone on what an earlier run made."""

import pytest
from local_steps import chain, saved, saved_states, states
from small_ir import sums

from stereo_core.orchestration.dag import GraphError
from stereo_core.orchestration.graph import load_pipeline
from stereo_core.orchestration.local.plan import all_before, planned

STOPPED = {"a": "stopped", "b": "stopped", "c": "stopped", "other": "stopped"}


@pytest.mark.parametrize(
    ("options", "scope", "again"),
    [
        ((False, None, None), {"a", "b", "c", "other"}, set()),
        ((True, None, None), {"a", "b", "c", "other"}, {"a", "b", "c", "other"}),
        ((False, "b", None), {"a", "b", "c", "other"}, {"b", "c"}),
        ((False, None, "b"), {"b"}, {"b"}),
    ],
)
def test_a_plan(compiled, options, scope, again):
    plan = planned(load_pipeline(compiled(chain())), *options)
    assert (plan.scope, plan.again, plan.fresh) == (scope, again, options[0])


@pytest.mark.parametrize(("options", "option"), [((False, "othr", None), "--from"), ((False, None, "othr"), "--only")])
def test_an_unknown_step_is_named(compiled, options, option):
    with pytest.raises(GraphError, match=rf"{option}: .* no step othr; did you mean other\?"):
        planned(load_pipeline(compiled(chain())), *options)


def test_all_that_a_step_needs(compiled):
    pipeline = load_pipeline(compiled(chain()))
    assert all_before({"c"}, pipeline) == {"a", "b"} and all_before({"a", "other"}, pipeline) == set()


def test_from_a_step_on(execute):
    assert execute(chain(), from_step="b")[0] == 0, "nothing to take over yet"
    code, run = execute(chain(), from_step="b")
    assert code == 0
    assert states(run) == {"a": "reused", "b": "succeeded", "c": "succeeded", "other": "reused"}


def test_one_step_alone_wants_what_it_needs(prepare):
    with pytest.raises(GraphError, match=r"it needs the results of a, which .* does not have"):
        prepare(chain(), only="b")


def test_one_step_after_another(execute, tmp_path):
    assert execute(chain(), only="a")[0] == 0
    assert saved_states(tmp_path / "run") == STOPPED | {"a": "succeeded"}
    assert execute(chain(), only="b")[0] == 0
    assert (tmp_path / "run/tasks/b/out").read_text() == "doneb" and not (tmp_path / "run/tasks/c").exists()


def test_one_step_alone_wants_results_that_are_as_they_were(execute, tmp_path):
    assert execute(chain(), only="a")[0] == 0
    (tmp_path / "run/tasks/a/out").write_text("z")
    with pytest.raises(GraphError, match="results of a have changed"):
        execute(chain(), only="b")


def test_one_step_wants_what_these_parameters_make(execute, tmp_path):
    assert execute(sums(), arguments={"n": 20})[0] == 0
    with pytest.raises(GraphError, match="--only: make ran with other parameters"):
        execute(sums(), arguments={"n": 30}, only="use")
    assert saved(tmp_path / "run")["arguments"] == {"n": 20}


def test_what_one_step_leaves_behind_is_told_to_be_older(execute, tmp_path):
    def told() -> str:
        return saved(tmp_path / "run")["tasks"]["use"]["message"]

    assert execute(sums(), arguments={"n": 20})[0] == 0
    assert execute(sums(), arguments={"n": 30}, only="make")[0] == 0
    assert "out of date" in told()
    assert execute(sums(), arguments={"n": 30}, only="use")[0] == 0
    assert told() == ""
    assert execute(sums(), arguments={"n": 30}, only="make")[0] == 0
    assert told() == "", "the same came out"
