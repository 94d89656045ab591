"""runtime-cpu: what the image is, and that a pipeline gives the same in its containers as anywhere else."""

import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import yaml
from argo_simulator import Simulator
from docker.models.containers import ContainerCollection
from kfp import components, local
from stereo_components.image import IMAGE

from stereo_core.files import sha256_of
from stereo_core.orchestration.argo import Repository, manifests
from stereo_core.orchestration.compile import compiled_path, pipeline_folders
from stereo_core.orchestration.dag import GraphError
from stereo_core.orchestration.graph import load_pipeline
from stereo_core.orchestration.local import LocalRun
from stereo_core.run.perform import perform
from stereo_core.spec import spec_from_dict

pytestmark = [pytest.mark.container, pytest.mark.timeout(600)]

LOADER = {"batch_size": 1, "workers": 1}
ARGUMENTS = {
    "dataset_name": "FSD",
    "num_epochs": 1,
    "backend": "onnxruntime",
    "convert_spec": {
        "image_dir_pattern": ["left/rgb"],
        "right_dir_pattern": ["right/rgb"],
        "depth_dir_pattern": ["left/disparity"],
        "image_extension": ".png",
        "depth_extension": ".png",
        "split_ratio": 0.5,
    },
    "train_spec": {
        "model": {"preset": "tiny", "stereo_backbone": {"allow_random_backbone": True}, "train_iters": 2},
        "dataset": {
            "max_disparity": 64,
            "train_dataset": {**LOADER, "augmentation": {"crop_size": [64, 96]}},
            "val_dataset": LOADER,
        },
    },
    "evaluate_spec": {"dataset": {"max_disparity": 64, "test_dataset": LOADER}},
    "inference_spec": {"dataset": {"infer_dataset": LOADER}},
    "export_spec": {
        "export": {"input_height": 64, "input_width": 96, "batch_size": 1, "valid_iters": 2, "on_cpu": True}
    },
}


@pytest.fixture(scope="session")
def images(tmp_path_factory):
    """A bucket's folder with stereo pairs."""
    folder = tmp_path_factory.mktemp("bucket") / "pairs"
    parameters = {"num_scenes": 2, "height": 64, "width": 96, "max_disparity": 16, "results_dir": str(folder)}
    assert perform("synthesize", spec_from_dict("synthesize", parameters)) == 0
    return folder


@pytest.fixture(scope="session")
def compiled():
    return next(compiled_path(folder) for folder in pipeline_folders() if folder.name == "train_to_engine")


def inspected(image: str) -> dict:
    return json.loads(subprocess.run(["podman", "image", "inspect", image], capture_output=True).stdout)[0]


def inside(image: str, *command: str, user: str = "4321:0") -> subprocess.CompletedProcess:
    walls = ["--rm", "--network=none", "--read-only", "--cap-drop=all", f"--user={user}"]
    return subprocess.run(["podman", "run", *walls, image, *command], capture_output=True, text=True)


def test_the_image_holds_what_steps_need_and_no_more(image):
    look = """
import getpass, importlib.util, json, os, pathlib, tempfile
MODULES = ("stereo_core", "torch", "onnxruntime", "torchao", "optuna", "wandb", "mlflow", "kfp", "hera", "pip")
def writable(folder):
    try:
        tempfile.TemporaryFile(dir=folder).close()
        return True
    except OSError:
        return False
print(json.dumps({
    "there": [n for n in MODULES if importlib.util.find_spec(n)],
    "writable": [f for f in ("/", "/opt/stereo", "/etc", "/tmp", "/cache") if writable(f)],
    "user": [os.getuid(), getpass.getuser(), str(pathlib.Path.home())],
}))
"""
    found = inside(image, "python", "-c", look)
    assert found.returncode == 0, found.stderr
    assert json.loads(found.stdout) == {
        "there": ["stereo_core", "torch", "onnxruntime", "torchao", "optuna", "wandb", "mlflow"],
        "writable": ["/tmp", "/cache"],
        "user": [4321, "stereo", "/cache"],
    }
    config = inspected(image)["Config"]
    labels = {name.rpartition(".")[2]: value for name, value in config["Labels"].items() if "opencontainers" in name}
    assert config["User"] == "10001:0" and labels["title"] == "stereo-pipelines runtime-cpu"
    assert labels["version"] and len(labels["revision"]) == 40
    assert labels["name"].startswith("localhost/stereo-base@sha256:")  # what it was built from


def test_health_check(image):
    """What the image says itself, as another user than the image's."""
    how, *command = inspected(image)["Healthcheck"]["Test"]
    assert (how, command[:2]) == ("CMD", ["depth_net", "doctor"])
    found = inside(image, *command)
    assert found.returncode == 0 and "No problem found" in found.stdout, found.stdout + found.stderr


def test_train_to_engine_gives_the_same_everywhere(podman, image, images, compiled, tmp_path):
    """As processes, in containers and by Argo's rules: the same lists, figures and sizes."""
    graph = load_pipeline(compiled)
    given = {**ARGUMENTS, "images_uri": str(images)}
    runs = {
        "processes": LocalRun(graph, given, tmp_path / "processes"),
        "containers": LocalRun(graph, given, tmp_path / "containers", containers=podman),
    }
    there = manifests(graph, {**ARGUMENTS, "images_uri": "s3://bucket/pairs"}, Repository.of("s3://artifacts"))
    argo = Simulator(there, tmp_path / "argo", {"bucket": images.parent})
    with ThreadPoolExecutor() as pool:  # each for itself leaves a core idle half of the time
        codes, simulated = pool.map(LocalRun.execute, runs.values()), pool.submit(argo.run)
        assert list(codes) == [0, 0], [made.message for run in runs.values() for made in run.tasks.values()]
        simulated.result()

    ours, theirs = (runs[name].tasks for name in ("processes", "containers"))
    steps = [name for name, task in graph.tasks.items() if name != "importer" and not task.exit]
    assert len(steps) == 8
    for task in steps:
        said = json.loads(argo.outputs[task]["executor-output"])["artifacts"]
        for port, made in ours[task].artifacts.items():
            for other in (theirs[task].artifacts[port].metadata, said[port]["artifacts"][0]["metadata"]):
                assert other.keys() == made.metadata.keys(), (task, port)
                if port in ("annotations", "onnx", "engine"):
                    assert other["sha256"] == made.metadata["sha256"], (task, port)
                for name in ("epe", "epe_pixel", "bp3", "d1", "rmse", "initial_epe"):
                    if name in made.metadata:
                        assert other[name] == pytest.approx(made.metadata[name], abs=1e-6), (task, name)
    for task in ("inference", "trt-inference"):  # results.json beside the pictures holds times
        made = [run.folder / run.tasks[task].artifacts["disparity"].path for run in runs.values()]
        made.append(argo.stored[f"tasks.{task}.outputs.artifacts.disparity"])
        assert len({sha256_of(folder / "disparity_png16") for folder in made}) == 1, task
    assert {"epe", "rmse"} <= ours["trt-evaluate"].artifacts["metrics"].metadata.keys()
    folder = runs["containers"].folder
    assert {path.stat().st_uid for path in folder.rglob("*")} == {os.getuid()}


@pytest.fixture
def docker_host(podman, tmp_path_factory, monkeypatch):
    """podman's service, which speaks docker's protocol.

    kfp asks docker to remove each container when it ends, and takes a container that is not there any more for a
    success; podman is quicker than docker there. So the containers stay until the test ends.
    """
    run = ContainerCollection.run
    monkeypatch.setattr(ContainerCollection, "run", lambda self, **given: run(self, **given | {"auto_remove": False}))
    socket = tmp_path_factory.mktemp("service") / "podman.sock"
    service = subprocess.Popen(["podman", "system", "service", "--time=0", f"unix://{socket}"])
    for _ in range(100):
        if socket.exists():
            break
        time.sleep(0.1)
    monkeypatch.setenv("DOCKER_HOST", f"unix://{socket}")
    yield
    service.terminate()
    service.wait()
    subprocess.run(["podman", "rm", "--all", "--force"], capture_output=True)


def test_kfps_docker_runner_runs_the_demo(no_shell, docker_host, tmp_path):
    """Not root, no network, no shell, nothing to write to but the outputs: each step finds what others left."""
    path, root = tmp_path / "demo.yaml", tmp_path / "kfp"
    compiled = next(compiled_path(folder) for folder in pipeline_folders() if folder.name == "demo")
    path.write_text(compiled.read_text().replace(IMAGE, no_shell))
    root.mkdir()
    root.chmod(0o777)
    ulimits = [{"Name": "nofile", "Soft": 1024, "Hard": 4096}, {"Name": "nproc", "Soft": 4096, "Hard": 4096}]
    walls = {"network_mode": "none", "read_only": True, "cap_drop": ["all"], "user": "4321:0", "ulimits": ulimits}
    scratch = {"tmpfs": {"/tmp": "mode=1777"}, "environment": {"OMP_NUM_THREADS": "1"}}
    local.init(local.DockerRunner(**walls, **scratch), pipeline_root=str(root), raise_on_error=True)
    demo = components.load_component_from_file(str(path))
    demo(rich_scenes=1, num_scenes=2, height=64, width=96, max_disparity=16, **ARGUMENTS)

    (run,) = (folder for folder in root.iterdir() if folder.is_dir())
    made = {}
    for file in run.glob("*/executor_output.json"):
        assert file.stat().st_uid == 4321
        said = json.loads(file.read_text())["artifacts"]
        made[file.parent.name] = {port: entry["artifacts"][0]["metadata"] for port, entry in said.items()}
    files = {
        ("synthesize-2", "images"): "",
        ("convert-2", "annotations"): "",
        ("train", "checkpoint"): "file",
        ("export", "onnx"): "file",
        ("gen-trt-engine", "engine"): "file",
    }
    for (task, port), key in files.items():
        metadata = made[task][port]
        assert metadata["kind"] == port
        assert metadata["sha256"] == sha256_of(run / task / port / metadata.get(key, "")), task
    lists = [(run / "convert-2/annotations" / name).read_text().split() for name in ("train.txt", "val.txt")]
    assert [len(names) for names in lists] == [3, 3]
    for task in ("evaluate", "evaluate-2", "evaluate-3", "trt-evaluate"):
        assert {"epe", "rmse"} <= made[task]["metrics"].keys()
    assert {"inference", "trt-inference"} <= made.keys()


def test_a_failed_step_says_why(podman, image, images, compiled, tmp_path):
    """Exit code and termination message come out of the container; its inputs can not be written."""
    spec = {**ARGUMENTS["convert_spec"], "right_dir_pattern": ["nowhere"]}
    run = LocalRun(
        load_pipeline(compiled),
        {**ARGUMENTS, "images_uri": str(images), "convert_spec": spec},
        tmp_path / "run",
        containers=podman,
    )
    assert run.execute() == 2
    convert = run.tasks["convert"]
    assert convert.exit_code == 2 and convert.message.startswith("exit code 2: data error: ")


def test_an_image_that_is_not_there_is_refused(podman, compiled, tmp_path):
    path = tmp_path / "other.yaml"
    path.write_text(compiled.read_text().replace(IMAGE, "stereo-pipelines/never-built:1"))
    with pytest.raises(GraphError, match="podman has no image stereo-pipelines/never-built:1 here"):
        LocalRun(load_pipeline(path), {"images_uri": "/"}, tmp_path / "run", containers=podman)


SLEEP = """
import pathlib, sys, time
pathlib.Path(sys.argv[1]).write_text("at it")
time.sleep(300)
"""


@pytest.fixture
def sleeper(image, compiled, tmp_path):
    """A pipeline of one step that sleeps, deaf to SIGTERM as PID 1 is by default."""
    spec = next(yaml.safe_load_all(compiled.read_text()))
    container = {
        "image": IMAGE,
        "command": ["python", "-c", SLEEP],
        "args": ["{{$.outputs.parameters['said'].output_file}}"],
    }
    said = {"outputDefinitions": {"parameters": {"said": {"parameterType": "STRING"}}}}
    task = {"taskInfo": {"name": "sleep"}, "componentRef": {"name": "comp-sleep"}}
    small = {
        "pipelineInfo": {"name": "sleeper"},
        "schemaVersion": spec["schemaVersion"],
        "sdkVersion": spec["sdkVersion"],
        "components": {"comp-sleep": {"executorLabel": "exec-sleep", **said}},
        "deploymentSpec": {"executors": {"exec-sleep": {"container": container}}},
        "root": {"dag": {"tasks": {"sleep": task}}},
    }
    deadline = {"exec-sleep": {"activeDeadlineSeconds": "3"}}
    limited = {"platforms": {"kubernetes": {"deploymentSpec": {"executors": deadline}}}}
    (tmp_path / "sleeper.yaml").write_text(yaml.safe_dump(small))
    (tmp_path / "limited.yaml").write_text(yaml.safe_dump_all([small, limited]))
    return tmp_path


def containers() -> list[str]:
    return subprocess.run(["podman", "ps", "--all", "--quiet"], capture_output=True, text=True).stdout.split()


def test_a_killed_engine_leaves_a_container_that_the_next_run_removes(podman, sleeper, monkeypatch):
    monkeypatch.setattr("stereo_core.orchestration.local.processes.GRACE", 1.0)
    code = "from stereo_core.orchestration.cli import main; main()"
    options = ["run", "sleeper.yaml", "-o", "run", "--runner", "podman"]
    engine = subprocess.Popen([sys.executable, "-c", code, *options], cwd=sleeper)
    said = sleeper / "run/tasks/sleep/said"
    for _ in range(600):
        if said.is_file():
            break
        time.sleep(0.1)
    assert said.read_text() == "at it" and len(containers()) == 1
    engine.send_signal(signal.SIGKILL)
    engine.wait()
    run = LocalRun(load_pipeline(sleeper / "limited.yaml"), {}, sleeper / "run", containers=podman)
    assert run.execute() == 1
    assert run.tasks["sleep"].message == "stopped after 3 s (its time limit)"
    assert containers() == []
