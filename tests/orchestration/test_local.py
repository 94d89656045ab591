"""The local engine: order, side-by-side tasks, failures, retries, limits, cancellation, resume by content."""

import contextlib
import fcntl
import functools
import itertools
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from flow_steps import SPEC, data, trained, training
from kfp import compiler, dsl
from small_ir import container, pipeline, sums
from stereo_components import convert

from stereo_core.errors import UserError
from stereo_core.files import sha256_of
from stereo_core.orchestration import local
from stereo_core.orchestration.dag import GraphError
from stereo_core.orchestration.graph import load_pipeline
from stereo_core.orchestration.local import MARK, LocalRun, _processes_with
from stereo_core.orchestration.podman import Containers
from stereo_core.orchestration.record import LOCK, read_record

WRITE = "import sys, pathlib; pathlib.Path(sys.argv[-1]).write_text('{}')"
APPEND = "import sys, pathlib; *i, o = sys.argv[1:]; pathlib.Path(o).write_text(''.join(map(open_, i)) + '{}')"
APPEND = "open_ = lambda p: __import__('pathlib').Path(p).read_text()\n" + APPEND


def record(folder: Path) -> dict:
    return json.loads((folder / "run.json").read_text())


def states(run: LocalRun) -> dict[str, str]:
    return {name: task.state for name, task in run.tasks.items()}


def test_real_steps_and_resume_by_content(compiled_once, tmp_path):
    graph = load_pipeline(compiled_once(data))
    first = LocalRun(graph, {"spec": SPEC}, tmp_path)
    assert first.execute() == 0
    assert states(first) == {"synthesize": "succeeded", "convert": "succeeded"}
    saved = record(tmp_path)
    assert saved["state"] == "succeeded" and saved["tasks"]["convert"]["exit_code"] == 0
    annotations = saved["tasks"]["convert"]["artifacts"]["annotations"]
    assert annotations["path"] == "tasks/convert/annotations", "relative, so that the folder can be moved"
    assert annotations["sha256"] == sha256_of(tmp_path / annotations["path"])
    assert annotations["metadata"]["kind"] == "annotations"
    assert "PASS" in (tmp_path / "tasks/convert/log.txt").read_text()
    lines = (tmp_path / "tasks/convert/annotations/test.txt").read_text().splitlines()
    assert len(lines) == 2 and all(len(line.split()) == 2 for line in lines)

    assert LocalRun(graph, {"spec": SPEC}, tmp_path).execute() == 0
    again = record(tmp_path)["tasks"]
    assert {task["state"] for task in again.values()} == {"reused"}
    assert again["convert"]["artifacts"]["annotations"] == annotations

    other = LocalRun(graph, {"spec": SPEC | {"split_ratio": 0.5}}, tmp_path)
    assert other.execute() == 0
    assert states(other) == {"synthesize": "reused", "convert": "succeeded"}, "its parameter changed"
    assert not (tmp_path / "tasks/convert/annotations/test.txt").exists(), "nothing of the old result is left"

    left = next((tmp_path / "tasks/synthesize/images").rglob("left/rgb/*.png"))
    left.write_bytes(left.read_bytes() + b"x")
    damaged = LocalRun(graph, {"spec": SPEC | {"split_ratio": 0.5}}, tmp_path)
    assert damaged.execute() == 0
    assert states(damaged) == {"synthesize": "succeeded", "convert": "reused"}, "made again, with the same content"

    fresh = LocalRun(graph, {"spec": SPEC}, tmp_path, fresh=True)
    assert fresh.execute() == 0
    assert set(states(fresh).values()) == {"succeeded"}

    wrong = LocalRun(graph, {"spec": SPEC | {"split_ratio": 7}}, tmp_path)
    assert wrong.execute() == 2
    assert wrong.tasks["convert"].message.startswith("exit code 2: user error: ")
    assert "split_ratio" in wrong.tasks["convert"].message


def test_imported_images_are_known_by_content(tmp_path):
    @dsl.pipeline(name="imported")
    def imported(images_uri: str):
        images = dsl.importer(artifact_uri=images_uri, artifact_class=dsl.Dataset, metadata={"kind": "images"})
        spec = {"image_extension": ".png", "image_dir_pattern": ["left"], "right_dir_pattern": ["right"]}
        convert(images=images.output, spec=spec)

    compiler.Compiler().compile(imported, str(tmp_path / "p.yaml"))
    graph = load_pipeline(tmp_path / "p.yaml")

    def add(name: str) -> None:
        for side in ("left", "right"):
            (tmp_path / "images" / side).mkdir(parents=True, exist_ok=True)
            (tmp_path / "images" / side / name).write_bytes(name.encode())

    add("0.png")
    arguments = {"images_uri": str(tmp_path / "images")}
    assert LocalRun(graph, arguments, tmp_path / "run").execute() == 0
    again = LocalRun(graph, arguments, tmp_path / "run")
    assert again.execute() == 0 and states(again)["convert"] == "reused"
    add("1.png")
    changed = LocalRun(graph, arguments, tmp_path / "run")
    assert changed.execute() == 0 and states(changed)["convert"] == "succeeded"
    lines = (tmp_path / "run/tasks/convert/annotations/test.txt").read_text().splitlines()
    assert sorted(lines) == ["left/0.png right/0.png", "left/1.png right/1.png"]

    missing = LocalRun(graph, {"images_uri": "s3://bucket/images"}, tmp_path / "other")
    assert missing.execute() == 2
    told = missing.tasks["importer"].message
    assert (
        "parameter images_uri: s3://bucket/images" in told and "/s3/bucket/images" in told and "fetch_dataset" in told
    )
    assert states(missing)["convert"] == "skipped"
    missing = LocalRun(graph, {"images_uri": "/gone"}, tmp_path / "other")
    assert missing.execute() == 2
    assert missing.tasks["importer"].message == "parameter images_uri: /gone: no such file or folder"


def test_artifacts_flow_and_independent_tasks_run_side_by_side(compiled, tmp_path):
    """b and c each wait until they see the other: one after the other they would never end."""
    meet = (
        "import sys, pathlib, time; i, o = map(pathlib.Path, sys.argv[1:]); me, other = '{}', '{}'\n"
        "(i.parents[2] / me).touch(); end = time.time() + 20\n"
        "while not (i.parents[2] / other).exists():\n"
        "    assert time.time() < end, 'alone'\n"
        "    time.sleep(0.02)\n"
        "o.write_text(i.read_text() + me)"
    )
    steps = {
        "a": container(WRITE.format("a"), ("out",)),
        "b": container(meet.format("b", "c"), ("out",), ("in",)),
        "c": container(meet.format("c", "b"), ("out",), ("in",)),
        "d": container(APPEND.format("d"), ("out",), ("left", "right")),
    }
    wires = {"b": {"in": ("a", "out")}, "c": {"in": ("a", "out")}, "d": {"left": ("b", "out"), "right": ("c", "out")}}
    run = LocalRun(load_pipeline(compiled(pipeline(steps, wires))), {}, tmp_path / "run", parallel=2)
    assert run.execute() == 0
    assert (tmp_path / "run/tasks/d/out").read_text() == "abacd"


def test_a_failure_skips_what_depends_on_it_only(compiled, tmp_path):
    steps = {
        "bad": container("print('why it failed'); raise SystemExit(3)", ("out",)),
        "after": container(WRITE.format("x"), ("out",), ("in",)),
        "last": container(WRITE.format("x"), ("out",), ("in",)),
        "other": container(WRITE.format("x"), ("out",)),
    }
    wires = {"after": {"in": ("bad", "out")}, "last": {"in": ("after", "out")}}
    run = LocalRun(load_pipeline(compiled(pipeline(steps, wires))), {}, tmp_path / "run")
    assert run.execute() == 1
    assert states(run) == {"bad": "failed", "after": "skipped", "last": "skipped", "other": "succeeded"}
    assert run.tasks["bad"].exit_code == 3 and run.tasks["after"].message == "needs bad"
    assert "why it failed" in (tmp_path / "run/tasks/bad/log.txt").read_text()
    assert record(tmp_path / "run")["state"] == "failed"


COUNT = (
    "import sys, pathlib; o = pathlib.Path(sys.argv[1]); c = o.with_name('count')\n"
    "n = int(c.read_text()) + 1 if c.exists() else 1\n"
    "c.write_text(str(n))\n"
    "{}"
)
RETRY = {"retryPolicy": {"maxRetryCount": 2, "backoffDuration": "0.1s", "backoffFactor": 2.0}}


def test_retries_keep_the_task_folder(compiled, tmp_path):
    """Third time lucky: the two failed attempts left their count behind, as training leaves a checkpoint."""
    step = container(COUNT.format("sys.exit(143) if n < 3 else o.write_text('done')"), ("out",), **RETRY)
    run = LocalRun(load_pipeline(compiled(pipeline({"flaky": step}))), {}, tmp_path / "run")
    begin = time.monotonic()
    assert run.execute() == 0
    assert time.monotonic() - begin >= 0.1 + 0.2, "it waited before each retry, longer the second time"
    assert run.tasks["flaky"].attempts == 3 and (tmp_path / "run/tasks/flaky/count").read_text() == "3"


@pytest.mark.parametrize("code", [1, 2])
def test_what_would_fail_again_is_not_retried(compiled, tmp_path, code):
    step = container(COUNT.format(f"sys.exit({code})"), ("out",), **RETRY)
    run = LocalRun(load_pipeline(compiled(pipeline({"wrong": step}))), {}, tmp_path / "run")
    assert run.execute() == code
    assert run.tasks["wrong"].attempts == 1


@pytest.mark.parametrize("ending", ["sys.exit(3)", "sys.exit(137)", "__import__('os').kill(0, 9)"])
def test_retries_of_interruptions_end(compiled, tmp_path, ending):
    step = container(COUNT.format(ending), ("out",), **RETRY)
    run = LocalRun(load_pipeline(compiled(pipeline({"bad": step}))), {}, tmp_path / "run")
    assert run.execute() == 1
    assert run.tasks["bad"].attempts == 3


def test_time_limit(compiled, tmp_path):
    step = container("import time; time.sleep(60)", ("out",))
    platform = {
        "platforms": {"kubernetes": {"deploymentSpec": {"executors": {"exec-slow": {"activeDeadlineSeconds": 1}}}}}
    }
    spec = pipeline({"slow": step})
    spec["root"]["dag"]["tasks"]["slow"]["retryPolicy"] = {"maxRetryCount": 1, "backoffDuration": "0s"}
    run = LocalRun(load_pipeline(compiled(spec, platform)), {}, tmp_path / "run")
    begin = time.monotonic()
    assert run.execute() == 1
    assert time.monotonic() - begin < 10
    assert "time limit" in run.tasks["slow"].message
    assert (run.tasks["slow"].exit_code, run.tasks["slow"].attempts) == (124, 1), "it would take as long again"


def test_a_step_that_is_deaf_to_sigterm_is_killed(compiled, tmp_path, monkeypatch):
    monkeypatch.setattr(local, "GRACE", 0.5)
    code = (
        "import pathlib, signal, sys, time; signal.signal(signal.SIGTERM, lambda *_: heard.touch())\n"
        "heard = pathlib.Path(sys.argv[1]).with_name('heard'); time.sleep(1); time.sleep(60); time.sleep(60)"
    )
    limit = {"deploymentSpec": {"executors": {"exec-deaf": {"activeDeadlineSeconds": 1}}}}
    path = compiled(pipeline({"deaf": container(code, ("out",))}), {"platforms": {"kubernetes": limit}})
    begin = time.monotonic()
    assert LocalRun(load_pipeline(path), {}, tmp_path / "run").execute() == 1
    assert 1.5 <= time.monotonic() - begin < 10
    assert (tmp_path / "run/tasks/deaf/heard").exists()
    assert not _processes_with(f"{MARK}={tmp_path / 'run'}".encode())


def test_cancellation_does_not_wait_for_another_attempt(compiled, tmp_path):
    retry = {"retryPolicy": {"maxRetryCount": 2, "backoffDuration": "60s"}}
    graph = load_pipeline(compiled(pipeline({"bad": container(COUNT.format("sys.exit(137)"), ("out",), **retry)})))

    def interrupt(run) -> None:
        if run.tasks["bad"].message.startswith("attempt 1: exit code 137"):
            os.kill(os.getpid(), signal.SIGINT)

    begin, before = time.monotonic(), signal.signal(signal.SIGINT, signal.default_int_handler)
    with pytest.raises(KeyboardInterrupt):
        LocalRun(graph, {}, tmp_path / "run", on_change=interrupt).execute()
    signal.signal(signal.SIGINT, before)
    assert time.monotonic() - begin < 20
    task = record(tmp_path / "run")["tasks"]["bad"]
    assert (task["state"], task["attempts"], task["exit_code"]) == ("stopped", 1, 137)


def test_an_interrupted_task_goes_on_in_its_folder(compiled, tmp_path):
    """A task that failed is run again with what it left; one whose arguments changed starts from nothing."""
    first = pipeline({"a": container(COUNT.format("sys.exit(1)"), ("out",))})
    assert LocalRun(load_pipeline(compiled(first)), {}, tmp_path / "run").execute() == 1
    assert LocalRun(load_pipeline(compiled(first)), {}, tmp_path / "run").execute() == 1
    assert (tmp_path / "run/tasks/a/count").read_text() == "2"
    second = pipeline({"a": container(COUNT.format("o.write_text('done')"), ("out",))})
    assert LocalRun(load_pipeline(compiled(second)), {}, tmp_path / "run").execute() == 0
    assert (tmp_path / "run/tasks/a/count").read_text() == "1"


def test_output_parameters_and_placeholders(compiled, tmp_path):
    run = LocalRun(load_pipeline(compiled(sums())), {}, tmp_path / "run")
    assert run.execute() == 0, (tmp_path / "run/tasks/use/log.txt").read_text()
    assert run.tasks["make"].parameters == {"sum": 21}
    assert (tmp_path / "run/tasks/use/out").read_text() == "it's 21"


def test_a_command_this_environment_lacks_is_refused_before_any_task(compiled, tmp_path):
    steps = {"a": container(WRITE.format("a"), ("out",)), "b": container("", ())}
    spec = pipeline(steps)
    spec["deploymentSpec"]["executors"]["exec-b"]["container"] = {"image": "org/x:1", "command": ["no-such-command"]}
    with pytest.raises(GraphError, match=r"task b: .*no-such-command.*org/x:1"):
        LocalRun(load_pipeline(compiled(spec)), {}, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_folder_of_another_pipeline_is_left_alone(compiled, tmp_path):
    spec = pipeline({"a": container(WRITE.format("a"), ("out",))})
    assert LocalRun(load_pipeline(compiled(spec)), {}, tmp_path / "run").execute() == 0
    spec["pipelineInfo"]["name"] = "other"
    with pytest.raises(UserError, match="holds a run of pipeline test"):
        LocalRun(load_pipeline(compiled(spec)), {}, tmp_path / "run")


def test_two_runs_in_one_folder_do_not_mix(compiled, tmp_path):
    step = container("import sys, pathlib, time; pathlib.Path(sys.argv[1]).touch(); time.sleep(60)", ("out",))
    graph = load_pipeline(compiled(pipeline({"long": step})))
    command = [str(Path(sys.executable).parent / "stereo-pipelines"), "run", str(tmp_path / "pipeline.yaml")]
    first = subprocess.Popen([*command, "-o", str(tmp_path / "run")], stdout=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 30
        while not (tmp_path / "run/tasks/long/out").exists():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        with pytest.raises(GraphError, match="another run"):
            LocalRun(graph, {}, tmp_path / "run").execute()
        assert record(tmp_path / "run")["tasks"]["long"]["state"] == "running"
    finally:
        first.terminate()
        assert first.wait(30) == 143


def test_who_looks_at_a_run_does_not_keep_it_from_starting(compiled, tmp_path):
    graph = load_pipeline(compiled(pipeline({"a": container(WRITE.format("a"), ("out",))})))
    assert LocalRun(graph, {}, tmp_path / "run").execute() == 0
    with (tmp_path / "run" / LOCK).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_SH)
        threading.Timer(0.1, fcntl.flock, (lock, fcntl.LOCK_UN)).start()
        assert LocalRun(graph, {}, tmp_path / "run").execute() == 0


@pytest.fixture
def fake_podman(tmp_path, monkeypatch) -> Path:
    """Notes in a file what it is told to do, and lists one container."""
    program, told = tmp_path / "bin/podman", tmp_path / "told"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\necho "$@" >> {told}\necho c0ffee\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    return told


def test_containers_of_a_killed_run_are_ended_by_a_run_without(compiled, tmp_path, fake_podman):
    graph = load_pipeline(compiled(pipeline({"a": container(WRITE.format("a"), ("out",))})))
    assert LocalRun(graph, {}, tmp_path / "run").execute() == 0
    assert not fake_podman.exists() and record(tmp_path / "run")["runner"] == "process"
    (tmp_path / "run/run.json").write_text(json.dumps(record(tmp_path / "run") | {"runner": "podman"}))
    assert LocalRun(graph, {}, tmp_path / "run").execute() == 0
    listed, removed = fake_podman.read_text().splitlines()
    assert listed.endswith(f"label=stereo-pipelines.run={tmp_path / 'run'}")
    assert removed == "rm --force --volumes c0ffee"


def test_a_container_that_reads_storage_sees_the_files_of_credentials(compiled, tmp_path, fake_podman, monkeypatch):
    task = load_pipeline(compiled(pipeline({"a": container("", ())}))).tasks["a"]
    token, place = tmp_path / "token", tmp_path / "run/tasks/a"
    place.mkdir(parents=True)
    token.touch()
    monkeypatch.setenv("AWS_WEB_IDENTITY_TOKEN_FILE", str(token))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    for uri, seen in (("s3://bucket/x", True), ("/data/x", False)):
        message = {"inputs": {"parameterValues": {"uri": uri}, "artifacts": {}}}
        with Containers("podman").container(task, ["true"], place, message, []) as line:
            assert (f"--mount=type=bind,src={token},dst={token},ro" in line) == seen
            assert (f"--env=AWS_WEB_IDENTITY_TOKEN_FILE={token}" in line) == seen
            assert not [part for part in line if "src=" + str(tmp_path / "none") in part]


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 143)])
def test_interruption_stops_the_children(compiled, tmp_path, signum, code):
    """The step's own child too, which is in its process group."""
    step = container(
        "import subprocess, sys, pathlib, time; out = pathlib.Path(sys.argv[1])\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        "out.with_name('pid').write_text(str(child.pid)); time.sleep(60)",
        ("out",),
    )
    path = compiled(
        pipeline(
            {"long": step, "after": container(WRITE.format("x"), ("out",), ("in",))}, {"after": {"in": ("long", "out")}}
        )
    )
    command = [str(Path(sys.executable).parent / "stereo-pipelines"), "run", str(path), "-o", str(tmp_path / "run")]
    # A shell's background job ignores SIGINT, nohup's SIGHUP, and children inherit that: the tests may run in one.
    heed = functools.partial(signal.signal, signum, signal.SIG_DFL)
    engine = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, preexec_fn=heed)
    pid = tmp_path / "run/tasks/long/pid"
    deadline = time.monotonic() + 30
    while not (pid.is_file() and pid.read_text()):
        assert time.monotonic() < deadline and engine.poll() is None, engine.communicate()[0].decode()
        time.sleep(0.05)
    engine.send_signal(signum)
    output = engine.communicate(timeout=30)[0].decode()
    assert engine.returncode == code, output
    saved = record(tmp_path / "run")
    assert saved["state"] == "stopped"
    assert "test: stopped" in (tmp_path / "run/report.html").read_text()
    assert {name: task["state"] for name, task in saved["tasks"].items()} == {"long": "stopped", "after": "stopped"}
    time.sleep(0.2)
    assert not _runs(int(pid.read_text()))


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"  # a zombie has ended; nobody here may reap it


STEPS = {
    "a": container(COUNT.format("o.write_text('a')"), ("out",)),
    "b": container(APPEND.format("b"), ("out",), ("in",)),
    "c": container(APPEND.format("c"), ("out",), ("in",)),
    "other": container(WRITE.format("x"), ("out",)),
}
WIRES = {"b": {"in": ("a", "out")}, "c": {"in": ("b", "out")}}


def killed_at_once(graph, folder: Path, patch) -> None:
    """kill -9 as soon as the run is on record, of an engine in a process of its own."""
    child = os.fork()
    if not child:
        try:
            LocalRun(graph, {}, folder, on_change=lambda _: os.kill(os.getpid(), signal.SIGKILL)).execute()
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


def interrupted_while_it_checks(graph, folder: Path, patch) -> None:
    def digest(path: Path) -> str:
        os.kill(os.getpid(), signal.SIGINT)
        return sha256_of(path)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    with patch.context() as here, pytest.raises(KeyboardInterrupt):
        here.setattr(local, "sha256_of", digest)
        LocalRun(graph, {}, folder, parallel=1).execute()
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("cut_off", [killed_at_once, interrupted_while_it_checks])
def test_a_finished_run_that_is_cut_off_while_it_is_looked_at_stays_finished(compiled, tmp_path, monkeypatch, cut_off):
    graph = load_pipeline(compiled(pipeline(STEPS, WIRES)))
    assert LocalRun(graph, {}, tmp_path / "run").execute() == 0
    for _ in range(2):
        cut_off(graph, tmp_path / "run", monkeypatch)
        assert "stopped" in {task.state for task in read_record(tmp_path / "run").tasks.values()}
    only = LocalRun(graph, {}, tmp_path / "run", only="c")
    assert only.execute() == 0 and states(only)["b"] == "reused"
    again = LocalRun(graph, {}, tmp_path / "run")
    assert again.execute() == 0 and set(states(again).values()) == {"reused"}


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


def test_from_a_step_on(compiled, tmp_path):
    graph = load_pipeline(compiled(pipeline(STEPS, WIRES)))
    assert LocalRun(graph, {}, tmp_path / "run", from_step="b").execute() == 0, "nothing to take over yet"
    again = LocalRun(graph, {}, tmp_path / "run", from_step="b")
    assert again.execute() == 0
    assert states(again) == {"a": "reused", "b": "succeeded", "c": "succeeded", "other": "reused"}
    with pytest.raises(GraphError, match=r"--from: .* no step othr; did you mean other\?"):
        LocalRun(graph, {}, tmp_path / "run", from_step="othr")


def test_only_one_step(compiled, tmp_path):
    graph = load_pipeline(compiled(pipeline(STEPS, WIRES)))
    with pytest.raises(GraphError, match=r"it needs a, of which .* holds no result"):
        LocalRun(graph, {}, tmp_path / "run", only="b")
    assert LocalRun(graph, {}, tmp_path / "run", only="a").execute() == 0
    assert {n: t["state"] for n, t in record(tmp_path / "run")["tasks"].items()} == {
        "a": "succeeded",
        "b": "stopped",
        "c": "stopped",
        "other": "stopped",
    }
    assert LocalRun(graph, {}, tmp_path / "run", only="b").execute() == 0
    assert (tmp_path / "run/tasks/b/out").read_text() == "ab" and not (tmp_path / "run/tasks/c").exists()
    (tmp_path / "run/tasks/a/out").write_text("z")
    with pytest.raises(GraphError, match="results of a changed"):
        LocalRun(graph, {}, tmp_path / "run", only="b").execute()


def test_one_step_with_other_parameters(compiled, tmp_path):
    """What it needs must be what these parameters make; what it leaves behind is told to be older."""
    graph = load_pipeline(compiled(sums()))
    assert LocalRun(graph, {"n": 20}, tmp_path / "run").execute() == 0
    with pytest.raises(GraphError, match="--only: make was made with other parameters"):
        LocalRun(graph, {"n": 30}, tmp_path / "run", only="use").execute()
    assert record(tmp_path / "run")["arguments"] == {"n": 20}
    assert LocalRun(graph, {"n": 30}, tmp_path / "run", only="make").execute() == 0
    assert "older than its inputs" in record(tmp_path / "run")["tasks"]["use"]["message"]
    assert LocalRun(graph, {"n": 30}, tmp_path / "run", only="use").execute() == 0
    assert record(tmp_path / "run")["tasks"]["use"]["message"] == ""
    assert LocalRun(graph, {"n": 30}, tmp_path / "run", only="make").execute() == 0
    assert record(tmp_path / "run")["tasks"]["use"]["message"] == "", "the same came out"


def gpu_steps(count: int, names: str, code: str = "") -> dict:
    """Steps that ask for `count` GPUs, note when they begin and end, and write which GPUs they see."""
    code = code or (
        "import os, pathlib, sys, time; o = pathlib.Path(sys.argv[1]); log = o.parents[2] / 'times'\n"
        "note = lambda word: os.write(os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT), word.encode())\n"
        "note('('); time.sleep(0.2); note(')'); o.write_text(os.environ.get('CUDA_VISIBLE_DEVICES', 'unset'))"
    )
    spec = pipeline({name: container(code, ("out",)) for name in names})
    for executor in spec["deploymentSpec"]["executors"].values():
        executor["container"]["resources"] = {"accelerator": {"count": str(count), "type": "nvidia.com/gpu"}}
    return spec


def seen(folder: Path, names: str) -> list[str]:
    return [(folder / f"tasks/{name}/out").read_text() for name in names]


def test_tasks_have_their_gpus_for_themselves(compiled, tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,GPU-7")
    graph = load_pipeline(compiled(gpu_steps(2, "abc")))
    assert LocalRun(graph, {}, tmp_path / "run", parallel=3).execute() == 0
    assert seen(tmp_path / "run", "abc") == ["4,GPU-7"] * 3
    assert (tmp_path / "run/times").read_text() == "()()()", "one after the other, though three may run"

    meet = (
        "import os, pathlib, sys, time; o = pathlib.Path(sys.argv[1])\no.write_text(os.environ['CUDA_VISIBLE_DEVICES'])"
    )
    meet += "\nend = time.time() + 20\nwhile len(list(o.parents[1].glob('*/out'))) < 2: assert time.time() < end"
    graph = load_pipeline(compiled(gpu_steps(1, "ab", meet)))
    assert LocalRun(graph, {}, tmp_path / "two", parallel=2).execute() == 0
    assert sorted(seen(tmp_path / "two", "ab")) == ["4", "GPU-7"]


def test_gpus_that_are_not_there(compiled, tmp_path, monkeypatch):
    graph = load_pipeline(compiled(gpu_steps(2, "a")))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    with pytest.raises(GraphError, match="task a: it asks for 2 GPUs and 1 are visible here"):
        LocalRun(graph, {}, tmp_path / "run")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert LocalRun(graph, {}, tmp_path / "run").execute() == 0
    assert seen(tmp_path / "run", "a") == [""]


@pytest.mark.parametrize(
    ("says", "code", "gpus"),
    [("0\n1", 0, ["0", "1"]), ("No devices were found", 0, []), ("No devices were found", 6, []), ("0", 9, [])],
)
def test_gpus_are_those_that_the_driver_lists(tmp_path, monkeypatch, says, code, gpus):
    smi = tmp_path / "nvidia-smi"
    smi.write_text(f"#!/bin/sh\necho '{says}'\nexit {code}\n")
    smi.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert local.visible_gpus() == gpus


def test_no_more_tasks_at_a_time_than_parallel(compiled, tmp_path, monkeypatch):
    graph = load_pipeline(compiled(gpu_steps(0, "abc")))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5")
    assert LocalRun(graph, {}, tmp_path / "run", parallel=1).execute() == 0
    assert (tmp_path / "run/times").read_text() == "()()()"
    assert seen(tmp_path / "run", "abc") == ["5"] * 3, "who asks for none sees what the engine sees"

    graph = load_pipeline(compiled(gpu_steps(0, "abcdef")))
    assert LocalRun(graph, {}, tmp_path / "two", parallel=2).execute() == 0
    at_once = list(itertools.accumulate(1 if mark == "(" else -1 for mark in (tmp_path / "two/times").read_text()))
    assert (max(at_once), at_once[-1]) == (2, 0)


CHAIN = (
    "import pathlib, sys, time; *i, o = map(pathlib.Path, sys.argv[1:]); t = o.with_name('partial')\n"
    "with t.open('w') as file:\n"
    "    file.write(''.join(p.read_text() for p in i))\n"
    "    for _ in range(20): file.write('{}'); file.flush(); time.sleep(0.02)\n"
    "t.rename(o)"
)


@pytest.mark.slow
def test_ten_kills_lose_nothing(compiled, tmp_path):
    """kill -9 of the engine at random moments, every other time with its steps: what ended stays, and is whole."""
    names, moments = "abcdefgh", random.Random(5)
    steps = {n: container(CHAIN.format(n), ("out",), ("in",) if n > "a" else ()) for n in names}
    wires = {n: {"in": (before, "out")} for before, n in itertools.pairwise(names)}
    path, folder = compiled(pipeline(steps, wires)), tmp_path / "run"
    command = [str(Path(sys.executable).parent / "stereo-pipelines"), "run", str(path), "-o", str(folder)]
    mark = f"{MARK}={folder}".encode()
    ended: dict[str, int] = {}  # step -> when its output was made
    for kill in range(10):
        engine = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline, begun = time.monotonic() + 30, _written(folder)
        while engine.poll() is None and not (_has_a_running_step(engine.pid) if kill % 3 else _written(folder) > begun):
            assert time.monotonic() < deadline
            time.sleep(0.001)
        time.sleep(moments.uniform(0.0, 0.7 if kill % 3 else 0.02))  # or while it looks at what is there
        engine.kill()
        for pid in _processes_with(mark) if kill % 2 else ():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        engine.wait()
        tasks = record(folder)["tasks"] if (folder / "run.json").exists() else {}
        assert all(tasks[name]["artifacts"] for name in ended), "what had ended is still on record"
        for name, task in tasks.items():
            for made in task["artifacts"].values():  # run.json is whole at any moment
                assert sha256_of(folder / made["path"]) == made["sha256"]
                when = (folder / made["path"]).stat().st_mtime_ns
                assert ended.setdefault(name, when) == when, f"{name} ran again"
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    assert len(ended) > 1, "the kills came while there was something to lose"
    assert (folder / "tasks/h/out").read_text() == "".join(n * 20 for n in names)
    assert not list(folder.rglob("partial")) and not list(folder.glob(".run.*"))
    assert not _processes_with(mark)


def _has_a_running_step(engine: int) -> bool:
    return any(path.read_text() for path in Path(f"/proc/{engine}/task").glob("*/children"))


def _written(folder: Path) -> int:
    """When run.json was."""
    return (folder / "run.json").stat().st_mtime_ns if (folder / "run.json").exists() else 0


@pytest.mark.slow
def test_a_training_goes_on_after_its_engine_was_killed(compiled_once, tmp_path):
    """The real step, which the killed engine left running; a look at the run that is cut off costs nothing either."""
    path, folder = compiled_once(training), tmp_path / "run"
    command = [str(Path(sys.executable).parent / "stereo-pipelines"), "run", str(path), "-o", str(folder)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as engine:
        while not list(folder.glob("tasks/train/results/**/model_epoch_*.pth")):
            assert engine.poll() is None, (folder / "tasks/train/log.txt").read_text()
            time.sleep(0.05)
        engine.kill()
    killed_at_once(load_pipeline(path), folder, None)
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    tasks = record(folder)["tasks"]
    assert {name: task["state"] for name, task in tasks.items()} == {
        "synthesize": "reused",
        "convert": "reused",
        "train": "succeeded",
    }
    status = next(folder.glob("tasks/train/results/**/status.json")).read_text()
    assert "Resuming training from checkpoint" in status
