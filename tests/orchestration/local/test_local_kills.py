"""kill -9 of the engine loses nothing."""

import contextlib
import itertools
import os
import random
import signal
import subprocess
import time
from pathlib import Path

import pytest
from flow_steps import training
from local_steps import CLI, SECONDS, saved, saved_states, step
from small_ir import pipeline

from stereo_core.files import sha256_of
from stereo_core.orchestration.local.processes import of_run

pytestmark = pytest.mark.slow

NAMES = "abcdefgh"


@pytest.fixture
def command(compiled, tmp_path) -> list[str]:
    """Runs a chain of steps that write little by little."""
    steps = {name: step("slow_write", name, inputs=("in",) if name > "a" else ()) for name in NAMES}
    wires = {name: {"in": (before, "out")} for before, name in itertools.pairwise(NAMES)}
    return [CLI, "run", str(compiled(pipeline(steps, wires))), "-o", str(tmp_path / "run")]


def test_six_kills_lose_nothing(command, tmp_path):
    """At random moments, every other time with its steps: what ended stays, and is whole."""
    folder, moments = tmp_path / "run", random.Random(5)
    ended: dict[str, int] = {}  # step -> when its output was made
    for kill in range(6):
        _start_and_kill(command, folder, moments, in_a_step=bool(kill % 3), with_steps=bool(kill % 2))
        _check_what_ended(folder, ended)
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    assert len(ended) > 1, "the kills came while there was something to lose"
    assert (folder / "tasks/h/out").read_text() == "".join(name * 20 for name in NAMES)
    assert not list(folder.rglob("partial")) and not list(folder.glob(".run.*"))
    assert not of_run(folder)


def _start_and_kill(command: list[str], folder: Path, moments: random.Random, in_a_step: bool, with_steps: bool):
    """While a step runs, or while the engine looks at what is there."""
    begun, deadline = _written(folder), time.monotonic() + SECONDS
    engine = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while engine.poll() is None and not (_has_a_step(engine.pid) if in_a_step else _written(folder) > begun):
        assert time.monotonic() < deadline
        time.sleep(0.001)
    time.sleep(moments.uniform(0.0, 0.7 if in_a_step else 0.02))
    engine.kill()
    for pid in of_run(folder) if with_steps else ():
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    engine.wait()


def _check_what_ended(folder: Path, ended: dict[str, int]) -> None:
    """`ended` grows by the steps that are on record now."""
    tasks = saved(folder)["tasks"] if (folder / "run.json").exists() else {}
    assert all(tasks[name]["artifacts"] for name in ended), "what had ended is still on record"
    for name, task in tasks.items():
        for made in task["artifacts"].values():  # run.json is whole at any moment
            assert sha256_of(folder / made["path"]) == made["sha256"]
            when = (folder / made["path"]).stat().st_mtime_ns
            assert ended.setdefault(name, when) == when, f"{name} ran again"


def _has_a_step(engine: int) -> bool:
    return any(path.read_text() for path in Path(f"/proc/{engine}/task").glob("*/children"))


def _written(folder: Path) -> int:
    """When run.json was."""
    return (folder / "run.json").stat().st_mtime_ns if (folder / "run.json").exists() else 0


def test_a_training_goes_on_after_its_engine_was_killed(compiled_once, tmp_path):
    """The real step, which the killed engine left running; a look at the run that is cut off costs nothing either."""
    folder = tmp_path / "run"
    command = [CLI, "run", str(compiled_once(training)), "-o", str(folder)]
    _kill(command, lambda: list(folder.glob("tasks/train/results/**/model_epoch_*.pth")))
    begun = _written(folder)
    _kill(command, lambda: _written(folder) > begun)
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    assert saved_states(folder) == {"synthesize": "reused", "convert": "reused", "train": "succeeded"}
    status = next(folder.glob("tasks/train/results/**/status.json")).read_text()
    assert "Resuming training from checkpoint" in status


def _kill(command: list[str], when) -> None:
    """kill -9 of the engine when something is so."""
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as engine:
        while not when():
            assert engine.poll() is None
            time.sleep(0.001)
        engine.kill()
