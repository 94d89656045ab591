"""Processes of tasks: how they end, and that none is left."""

import functools
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from local_steps import CLI, SECONDS, STEPS, limited, saved, saved_states, step, write
from small_ir import pipeline

from stereo_core.orchestration.local import processes
from stereo_core.orchestration.local.processes import MARK, TIMED_OUT, end_leftovers, of_run, run_to_end

PYTHON = [sys.executable, "-c"]


def ended(code: str, log: Path, limit: float | None = None) -> tuple[int, str]:
    return run_to_end([*PYTHON, code], log, dict(os.environ), limit, threading.Event())


@pytest.mark.parametrize(
    ("code", "limit", "told"),
    [
        ("", None, (0, "exit code 0")),
        ("raise SystemExit(5)", None, (5, "exit code 5")),
        ("import os; os.kill(os.getpid(), 9)", None, (-9, "ended by SIGKILL")),
        ("import time; time.sleep(60)", 0.5, (TIMED_OUT, "stopped after 0.5 s (its time limit)")),
    ],
)
def test_an_end_is_told(tmp_path, code, limit, told):
    assert ended(code, tmp_path / "log", limit) == told


def test_a_log_has_all_attempts(tmp_path):
    for word in ("one", "two"):
        ended(f"import sys; print('{word}', flush=True); print('to stderr', file=sys.stderr)", tmp_path / "log")
    assert (tmp_path / "log").read_text().splitlines() == [
        *("one", "to stderr"),
        "--- another attempt ---",
        *("two", "to stderr"),
    ]


def test_a_process_that_is_stopped_says_so(tmp_path):
    stop = threading.Event()
    stop.set()
    assert run_to_end([*PYTHON, "import time; time.sleep(60)"], tmp_path / "log", dict(os.environ), None, stop) == (
        -signal.SIGTERM,
        "stopped",
    )


def test_a_step_that_is_deaf_to_sigterm_is_killed(execute, tmp_path, monkeypatch):
    monkeypatch.setattr(processes, "GRACE", 0.5)
    assert execute(*limited(pipeline({"deaf": step("deaf")}), "deaf", 2))[0] == 1
    assert (tmp_path / "run/tasks/deaf/heard").exists()
    assert not of_run(tmp_path / "run")


def test_what_a_run_left_is_ended_and_nothing_else(tmp_path):
    """By the mark in its environment, which names the run's folder as a whole."""
    mine, others = (
        subprocess.Popen([sys.executable, STEPS / "wait.py", tmp_path / "out"], env=os.environ | {MARK: str(folder)})
        for folder in (tmp_path / "run", tmp_path / "run-2")
    )
    with mine, others:
        while not of_run(tmp_path / "run-2"):  # until exec is done
            time.sleep(0.01)
        reaper = threading.Thread(target=mine.wait)
        reaper.start()
        end_leftovers(tmp_path / "run")
        reaper.join()
        assert mine.returncode == -signal.SIGTERM and of_run(tmp_path / "run-2") == [others.pid]
        others.kill()


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 143)])
def test_interruption_stops_the_children(compiled, tmp_path, signum, code):
    """The step's own child too, which is in its process group."""
    steps = {"long": step("parent"), "after": write("x", "in")}
    path = compiled(pipeline(steps, {"after": {"in": ("long", "out")}}))
    # A shell's background job ignores SIGINT, nohup's SIGHUP, and children inherit that: the tests may run in one.
    heed = functools.partial(signal.signal, signum, signal.SIG_DFL)
    command = [CLI, "run", str(path), "-o", str(tmp_path / "run")]
    engine = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, preexec_fn=heed)
    pid, deadline = tmp_path / "run/tasks/long/pid", time.monotonic() + SECONDS
    while not (pid.is_file() and pid.read_text()):
        assert time.monotonic() < deadline and engine.poll() is None, engine.communicate()[0].decode()
        time.sleep(0.05)
    engine.send_signal(signum)
    output = engine.communicate(timeout=SECONDS)[0].decode()
    assert engine.returncode == code, output
    assert saved(tmp_path / "run")["state"] == "stopped"
    assert "test: stopped" in (tmp_path / "run/report.html").read_text()
    assert saved_states(tmp_path / "run") == {"long": "stopped", "after": "stopped"}
    assert _ends(int(pid.read_text()))


def _ends(pid: int) -> bool:
    """Whether a process, which is told to, ends; a zombie has: nobody here may reap it."""
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        try:
            if Path(f"/proc/{pid}/stat").read_text().split()[2] == "Z":
                return True
        except (FileNotFoundError, ProcessLookupError):
            return True
        time.sleep(0.05)
    return False
