"""What evaluate and inference do at the same time before their first result."""

from __future__ import annotations

import json
import multiprocessing
import subprocess
import sys

import pytest

from stereo_core.run.perform import perform
from stereo_core.spec import spec_from_dict

SPLITS = {"evaluate": "test", "inference": "infer"}
# Prints when Python forks and when it opens the file of weights, then runs the command.
HEARD = """
import os, sys
weights, parent = sys.argv.pop(1), os.getpid()
def hear(event, arguments):
    if event == "os.fork" or event == "open" and arguments[0] == weights:
        os.getpid() == parent and print("HEARD", event, flush=True)
sys.addaudithook(hear)
from stereo_core.cli import main
main()
"""


@pytest.mark.parametrize("verb", SPLITS)
def test_loader_processes_start_before_the_weights_are_read(verb, scenes, split, tiny_checkpoint, tmp_path):
    dataset = {f"{SPLITS[verb]}_dataset": split(scenes / "list.txt") | {"workers": 1}}
    keys = {"dataset": dataset, "model": {"valid_iters": 1}, "results_dir": str(tmp_path)}
    (tmp_path / "spec.yaml").write_text(json.dumps(keys))  # JSON is YAML
    command = [verb, "-e", str(tmp_path / "spec.yaml"), f"{verb}.checkpoint={tiny_checkpoint}"]
    run = subprocess.run(
        [sys.executable, "-c", HEARD, str(tiny_checkpoint), *command],
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    heard = [line.split()[1] for line in run.stdout.splitlines() if line.startswith("HEARD")]
    assert heard.index("os.fork") < heard.index("open")


@pytest.mark.parametrize("verb", SPLITS)
def test_damaged_weights_are_named_and_leave_no_process(
    verb, scenes, split, tiny_checkpoint, tmp_path, status_lines, capsys
):
    damaged = tmp_path / "damaged.pth"
    damaged.write_bytes(tiny_checkpoint.read_bytes()[:1000])
    dataset = {f"{SPLITS[verb]}_dataset": split(scenes / "list.txt") | {"workers": 1}}
    keys = {"checkpoint": str(damaged), "results_dir": str(tmp_path / "out")}
    assert perform(verb, spec_from_dict(verb, {"dataset": dataset, verb: keys})) == 2
    assert not multiprocessing.active_children()
    message = status_lines(tmp_path / "out")[-1]["message"]
    assert f"{damaged}: the file is truncated or damaged" in message
    error = capsys.readouterr().err
    assert message.split(": ", 1)[1] in error and "Traceback" not in error
