"""A run in its folder: alone, and not lost when it is cut off."""

import errno
import fcntl
import json
import os
import signal
import subprocess
import threading
import time

import pytest
from local_steps import CLI, SECONDS, chain, ctrl_c, saved, saved_states, states, step, write
from small_ir import pipeline

from stereo_core.errors import UserError
from stereo_core.files import sha256_of
from stereo_core.orchestration.dag import GraphError
from stereo_core.orchestration.local import reuse
from stereo_core.orchestration.record import LOCK, read_record

ONE = pipeline({"a": write("a")})


def test_a_folder_of_another_pipeline_is_left_alone(execute, prepare):
    assert execute(ONE)[0] == 0
    with pytest.raises(UserError, match="holds a run of another pipeline, test"):
        prepare(ONE | {"pipelineInfo": {"name": "other"}})


def test_two_runs_in_one_folder_do_not_mix(compiled, execute, tmp_path):
    long = pipeline({"long": step("wait")})
    first = subprocess.Popen([CLI, "run", str(compiled(long)), "-o", str(tmp_path / "run")], stdout=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + SECONDS
        while not (tmp_path / "run/tasks/long/out").exists():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        with pytest.raises(GraphError, match="another run"):
            execute(long)
        assert saved_states(tmp_path / "run") == {"long": "running"}
    finally:
        first.terminate()
        assert first.wait(SECONDS) == 143


def test_who_looks_at_a_run_does_not_keep_it_from_starting(execute, tmp_path):
    assert execute(ONE)[0] == 0
    with (tmp_path / "run" / LOCK).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_SH)
        threading.Timer(0.1, fcntl.flock, (lock, fcntl.LOCK_UN)).start()
        assert execute(ONE)[0] == 0


def test_a_folder_without_locks_is_refused(execute, monkeypatch):
    """A file system of a kind that is not here: its answer to flock."""

    def flock(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(UserError, match=r"has no file locks .* choose a folder on another file system"):
        execute(ONE)


def test_a_folder_that_can_not_be_made_is_named(execute, tmp_path):
    (tmp_path / "run").write_text("a file")
    with pytest.raises(GraphError, match=r"run cannot be used as the run folder: .*; choose another"):
        execute(ONE)


def test_containers_of_a_killed_run_are_ended_by_a_run_without(execute, tmp_path, fake_podman):
    assert execute(ONE)[0] == 0
    assert not fake_podman.exists() and saved(tmp_path / "run")["runner"] == "process"
    (tmp_path / "run/run.json").write_text(json.dumps(saved(tmp_path / "run") | {"runner": "podman"}))
    assert execute(ONE)[0] == 0
    listed, removed = fake_podman.read_text().splitlines()
    assert listed.endswith(f"label=stereo-pipelines.run={tmp_path / 'run'}")
    assert removed == "rm --force --volumes c0ffee"


def killed_at_once(prepare, patch) -> None:
    """kill -9 as soon as the run is on record, of an engine in a process of its own."""
    child = os.fork()
    if not child:
        try:
            prepare(chain(), on_change=lambda _: os.kill(os.getpid(), signal.SIGKILL)).execute()
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


def interrupted_while_it_checks(prepare, patch) -> None:
    def digest(path) -> str:
        os.kill(os.getpid(), signal.SIGINT)
        return sha256_of(path)

    with patch.context() as here, ctrl_c(), pytest.raises(KeyboardInterrupt):
        here.setattr(reuse, "sha256_of", digest)
        prepare(chain(), parallel=1).execute()


@pytest.fixture(params=[killed_at_once, interrupted_while_it_checks])
def cut_off(request, execute, prepare, monkeypatch, tmp_path):
    """A finished run that was twice cut off while it was looked at again."""
    assert execute(chain())[0] == 0
    for _ in range(2):
        request.param(prepare, monkeypatch)
        assert "stopped" in {task.state for task in read_record(tmp_path / "run").tasks.values()}


@pytest.mark.usefixtures("cut_off")
def test_a_finished_run_that_is_cut_off_while_it_is_looked_at_stays_finished(execute):
    code, run = execute(chain())
    assert code == 0 and set(states(run).values()) == {"reused"}


@pytest.mark.usefixtures("cut_off")
def test_one_step_stands_on_a_finished_run_that_was_cut_off(execute):
    code, run = execute(chain(), only="c")
    assert code == 0 and states(run)["b"] == "reused"
