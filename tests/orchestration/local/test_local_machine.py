"""What steps need of this machine: commands and GPUs."""

import os

import pytest
from local_steps import step, write
from small_ir import pipeline

from stereo_core.orchestration.dag import GraphError
from stereo_core.orchestration.graph import load_pipeline
from stereo_core.orchestration.local.machine import Machine, visible_gpus


def see_gpus(count: int, names: str, program: str = "see_gpus") -> dict:
    """Steps that ask for `count` GPUs and write which they see."""
    spec = pipeline({name: step(program) for name in names})
    for executor in spec["deploymentSpec"]["executors"].values():
        executor["container"]["resources"] = {"accelerator": {"count": str(count), "type": "nvidia.com/gpu"}}
    return spec


def seen(run) -> list[str]:
    return [(run.record.place(name) / "out").read_text() for name in run.tasks]


@pytest.fixture
def gpus(monkeypatch):
    """Say which GPUs are visible."""
    return lambda names: monkeypatch.setenv("CUDA_VISIBLE_DEVICES", names)


def test_tasks_have_their_gpus_for_themselves(execute, gpus, tmp_path):
    gpus("4,GPU-7")
    code, run = execute(see_gpus(2, "abc"), parallel=3)
    assert code == 0 and seen(run) == ["4,GPU-7"] * 3
    assert (tmp_path / "run/times").read_text() == "()()()", "one after the other, though three may run"


def test_tasks_side_by_side_have_different_gpus(execute, gpus):
    gpus("4,GPU-7")
    code, run = execute(see_gpus(1, "ab", "meet_with_gpus"), parallel=2)
    assert code == 0 and sorted(seen(run)) == ["4", "GPU-7"]


def test_who_asks_for_no_gpu_sees_what_the_engine_sees(execute, gpus):
    gpus("4,GPU-7")
    code, run = execute(see_gpus(0, "a"))
    assert code == 0 and seen(run) == ["4,GPU-7"]


def test_gpus_that_are_not_there_are_refused(prepare, gpus):
    gpus("0")
    with pytest.raises(GraphError, match="task a: it requests 2 GPUs, but 1 are visible here;"):
        prepare(see_gpus(2, "a"))


def test_steps_run_without_gpus_where_none_shall_be_seen(execute, gpus):
    gpus("")
    code, run = execute(see_gpus(2, "a"))
    assert code == 0 and seen(run) == [""]


@pytest.mark.parametrize(("visible", "wanted"), [([], 0), (["0", "1"], 2)])
def test_a_task_takes_gpus_where_there_are_any(compiled, visible, wanted):
    task = load_pipeline(compiled(see_gpus(2, "a"))).tasks["a"]
    assert Machine(gpus=visible).gpus_for(task) == wanted


@pytest.mark.parametrize(
    ("says", "code", "wanted"),
    [("0\n1", 0, ["0", "1"]), ("No devices were found", 0, []), ("No devices were found", 6, []), ("0", 9, [])],
)
def test_gpus_are_those_that_the_driver_lists(tmp_path, monkeypatch, says, code, wanted):
    smi = tmp_path / "nvidia-smi"
    smi.write_text(f"#!/bin/sh\necho '{says}'\nexit {code}\n")
    smi.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert visible_gpus() == wanted


def test_a_command_this_environment_lacks_is_refused_before_any_task(prepare, tmp_path):
    spec = pipeline({"a": write("a"), "b": step("write", outputs=())})
    spec["deploymentSpec"]["executors"]["exec-b"]["container"] = {"image": "org/x:1", "command": ["no-such-command"]}
    with pytest.raises(GraphError, match=r"task b: .*no-such-command.*org/x:1"):
        prepare(spec)
    assert not (tmp_path / "run").exists()
