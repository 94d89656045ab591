"""Conditions, loops, exit handlers and nested pipelines, run by the local engine as KFP means them."""

import functools
import io
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import flow_steps
import pytest
from kfp import dsl
from rich.console import Console

from stereo_core.orchestration.graph import load_pipeline
from stereo_core.orchestration.local import LocalRun
from stereo_core.orchestration.page import write_page
from stereo_core.orchestration.progress import summary


@pytest.fixture
def run(compiled_once, tmp_path):
    """Run a pipeline in this test's folder; returns the exit code and the run."""

    def execute(function, arguments=None, **options) -> tuple[int, LocalRun]:
        run = LocalRun(load_pipeline(compiled_once(function)), arguments or {}, tmp_path / "run", **options)
        return run.execute(), run

    return execute


def states(run: LocalRun) -> dict[str, str]:
    return {name: task.state for name, task in run.tasks.items()}


def text(run: LocalRun, name: str) -> str:
    return (run.folder / f"tasks/{name}/out").read_text()


GOOD = {"epe": 0.5, "flag": True}
BRANCHES = {
    "if": (GOOD, {"say", "add", "add-2"}, "good!"),
    "inside": (GOOD | {"flag": False}, {"say", "add-2"}, "good!"),
    "elif": ({"epe": 2.0, "name": "it's && (so)"}, {"say-2", "add-2"}, "named!"),
    "else": ({"epe": 2.0}, {"say-3", "add-2"}, "bad!"),
    "NaN is not at most 1": ({"epe": float("nan")}, {"say-3", "add-2"}, "bad!"),
}


@pytest.mark.parametrize("case", BRANCHES)
def test_one_branch_runs(run, case):
    arguments, wanted, result = BRANCHES[case]
    code, done = run(flow_steps.branches, arguments)
    assert code == 0 and done.record.state == "succeeded"
    assert {name for name, state in states(done).items() if state == "succeeded"} == {"measure"} | wanted
    assert set(states(done).values()) == {"succeeded", "skipped"}
    assert text(done, "add-2") == result


def test_a_skipped_step_says_why_and_leaves_nothing(run):
    run(flow_steps.branches, GOOD)
    code, done = run(flow_steps.branches, GOOD | {"limit": 0.1, "flag": False})
    assert code == 0 and states(done)["measure"] == "reused"
    assert done.tasks["add"].message == "its condition is false: measure-found <= limit"
    assert not (done.folder / "tasks/say").exists(), "what it made when its condition held is gone"
    assert text(done, "add-2") == "bad!", "its input is another one now, so it ran again"
    page = write_page(done.record).read_text()
    summary(done.record, console := Console(file=io.StringIO(), width=100))
    assert "say skipped: its condition is false: measure-found <= limit" in console.file.getvalue()
    assert "its condition is false: measure-found &lt;= limit" in page
    code, done = run(flow_steps.branches, GOOD, only="add-2")
    assert code == 0 and text(done, "add-2") == "bad!", "it stands on what the run before left out and made"


def test_loops_and_pipelines_in_them(run):
    code, done = run(flow_steps.rounds, parallel=3)
    assert code == 0
    for index, word in enumerate("ab"):
        assert text(done, f"for-loop-1-{index}-inner-add") == f"k={word}."
    assert states(done)["for-loop-1-0-add"] == "skipped" and text(done, "for-loop-1-1-add") == "k=b.only b"
    first_ended = (done.folder / "tasks/for-loop-1-0-inner-add/out").stat().st_mtime
    assert first_ended <= (done.folder / "tasks/for-loop-1-1-inner-say/log.txt").stat().st_mtime, "one round at a time"
    texts, names, spec = json.loads(text(done, "gather"))
    assert texts == names == ["x", "y"] and spec == {"key": "k", "inside": {"is": "<k>"}}

    code, done = run(flow_steps.rounds, {"rows": [{"of": "x"}, {"of": 'z"{'}, {"of": "y"}], "words": ["a"]})
    assert code == 0 and json.loads(text(done, "gather"))[1] == ["x", 'z"{', "y"]
    reused = {name for name, state in states(done).items() if state == "reused"}
    assert reused == {"for-loop-1-0-inner-say", "for-loop-1-0-inner-add", "for-loop-3-0-measure"}
    code, done = run(flow_steps.rounds, {"rows": [], "words": []})
    assert code == 0 and json.loads(text(done, "gather"))[:2] == [[], []]


@pytest.mark.parametrize(("code", "state"), [(0, "SUCCEEDED"), (3, "FAILED")])
def test_an_exit_handler_runs_however_its_steps_end(run, code, state):
    ended, done = run(flow_steps.watched, {"code": code})
    assert ended == (1 if code else 0) and done.record.state == ("failed" if code else "succeeded")
    status, to = json.loads(text(done, "tell"))
    assert (status["state"], status["pipelineTaskName"], to) == (state, "exit-handler-1", "me")
    assert status["error"]["code"] == code and ("fail failed: exit code 3" in status["error"]["message"]) == bool(code)
    assert states(done)["add"] == "skipped" and done.tasks["add"].left_out is not bool(code)
    again, done = run(flow_steps.watched, {"code": code})
    assert again == ended and states(done)["say"] == "reused" and states(done)["tell"] == "succeeded", "it tells anew"


def test_an_exit_handler_runs_after_ctrl_c(compiled_once, tmp_path):
    @dsl.container_component
    def wait(out: dsl.Output[dsl.Dataset]):
        code = "import sys, time; open(sys.argv[1], 'w').close(); time.sleep(60)"
        return dsl.ContainerSpec(image="python:3", command=[sys.executable, "-c", code], args=[out.path])

    @dsl.pipeline(name="long")
    def long():
        with dsl.ExitHandler(flow_steps.tell()):
            flow_steps.add(data=wait().outputs["out"], text="never")

    command = [str(Path(sys.executable).parent / "stereo-pipelines"), "run", str(compiled_once(long))]
    heed = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # a shell's background job ignores it
    engine = subprocess.Popen(
        [*command, "-o", str(tmp_path / "run")], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, preexec_fn=heed
    )
    deadline = time.monotonic() + 30
    while not (tmp_path / "run/tasks/wait/out").exists():
        assert time.monotonic() < deadline and engine.poll() is None
        time.sleep(0.05)
    engine.send_signal(signal.SIGINT)
    output = engine.communicate(timeout=30)[0].decode()
    assert engine.returncode == 130, output
    status, _ = json.loads((tmp_path / "run/tasks/tell/out").read_text())
    assert status["state"] == "CANCELLED" and "wait stopped" in status["error"]["message"]
    saved = json.loads((tmp_path / "run/run.json").read_text())
    assert saved["state"] == "stopped"
    assert {name: task["state"] for name, task in saved["tasks"].items()} == {
        "wait": "stopped",
        "add": "stopped",
        "tell": "succeeded",
    }


def test_a_step_that_ignores_failures_takes_its_defaults(run):
    @dsl.pipeline(name="ignoring")
    def ignoring(epe: float = 1.0):
        found = flow_steps.measure(epe=epe, name="x").after(flow_steps.fail(code=3))
        flow_steps.repeat(text=found.outputs["of"]).ignore_upstream_failure()
        flow_steps.repeat(text="y").after(found)

    code, done = run(ignoring)
    assert code == 1
    assert states(done) == {"fail": "failed", "measure": "skipped", "repeat": "succeeded", "repeat-2": "skipped"}
    assert text(done, "repeat") == "default"
