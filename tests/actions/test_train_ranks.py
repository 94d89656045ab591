"""Training in two processes as a user starts it: files, signals, kills, and going on."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from training_runs import MODEL, assert_same, load

from stereo_core.models import load_model

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

DEPTH_NET = [str(Path(sys.executable).with_name("depth_net"))]
MODULE = [sys.executable, "-m", "stereo_core.cli"]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "stereo_core.cli"]


@pytest.fixture(scope="module")
def spec_file(scenes, split, tmp_path_factory):
    """Three epochs of two steps on two devices, three images to validate, a checkpoint after every step."""
    folder = tmp_path_factory.mktemp("spec")
    lines = (scenes / "list.txt").read_text().splitlines()
    (folder / "val.txt").write_text("\n".join(lines[:3]) + "\n")
    dataset = {"max_disparity": 64, "train_dataset": split(scenes / "list.txt", 1)}
    dataset["train_dataset"]["augmentation"] = {"crop_size": [32, 64]}
    dataset["val_dataset"] = split(folder / "val.txt", 1, data_root=str(scenes))
    train = {"num_gpus": 2, "num_epochs": 3, "optim": {"lr": 1e-3, "warmup_steps": 0}, "keep_checkpoints": 0}
    train |= {"checkpoint_interval": 1, "checkpoint_interval_unit": "step", "resume_training_checkpoint_path": "auto"}
    path = folder / "spec.yaml"
    path.write_text("# mine\n" + yaml.safe_dump({"dataset": dataset, "model": MODEL, "train": train}))
    return path


def begin(spec: Path, folder: Path, *overrides: str, command=DEPTH_NET) -> subprocess.Popen:
    folder.mkdir(exist_ok=True)
    with (folder / "log.txt").open("a") as log:
        arguments = [*command, "train", "-e", str(spec), f"train.results_dir={folder}", *overrides]
        return subprocess.Popen(arguments, stderr=log, stdout=log)


def lines_of(folder: Path) -> list[dict]:
    path = folder / "status.json"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def wait_for_a_checkpoint(process: subprocess.Popen, folder: Path) -> None:
    while process.poll() is None and not (folder / "dn_model_latest.pth").is_symlink():
        time.sleep(0.02)


@pytest.fixture(scope="module")
def undisturbed(spec_file, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    text = spec_file.read_text()
    assert begin(spec_file, folder).wait() == 0
    assert spec_file.read_text() == text  # TAO's item 50
    return folder


def test_one_process_writes_what_one_alone_would(undisturbed):
    lines = lines_of(undisturbed)
    progress = [(x["epoch"], x["step"]) for x in lines if x["message"] == "Training loop in progress"]
    assert progress == [(0, 2), (1, 4), (2, 6)]
    ends = [line for line in lines if line["status"] in ("SUCCESS", "FAILURE")]
    assert [line["status"] for line in ends] == ["SUCCESS"] and "3 epochs, 6 steps" in ends[0]["message"]
    names = [f"model_epoch_{(step - 1) // 2:03d}_step_{step:05d}.pth" for step in range(1, 7)]
    assert sorted(path.name for path in undisturbed.glob("model_epoch_*.pth")) == names
    events = (undisturbed / "lightning_logs" / "version_1").glob("events.*")
    assert len({path.name.rsplit(".", 2)[1] for path in events}) == 1  # process ids
    assert load_model(undisturbed / "dn_model_latest.pth").config.preset == "tiny"
    assert "2 processes on the CPU (gloo)" in (undisturbed / "log.txt").read_text()


def test_its_validation_is_evaluates(undisturbed, spec_file, tmp_path):
    """No image twice, none left out: three images on two processes, against evaluate in one."""
    data = yaml.safe_load(spec_file.read_text())
    data["dataset"]["test_dataset"] = data["dataset"].pop("val_dataset")
    path = tmp_path / "evaluate.yaml"
    del data["train"]
    path.write_text(yaml.safe_dump(data))
    keys = [f"evaluate.checkpoint={undisturbed / 'dn_model_latest.pth'}", f"evaluate.results_dir={tmp_path}"]
    subprocess.run([*DEPTH_NET, "evaluate", "-e", str(path), *keys], check=True, capture_output=True)
    said = json.loads((tmp_path / "results.json").read_text())
    found = [line for line in lines_of(undisturbed) if line["message"] == "Eval metrics generated."][-1]["kpi"]
    for name in ("epe", "bp1", "d1", "rmse", "epe_pixel", "rmse_pixel"):
        assert found[name] == pytest.approx(said[name], rel=1e-6), name  # Lightning logs float32


def test_sigterm_ends_in_one_checkpoint_and_the_run_goes_on(undisturbed, spec_file, tmp_path):
    process = begin(spec_file, tmp_path, command=MODULE)
    wait_for_a_checkpoint(process, tmp_path)
    process.send_signal(signal.SIGTERM)
    assert process.wait() == 143
    assert lines_of(tmp_path)[-1]["status"] == "FAILURE" and "SIGTERM" in lines_of(tmp_path)[-1]["message"]
    step = load(tmp_path / "dn_model_latest.pth")["global_step"]
    assert 1 <= step < 6
    assert begin(spec_file, tmp_path, command=MODULE).wait() == 0
    resumed = [x["message"] for x in lines_of(tmp_path) if x["message"].startswith("Resuming training")]
    assert len(resumed) == 1 and f"step_{step:05d}" in resumed[0]
    assert_same(load(tmp_path / "dn_model_latest.pth"), load(undisturbed / "dn_model_latest.pth"))


def test_a_killed_rank_ends_the_run_and_it_goes_on(undisturbed, spec_file, tmp_path):
    process = begin(spec_file, tmp_path)
    wait_for_a_checkpoint(process, tmp_path)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    ranks = [int(pid) for pid in children if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    assert len(ranks) == 2
    os.kill(ranks[1], signal.SIGKILL)
    assert process.wait() == 1
    last = lines_of(tmp_path)[-1]
    assert last["status"] == "FAILURE"
    assert re.search(rf"the process of rank 1 \(pid {ranks[1]}\) was killed by SIGKILL", last["message"])
    assert begin(spec_file, tmp_path).wait() == 0
    assert_same(load(tmp_path / "dn_model_latest.pth"), load(undisturbed / "dn_model_latest.pth"))


def test_torchrun_starts_the_same_run(undisturbed, spec_file, tmp_path):
    assert begin(spec_file, tmp_path, command=TORCHRUN).wait() == 0
    assert [line["status"] for line in lines_of(tmp_path)].count("SUCCESS") == 1
    assert (tmp_path / "log.txt").read_text().count("Execution status: PASS") == 2
    assert_same(load(tmp_path / "dn_model_latest.pth"), load(undisturbed / "dn_model_latest.pth"))


def nodes(spec: Path, folder: Path, second: str) -> tuple[list[int], list[str]]:
    """Exit codes and logs of two nodes, one process each; an override for the second."""
    with socket.socket() as probe:
        probe.bind(("", 0))
        port = str(probe.getsockname()[1])
    both = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "NUM_GPU_PER_NODE": "1"}
    started = []
    for rank, override in enumerate(["train.seed=1234", second]):
        command = [*DEPTH_NET, "train", "-e", str(spec), f"train.results_dir={folder}", override]
        environment = os.environ | both | {"NODE_RANK": str(rank)}
        started.append(subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True))
    logs = [process.communicate()[1] for process in started]
    return [process.returncode for process in started], logs


def test_two_nodes_with_taos_variables(undisturbed, spec_file, tmp_path):
    text = spec_file.read_bytes()
    assert nodes(spec_file, tmp_path, "train.seed=1234")[0] == [0, 0]
    assert spec_file.read_bytes() == text  # TAO's item 50: there each node writes its variables into it
    assert [line["status"] for line in lines_of(tmp_path)].count("SUCCESS") == 1
    assert_same(load(tmp_path / "dn_model_latest.pth"), load(undisturbed / "dn_model_latest.pth"))


def test_nodes_with_different_specs_do_not_train(spec_file, tmp_path):
    codes, logs = nodes(spec_file, tmp_path, "train.optim.lr=1e-4")
    assert codes == [2, 2] and all("train.optim: the values differ between the 2 nodes" in log for log in logs)


def test_a_kubeflow_task_publishes_once(scenes, tmp_path):
    """depth_net-launch with two processes: the parent alone writes the ports."""
    (tmp_path / "lists").mkdir()
    shutil.copy(scenes / "list.txt", tmp_path / "lists" / "train.txt")
    paths = {"images": scenes, "annotations": tmp_path / "lists", "checkpoint": tmp_path / "checkpoint"}
    ports = {port: {"artifacts": [{"name": port, "uri": str(path)}]} for port, path in paths.items()}
    train = {"num_gpus": 2.0, "num_epochs": 1.0, "checkpoint_interval": 1.0}
    crop = {"train_dataset": {"batch_size": 1.0, "workers": 0.0, "augmentation": {"crop_size": [32.0, 64.0]}}}
    spec = {"model": MODEL, "train": train, "dataset": crop | {"max_disparity": 64.0}}
    inputs = {"parameterValues": {"spec": spec}, "artifacts": {port: ports[port] for port in ("images", "annotations")}}
    output = tmp_path / "task" / "executor_output.json"
    outputs = {"artifacts": {"checkpoint": ports["checkpoint"]}, "outputFile": str(output)}
    command = [str(Path(sys.executable).with_name("depth_net-launch")), "train"]
    done = subprocess.run(
        [*command, json.dumps({"inputs": inputs, "outputs": outputs})], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    (published,) = json.loads(output.read_text())["artifacts"]["checkpoint"]["artifacts"]
    assert load(tmp_path / "checkpoint" / published["metadata"]["file"])["global_step"] == 2
    assert done.stdout.count("Train finished successfully") == 1 and "2 processes on the CPU" in done.stderr


def test_fsdp_goes_on_from_ddp_and_back(undisturbed, spec_file, tmp_path):
    """Its checkpoints are whole: one process goes on from them, and anything else loads them.

    One step from the same weights and AdamW state in float32; in a second rounding would grow.
    """
    before = "model_epoch_000_step_00002.pth"
    resume = f"train.resume_training_checkpoint_path={undisturbed / before}"
    assert begin(spec_file, tmp_path, resume, "train.distributed_strategy=fsdp", "train.num_epochs=2").wait() == 0
    found, expected = (load(folder / "model_epoch_001_step_00003.pth") for folder in (tmp_path, undisturbed))
    assert found["state_dict"].keys() == expected["state_dict"].keys()
    states = [content["optimizer_states"][0]["state"] for content in (found, expected)]
    assert states[0].keys() == states[1].keys() and states[0][0]["step"] == 3
    for name, value in expected["state_dict"].items():
        torch.testing.assert_close(found["state_dict"][name], value, rtol=1e-5, atol=1e-6, msg=name)
    for number, state in states[1].items():
        assert states[0][number]["exp_avg"].shape == state["exp_avg"].shape
    assert begin(spec_file, tmp_path, "train.num_gpus=1").wait() == 0
    assert load(tmp_path / "dn_model_latest.pth")["epoch"] == 2
    assert load_model(tmp_path / "dn_model_best.pth").config.preset == "tiny"
