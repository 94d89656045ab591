"""TensorRT and TensorRT-RTX: one code path with the library as a parameter; LIBRARIES holds the differences.

Networks are strongly typed (the only kind in TensorRT 11 and TensorRT-RTX): the graph defines the type of each layer.
fp16 and bf16 are written into the graph first (`precision.lower_precision`); int8 and fp8 need a quantised file. TF32
is off in every engine, so that float32 is computed exactly.
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
    reach = 1  # TensorRT always reserves the memory for the largest size

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
            why += "; set gen_trt_engine.compute_capabilities to those of the target GPUs, for example [8.9]"
        return why

    def build(self, onnx: Path, out: Path, info: dict[str, Any], settings: BuildSettings) -> dict[str, Any]:
        """See Backend.build.

        Raises:
            SpecError: the library does not support a GPU, the GPU does not support the precision, or a pin matches no
                layer.
            ModelError: the parser rejects nodes of the file, the file's inputs differ from the side-car, or a GPU has
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
            ModelError: the engine was built by another version or for another GPU, or differs from its side-car.
            UserError: `device` is not a GPU of this machine.
        """
        why = self.why_not_runnable(info, device)
        if why:
            raise ModelError(f"{path}: {why}; build it again on this machine from its ONNX file")
        return TensorRTEngine(self._module(), path, info, gpu_id_of(device))

    def _installed(self) -> bool:
        return importlib.util.find_spec(self.library.module) is not None

    def _how_to_install(self) -> str:
        return f"{self.library.title} is not installed: pip install 'stereo-pipelines[{self.library.extra}]'"

    def _module(self) -> Any:
        return importlib.import_module(self.library.module)

    def _targets(self, trt: Any, settings: BuildSettings, gpu: Gpu | str) -> list[Capability]:
        requested = [parse_capability(text) for text in settings.compute_capabilities]
        if self.library.ahead_of_time and requested:
            return targets_ahead(self.library, trt, requested)
        why = self.why_not_here(settings)
        if why or isinstance(gpu, str):
            raise SpecError(f"gen_trt_engine.backend: {why or gpu}")
        if requested and requested != [gpu.capability]:
            raise SpecError(
                f"gen_trt_engine.compute_capabilities: {self.library.title} builds only for the GPU of this machine, "
                f"{gpu.text}; build on the target GPU, or with the backend tensorrt_rtx"
            )
        return [gpu.capability]
