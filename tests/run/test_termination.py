"""Exit codes and termination messages tell what ended a task; a train task that is tried again goes on."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import onnxruntime.capi.onnxruntime_pybind11_state as onnxruntime
import pytest
import torch

from stereo_core.errors import GpuError, ModelError
from stereo_core.run.failure import exit_code
from stereo_core.run.termination import BYTES, error_class, explain
from stereo_core.step.launch import main


def port(path: Path, **metadata) -> dict:
    return {"artifacts": [{"name": path.name, "type": {"schemaTitle": "x"}, "uri": str(path), "metadata": metadata}]}


def task(folder: Path, inputs: dict, outputs: tuple[str, ...], **parameters) -> str:
    outs = {
        "artifacts": {name: port(folder / name) for name in outputs},
        "outputFile": f"{folder}/executor_output.json",
    }
    return json.dumps({"inputs": {"parameterValues": parameters, "artifacts": inputs}, "outputs": outs})


@pytest.fixture
def message(tmp_path, monkeypatch) -> Path:
    path = tmp_path / "termination-log"
    path.touch()
    monkeypatch.setenv("STEREO_TERMINATION_LOG", str(path))
    return path


SMALL = {"num_scenes": 2, "height": 64, "width": 96, "max_disparity": 16}
PATTERNS = {"image_dir_pattern": ["left/rgb"], "right_dir_pattern": ["right/rgb"], "image_extension": ".png"}


def test_the_message_names_the_class_and_the_reason(message, tmp_path):
    assert main(["synthesize", task(tmp_path / "a", {}, ("images",), **SMALL, hight=3)]) == 2
    assert message.read_text().startswith("user error: ") and "height" in message.read_text()

    assert main(["convert", task(tmp_path / "b", {"images": port(tmp_path / "gone")}, ("annotations",))]) == 2
    assert message.read_text().startswith("data error: input images: ") and "gone" in message.read_text()

    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "file").touch()
    assert (
        main(["synthesize", task(tmp_path / "c", {}, ("images",), **SMALL).replace("c/images", "c/file/images")]) == 1
    )
    assert message.read_text().startswith("failure: File system error: [Errno 20]")


@pytest.mark.parametrize(
    ("note", "spec", "words"),
    [
        ("{", {}, ("data error: ", "reference.json: this is not a note of fetch_dataset", "run fetch_dataset again")),
        ('{"files": 3}', {}, ("data error: ", "reference.json: this is not a note of fetch_dataset", "uri")),
        ('{"uri": "%s"}' % ("x" * 300), {}, ("data error: ", "xxx' cannot be read (File name too long)", "run fetch")),
        ("", [1], ("user error: parameter spec: expected a mapping", "[1]")),
    ],
)
def test_a_damaged_note_and_a_spec_that_is_none_are_the_users(message, tmp_path, note, spec, words):
    (tmp_path / "images").mkdir()
    if note:
        (tmp_path / "images/reference.json").write_text(note)
    text = task(tmp_path / "a", {"images": port(tmp_path / "images")}, ("annotations",), spec=spec)
    assert main(["convert", text]) == 2
    assert message.read_text().startswith(words[0]) and all(word in message.read_text() for word in words)


def test_a_failure_before_the_action_begins_is_told_too(message, tmp_path, capsys):
    (tmp_path / "images").mkdir()
    (tmp_path / "images/unreadable.png").symlink_to("/proc/self/mem")
    images = {"images": port(tmp_path / "images", sha256="0" * 64)}
    assert main(["convert", task(tmp_path / "a", images, ("annotations",), spec=PATTERNS)]) == 1
    assert message.read_text().startswith("failure: File system error: ")
    assert "Traceback" in capsys.readouterr().err


def test_a_run_that_is_done_leaves_no_message_and_none_is_made_elsewhere(message, tmp_path, monkeypatch):
    assert main(["synthesize", task(tmp_path / "a", {}, ("images",), **SMALL)]) == 0
    assert message.read_text() == ""
    monkeypatch.setenv("STEREO_TERMINATION_LOG", str(tmp_path / "absent"))
    assert main(["convert", "{"]) == 2
    assert not (tmp_path / "absent").exists()


def test_a_long_reason_is_cut(message):
    explain(RuntimeError(), "x" * 10_000)
    assert message.stat().st_size == BYTES


def test_an_interruption(message, tmp_path):
    command = [str(Path(sys.executable).parent / "depth_net-launch"), "synthesize"]
    long = SMALL | {"num_scenes": 100_000}
    process = subprocess.Popen([*command, task(tmp_path / "a", {}, ("images",), **long)])
    deadline = time.monotonic() + 30
    while not (tmp_path / "a/results/scene_0000").exists() and not list((tmp_path / "a").rglob("*.png")):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGTERM)
    assert process.wait(30) == 143
    assert message.read_text().startswith("interruption: ")


def test_an_interruption_while_inputs_are_read(message, tmp_path):
    (tmp_path / "images").mkdir()
    large = tmp_path / "images/large"
    with large.open("wb") as file:
        file.truncate(2**36)  # 64 GiB of nothing: read for longer than this test lasts
    images = {"images": port(large.parent, sha256="0" * 64)}
    command = [str(Path(sys.executable).parent / "depth_net-launch"), "convert"]
    text = task(tmp_path / "a", images, ("annotations",), spec=PATTERNS)
    process = subprocess.Popen([*command, text], stderr=subprocess.PIPE)
    deadline = time.monotonic() + 30
    while large not in (path.resolve() for path in Path(f"/proc/{process.pid}/fd").iterdir()):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGTERM)
    assert b"Traceback" not in process.communicate(timeout=30)[1]
    assert process.returncode == 143
    assert message.read_text() == "interruption: User/System interruption: Terminated: SIGTERM\n"


TENSORRT = "TensorRT refuses the run: IExecutionContext::enqueueV3:"


def onnxruntime_error(said: str) -> Exception:
    return onnxruntime.RuntimeException(f"[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : while running Conv node. {said}")


@pytest.mark.parametrize(
    ("error", "code", "name"),
    [
        (RuntimeError("CUDA error: uncorrectable ECC error encountered"), 3, "GPU error"),
        (RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"), 3, "GPU error"),
        (torch.distributed.DistBackendError("NCCL error: unhandled system error"), 3, "GPU error"),
        (RuntimeError("CUDA driver error: unspecified launch failure"), 3, "GPU error"),
        (RuntimeError("Triton Error [CUDA]: an illegal memory access was encountered"), 3, "GPU error"),
        (RuntimeError(f"{TENSORRT} Cuda failure 700: an illegal memory access was encountered"), 3, "GPU error"),
        (RuntimeError(f"{TENSORRT} Error Code 1: Cuda Runtime (an illegal memory access ...)"), 3, "GPU error"),
        (RuntimeError(f"{TENSORRT} Error Code 1: Myelin ([cask_fusion.cpp] Platform (Cuda) error)"), 3, "GPU error"),
        (RuntimeError(f"{TENSORRT} Error Code 3: API Usage Error (Parameter check failed)"), 1, "failure"),
        (onnxruntime_error("CUDA failure 700: an illegal memory access was encountered ; GPU=0"), 3, "GPU error"),
        (onnxruntime_error("CUDNN_FE failure 11: CUDNN_BACKEND_API_FAILED ; GPU=0"), 3, "GPU error"),
        (onnxruntime_error("Got invalid dimensions for input"), 1, "failure"),
        (GpuError("DistBackendError: ncclUnhandledCudaError"), 3, "GPU error"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB"), 1, "GPU error"),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"), 1, "GPU error"),
        (RuntimeError(f"{TENSORRT} Error Code 1: Cuda Runtime (out of memory)"), 1, "GPU error"),
        (onnxruntime_error("CUDA failure 2: out of memory ; GPU=0 ; hostname=x"), 1, "GPU error"),
        (RuntimeError("ONNX Runtime could not start its CUDA provider"), 1, "failure"),
        (ModelError("engine.trt: CUDA error of the user's"), 2, "data error"),
        (RuntimeError("the size of tensor a must match"), 1, "failure"),
    ],
)
def test_a_gpu_that_failed_has_its_own_code_and_full_memory_has_not(error, code, name):
    assert (exit_code(error), error_class(error)) == (code, name)


@pytest.mark.slow
def test_a_train_task_that_is_tried_again_goes_on(tmp_path):
    """The same task goes on from its checkpoint; another one there is refused and changes nothing."""
    assert main(["synthesize", task(tmp_path / "s", {}, ("images",), **SMALL)]) == 0
    patterns = PATTERNS | {"depth_dir_pattern": ["left/disparity"], "depth_extension": ".png", "split_ratio": 0.5}
    images = port(tmp_path / "s/images")
    assert main(["convert", task(tmp_path / "c", {"images": images}, ("annotations",), spec=patterns)]) == 0
    data = {"images": images, "annotations": port(tmp_path / "c/annotations")}
    crop = {"augmentation": {"crop_size": [64, 96]}, "batch_size": 1, "workers": 0}
    spec = {
        "model": {"preset": "tiny", "stereo_backbone": {"allow_random_backbone": True}},
        "dataset": {"max_disparity": 16, "train_dataset": crop},
    }

    def attempt(epochs: int) -> tuple[int, str]:
        text = task(tmp_path / "t", data, ("checkpoint", "metrics"), dataset_name="FSD", num_epochs=epochs, spec=spec)
        return main(["train", text]), (tmp_path / "t/results/status.json").read_text()

    code, first = attempt(1)
    assert code == 0 and "Resuming" not in first
    code, again = attempt(1)
    assert code == 0 and again.count("Resuming training from checkpoint") == 1
    assert attempt(2) == (2, again)
