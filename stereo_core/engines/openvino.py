"""OpenVINO: the engine is the ONNX file, which OpenVINO compiles for the CPU when it opens the file.

A compiled network that OpenVINO exports fits only one version and one kind of CPU, and opens no faster (3.3 s instead
of 2.8 s, vits at 320 x 736).
"""

from __future__ import annotations

import functools
import importlib.util
from pathlib import Path
from typing import Any

import numpy as np

from stereo_core.cores import threads
from stereo_core.engines.base import BuildSettings, Engine
from stereo_core.engines.files import DISPARITY, LEFT, RIGHT, without_channel
from stereo_core.errors import ModelError, SpecError, UserError

# int8 files define which layers are int8. No fp16: it takes 1.6 times as long as float32 on CPUs that support it.
HINTS = {"fp32": "f32", "bf16": "bf16", "int8": "f32"}
_INSTALL = "OpenVINO is not installed: pip install 'stereo-pipelines[openvino]'"


def backend(name: str) -> OpenVino:
    """The only backend of this file."""
    return OpenVino()


class OpenVino:
    """See `stereo_core.engines.base.Backend`."""

    precisions = tuple(HINTS)
    suffix = ".ov.onnx"
    reach = 2

    def why_not_here(self, settings: BuildSettings) -> str | None:
        if not _installed():
            return _INSTALL
        if settings.backend == "auto" and _onnxruntime_has_gpu():
            return "it runs on the CPU, but ONNX Runtime can use a GPU here"
        return None

    def build(self, onnx: Path, out: Path, info: dict[str, Any], settings: BuildSettings) -> dict[str, Any]:
        """See Backend.build.

        Raises:
            ModelError: OpenVINO cannot read the file or has no kernel for one of its operators.
            SpecError: the CPU does not support bfloat16.
        """
        import onnx as onnx_library

        version = _library().__version__
        if info["precision"] == "bf16" and not _has_bf16():
            raise SpecError("gen_trt_engine.tensorrt.data_type: this CPU does not support bf16; set fp32")
        onnx_library.save(onnx_library.load(onnx), out)  # external weights are included in the file
        _compiled(out, info, onnx)
        return {"backend_version": version, "target": "any CPU"}

    def why_not_runnable(self, info: dict[str, Any], device: Any = None) -> str | None:
        return None if _installed() else _INSTALL

    def load(self, path: Path, info: dict[str, Any], device: Any) -> OpenVinoEngine:
        """See Backend.load.

        Raises:
            ModelError: OpenVINO is not installed, or rejects the file.
            UserError: a GPU was requested.
        """
        if not _installed():
            raise ModelError(f"{path}: {_INSTALL}")
        if device is not None and str(device) != "cpu":
            raise UserError(f"device {device}: {path} is an OpenVINO engine, which runs only on the CPU; leave the "
                            "device out, or build the engine with another backend")  # fmt: skip
        return OpenVinoEngine(path, info)


class OpenVinoEngine(Engine):
    """An engine compiled for the height, width and batch ranges of its side-car."""

    def __init__(self, path: Path, info: dict[str, Any]):
        super().__init__(info)
        self._request = _compiled(path, info, path).create_infer_request()
        self.provider = "CPU"
        self.runtime = f"OpenVINO {_library().__version__}, CPU, {info['precision']}"

    def run(self, left_B3HW: np.ndarray, right_B3HW: np.ndarray) -> np.ndarray:
        disparity = self._request.infer({LEFT: left_B3HW, RIGHT: right_B3HW}, share_inputs=True)
        return without_channel(disparity[DISPARITY])


def _compiled(path: Path, info: dict[str, Any], name: Path) -> Any:
    """The network compiled for the side-car's sizes; `name` is the file's name in messages."""
    settings = {
        "INFERENCE_PRECISION_HINT": HINTS[info["precision"]],  # by default it uses bf16 on CPUs that support it
        "INFERENCE_NUM_THREADS": threads(),
        "ENABLE_CPU_PINNING": False,  # other processes may use the same cores
    }
    try:
        model = _core().read_model(path)
        model.reshape({LEFT: _shape(info), RIGHT: _shape(info)})
        return _core().compile_model(model, "CPU", settings)
    except RuntimeError as error:
        raise ModelError(
            f"{name}: OpenVINO cannot compile the file; use another gen_trt_engine.backend: {error}"
        ) from error


@functools.cache
def _core() -> Any:
    """OpenVINO's entry point, one per process.

    On a CPU with AMX each Core replaces the signal stack of its thread, and frees its own when it ends. With two of
    them the thread may be left with a freed one, and the next signal (SIGTERM, SIGCHLD) ends the process by SIGSEGV.
    """
    return _library().Core()


def _shape(info: dict[str, Any]) -> Any:
    dimension = _library().Dimension
    batch, height, width = (dimension(info[f"min_{x}"], info[f"max_{x}"]) for x in ("batch", "height", "width"))
    return _library().PartialShape([batch, dimension(3), height, width])


def _installed() -> bool:
    return importlib.util.find_spec("openvino") is not None


def _library() -> Any:
    import openvino

    return openvino


def _has_bf16() -> bool:
    return "BF16" in _core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def _onnxruntime_has_gpu() -> bool:
    import onnxruntime

    return "CUDAExecutionProvider" in onnxruntime.get_available_providers()
