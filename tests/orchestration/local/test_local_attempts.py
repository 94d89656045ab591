"""One task: attempts, time limits, its folder between attempts and runs."""

import os
import signal

import pytest
from flow_steps import trained
from local_steps import ctrl_c, limited, saved, states, step
from small_ir import pipeline

from stereo_core.orchestration.dag import Retry
from stereo_core.orchestration.graph import load_pipeline
from stereo_core.orchestration.local import LocalRun

NEVER = 99
RETRY = {"retryPolicy": {"maxRetryCount": 2, "backoffDuration": "0.1s", "backoffFactor": 2.0}}


def test_retries_keep_the_task_folder(execute, tmp_path):
    """Third time lucky: the two failed attempts left their count behind, as training leaves a checkpoint."""
    code, run = execute(pipeline({"flaky": step("count", 3, 143, **RETRY)}))
    assert code == 0
    assert run.tasks["flaky"].attempts == 3 and (tmp_path / "run/tasks/flaky/count").read_text() == "3"


def test_a_retry_waits_longer_each_time_up_to_a_limit():
    assert [Retry(5, 10.0, 2.0, 60.0).delay(attempt) for attempt in (1, 2, 3, 4, 5)] == [10, 20, 40, 60, 60]


@pytest.mark.parametrize("code", [1, 2])
def test_what_would_fail_again_is_not_retried(execute, code):
    ended, run = execute(pipeline({"wrong": step("count", NEVER, code, **RETRY)}))
    assert ended == code
    assert run.tasks["wrong"].attempts == 1


@pytest.mark.parametrize("code", [3, 137, -signal.SIGKILL])
def test_retries_of_interruptions_end(execute, code):
    ended, run = execute(pipeline({"bad": step("count", NEVER, code, **RETRY)}))
    assert ended == 1
    assert run.tasks["bad"].attempts == 3


def test_time_limit(execute):
    retry = {"retryPolicy": {"maxRetryCount": 1, "backoffDuration": "0s"}}
    code, run = execute(*limited(pipeline({"slow": step("wait", **retry)}), "slow", 1))
    assert code == 1
    assert run.tasks["slow"].message == "stopped after 1 s (its time limit)"
    assert (run.tasks["slow"].exit_code, run.tasks["slow"].attempts) == (124, 1), "it would take as long again"


def test_cancellation_does_not_wait_for_another_attempt(prepare, tmp_path):
    retry = {"retryPolicy": {"maxRetryCount": 2, "backoffDuration": "3600s"}}

    def interrupt(run) -> None:
        if run.tasks["bad"].message.startswith("attempt 1: exit code 137"):
            os.kill(os.getpid(), signal.SIGINT)

    run = prepare(pipeline({"bad": step("count", NEVER, 137, **retry)}), on_change=interrupt)
    with ctrl_c(), pytest.raises(KeyboardInterrupt):
        run.execute()
    task = saved(tmp_path / "run")["tasks"]["bad"]
    assert (task["state"], task["attempts"], task["exit_code"]) == ("stopped", 1, 137)


def test_a_task_that_failed_goes_on_in_its_folder(execute, tmp_path):
    for _ in range(2):
        assert execute(pipeline({"a": step("count", NEVER, 1)}))[0] == 1
    assert (tmp_path / "run/tasks/a/count").read_text() == "2"


def test_a_task_whose_arguments_changed_starts_from_nothing(execute, tmp_path):
    assert execute(pipeline({"a": step("count", NEVER, 1)}))[0] == 1
    assert execute(pipeline({"a": step("count", 1, 1)}))[0] == 0
    assert (tmp_path / "run/tasks/a/count").read_text() == "1"


def test_a_wrong_parameter_costs_nothing_that_does_not_depend_on_it(compiled_once, tmp_path):
    """A finished step is taken over afterwards, and one that was cut off goes on with its checkpoint."""
    graph = load_pipeline(compiled_once(trained))
    first = LocalRun(graph, {}, tmp_path)
    assert first.execute() == 1 and states(first)["add"] == "succeeded"
    wrong = LocalRun(graph, {"code": 2}, tmp_path)
    assert wrong.execute() == 2 and states(wrong) == {"fail": "failed", "add": "skipped", "go-on": "skipped"}
    assert wrong.tasks["add"].results() == {}, "what waits to be taken over is no result of this run"
    again = LocalRun(graph, {}, tmp_path)
    assert again.execute() == 0
    assert states(again) == {"fail": "succeeded", "add": "reused", "go-on": "succeeded"}
