"""Pipelines of the small programs in steps/, and what a run says of them."""

import contextlib
import json
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

from small_ir import container, pipeline

from stereo_core.orchestration.local import LocalRun

STEPS = Path(__file__).with_name("steps")
CLI = str(Path(sys.executable).parent / "stereo-pipelines")
SECONDS = 30  # that a test waits for a process


def step(program: str, *arguments: object, outputs=("out",), inputs=(), **task) -> dict:
    """A step that runs a program of steps/; its arguments come before its inputs and outputs."""
    made = container("", outputs, inputs, **task)
    return made | {"command": [sys.executable, str(STEPS / f"{program}.py"), *map(str, arguments)]}


def write(text: str, *inputs: str) -> dict:
    """A step that writes what it was given and its text."""
    return step("write", text, inputs=inputs)


def chain() -> dict:
    """a -> b -> c, and another one; a counts its starts."""
    steps = {"a": step("count", 1, 0), "b": write("b", "in"), "c": write("c", "in"), "other": write("x")}
    return pipeline(steps, {"b": {"in": ("a", "out")}, "c": {"in": ("b", "out")}})


def limited(spec: dict, name: str, seconds: int) -> tuple[dict, dict]:
    """The documents of a pipeline in which a step has a time limit."""
    limit = {"executors": {f"exec-{name}": {"activeDeadlineSeconds": seconds}}}
    return spec, {"platforms": {"kubernetes": {"deploymentSpec": limit}}}


def saved(folder: Path) -> dict:
    """run.json."""
    return json.loads((folder / "run.json").read_text())


def states(run: LocalRun) -> dict[str, str]:
    return {name: task.state for name, task in run.tasks.items()}


def saved_states(folder: Path) -> dict[str, str]:
    return {name: task["state"] for name, task in saved(folder)["tasks"].items()}


@contextlib.contextmanager
def ctrl_c() -> Iterator[None]:
    """SIGINT raises KeyboardInterrupt, also where a shell's background job ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
