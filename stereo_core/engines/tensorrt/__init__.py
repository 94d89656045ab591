"""TensorRT and TensorRT-RTX: one code path, the library is a parameter; LIBRARIES holds what differs.

Networks are strongly typed (the only kind of TensorRT 11 and TensorRT-RTX): the graph says which type each layer
computes in. fp16 and bf16 are written into the graph first (`precision.lower_precision`); int8 and fp8 need a file that
quantises itself. TF32 is off in every engine, so that float32 is float32.
"""

from __future__ import annotations

import importlib
import importlib.util
import threading
from pathlib import Path
from typing import Any

from stereo_core.engines.base import BuildSettings
from stereo_core.engines.tensorrt.build import serialized_engine
from stereo_core.engines.tensorrt.library import LIBRARIES, PRECISIONS, Library
from stereo_core.engines.tensorrt.messages import in_a_thread
from stereo_core.engines.tensorrt.runtime import TensorRTEngine
from stereo_core.engines.tensorrt.targets import (
    Capability,
    Gpu,
    capabilities_of,
    check_precision,
    current,
    dotted,
    find_gpu,
    gpu_id_of,
    parse_capability,
    target_text,
    targets_ahead,
    why_not_gpu,
)
from stereo_core.errors import ModelError, SpecError


def backend(name: str) -> TensorRT:
    """The backend "tensorrt" or "tensorrt_rtx"."""
    return TensorRT(LIBRARIES[name])


class TensorRT:
    """See `stereo_core.engines.base.Backend`."""

    precisions = PRECISIONS
    reach = 1  # the memory of the largest size is set aside, whatever comes

    def __init__(self, library: Library):
        self.library = library
        self.suffix = library.suffix

    def why_not_here(self, settings: BuildSettings) -> str | None:
        if not self._installed():
            return self._how_to_install()
        if self.library.ahead_of_time and settings.compute_capabilities:
            return None
        gpu = find_gpu(settings.gpu_id)
        why = gpu if isinstance(gpu, str) else why_not_gpu(self.library, self._module(), gpu)
        if why and self.library.ahead_of_time:
            why += "; set gen_trt_engine.compute_capabilities to the GPUs the engine is for, as [8.9]"
        return why

    def build(self, onnx: Path, out: Path, info: dict[str, Any], settings: BuildSettings) -> dict[str, Any]:
        """See Backend.build.

        Raises:
            SpecError: GPUs the library does not build for, or which have no such precision; pins that fit no layer.
            ModelError: the parser refuses nodes of the file, or reads other inputs than the side-car says, or a GPU has
                no matrix products of the graph's type.
            RuntimeError: the builder failed.
        """
        trt = self._module()
        gpu = find_gpu(settings.gpu_id)
        targets = self._targets(trt, settings, gpu)
        check_precision(self.library, info["precision"], targets)
        stop = threading.Event()

        def work() -> Any:
            with current(gpu, settings.gpu_id):
                return serialized_engine(trt, self.library, onnx, info, settings, targets, gpu, stop)

        out.write_bytes(in_a_thread(work, stop))
        return {"backend_version": trt.__version__, "target": target_text(self.library, targets, gpu)}

    def why_not_runnable(self, info: dict[str, Any], device: Any = None) -> str | None:
        if not self._installed():
            return self._how_to_install()
        version = self._module().__version__
        built = f"built by {self.library.module} {info['backend_version']} for {info['target']}"
        if info["backend_version"] != version:
            return f"{built}; this machine has {self.library.module} {version}"
        gpu = find_gpu(gpu_id_of(device))
        if isinstance(gpu, str):
            return f"{built}; {gpu}"
        if gpu.capability not in capabilities_of(info["target"]):
            return f"{built}; this machine has a {gpu.name} of compute capability {dotted(gpu.capability)}"
        return why_not_gpu(self.library, self._module(), gpu)

    def load(self, path: Path, info: dict[str, Any], device: Any) -> TensorRTEngine:
        """See Backend.load.

        Raises:
            ModelError: the engine was built by another version or for another GPU, or is not what its side-car says.
            UserError: `device` is not a GPU of this machine.
        """
        why = self.why_not_runnable(info, device)
        if why:
            raise ModelError(f"{path}: {why}; build it again, here, from its ONNX file")
        return TensorRTEngine(self._module(), path, info, gpu_id_of(device))

    def _installed(self) -> bool:
        return importlib.util.find_spec(self.library.module) is not None

    def _how_to_install(self) -> str:
        return f"{self.library.title} is not installed: pip install 'stereo-pipelines[{self.library.extra}]'"

    def _module(self) -> Any:
        return importlib.import_module(self.library.module)

    def _targets(self, trt: Any, settings: BuildSettings, gpu: Gpu | str) -> list[Capability]:
        asked = [parse_capability(text) for text in settings.compute_capabilities]
        if self.library.ahead_of_time and asked:
            return targets_ahead(self.library, trt, asked)
        why = self.why_not_here(settings)
        if why or isinstance(gpu, str):
            raise SpecError(f"gen_trt_engine.backend: {why or gpu}")
        if asked and asked != [gpu.capability]:
            raise SpecError(
                f"gen_trt_engine.compute_capabilities: {self.library.title} builds for the GPU of this machine only, "
                f"{gpu.text}; build on the GPU that the engine is for, or with the backend tensorrt_rtx"
            )
        return [gpu.capability]
