"""AOTInductor: the network for inference of `models.optimize`, compiled ahead of time into one package (`.pt2`).

The weights come from a checkpoint, because PyTorch cannot compile those of an ONNX file equally well. The ONNX file
defines shape, iterations and disparity range, and the engine is verified against it. An engine has one batch, height
and width. It contains native code, which runs when it is loaded.
"""

from __future__ import annotations

import importlib.util
import logging
import platform
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stereo_core.engines.base import BuildSettings
from stereo_core.engines.tensorrt.targets import capabilities_of, current, dotted, find_gpu
from stereo_core.errors import ModelError, UserError

if TYPE_CHECKING:
    from stereo_core.engines.inductor.runtime import InductorEngine

LOG = logging.getLogger(__name__)


def backend(name: str) -> Inductor:
    """The only backend of this folder."""
    return Inductor()


class Inductor:
    """See `stereo_core.engines.base.Backend`."""

    precisions = ("fp32", "fp16", "bf16")
    suffix = ".pt2"
    reach = 0

    def why_not_here(self, settings: BuildSettings) -> str | None:
        if not settings.checkpoint:
            return (
                "it needs a checkpoint; set gen_trt_engine.checkpoint to the one that the ONNX file was exported from"
            )
        if not _has_torch():
            return _NO_TORCH
        return _why_no_compiler()

    def build(self, onnx: Path, out: Path, info: dict[str, Any], settings: BuildSettings) -> dict[str, Any]:
        """See Backend.build.

        Raises:
            ModelError: the checkpoint does not match the ONNX file, its network cannot be optimised, or the ONNX file
                does not store its iterations.
        """
        import torch
        from torch.export.pt2_archive._package import package_pt2

        from stereo_core.engines.inductor.build import compiled, network_of
        from stereo_core.engines.inductor.runtime import PROGRAM, quiet

        gpu = find_gpu(settings.gpu_id)
        device = "cpu" if isinstance(gpu, str) else f"cuda:{settings.gpu_id}"
        network = network_of(settings.checkpoint, onnx, info).to(device)
        shape = (info["opt_batch"], info["input_height"], info["input_width"])
        with current(gpu, settings.gpu_id):
            program, files = compiled(network, *shape, info["valid_iters"])
        with quiet():
            package_pt2(str(out), aoti_files=files, extra_files={PROGRAM: program.to_json()})
        return {"backend_version": torch.__version__, "target": _cpu() if isinstance(gpu, str) else gpu.text}

    def why_not_runnable(self, info: dict[str, Any], device: Any = None) -> str | None:
        if not _has_torch():
            return _NO_TORCH
        import torch

        built = f"built by PyTorch {info['backend_version']} for {info['target']}"
        if info["backend_version"] != torch.__version__:
            return f"{built}; this machine has PyTorch {torch.__version__}"
        requested = _gpu_id(device)
        if info["target"].startswith("CPU"):
            return None if info["target"] == _cpu() else f"{built}; this machine has a {_cpu()}"
        gpu = find_gpu(requested or 0)
        if isinstance(gpu, str):
            return f"{built}; {gpu}"
        if gpu.capability not in capabilities_of(info["target"]):
            return f"{built}; this machine has a {gpu.name} of compute capability {dotted(gpu.capability)}"
        return None

    def load(self, path: Path, info: dict[str, Any], device: Any) -> InductorEngine:
        """See Backend.load.

        Raises:
            ModelError: the engine was built by another version of PyTorch or for another processor.
            UserError: `device` is not the one that it was built for.
        """
        place = "cpu" if info["target"].startswith("CPU") else f"cuda:{_gpu_id(device) or 0}"
        if device is not None and str(device).partition(":")[0] != place.partition(":")[0]:
            raise UserError(f"device {device}: {path} was built for {info['target']}; build an engine for this device")
        why = self.why_not_runnable(info, device)
        if why:
            raise ModelError(f"{path}: {why}; build it again on this machine from its checkpoint and ONNX file")
        from stereo_core.engines.inductor.runtime import InductorEngine

        return InductorEngine(path, info, place)


_NO_TORCH = "PyTorch is not installed"


def _has_torch() -> bool:
    return importlib.util.find_spec("torch") is not None


def _why_no_compiler() -> str | None:
    import torch
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler
    from torch.utils.cpp_extension import CUDA_HOME

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler:
        return "no C++ compiler was found; install g++"
    if torch.cuda.is_available() and CUDA_HOME is None:
        return "the CUDA headers were not found; install the CUDA toolkit, or set CUDA_HOME"
    return None


def _gpu_id(device: Any) -> int | None:
    """The index of a GPU given as cuda or cuda:N, else None."""
    found = re.fullmatch(r"cuda(?::(\d+))?", str(device))
    return int(found[1] or 0) if found else None


def _cpu() -> str:
    """The CPU that compiled code is for: the compiler uses all its instructions."""
    import torch

    cpuinfo = Path("/proc/cpuinfo")
    names = re.findall(r"model name\s*: (.*)", cpuinfo.read_text()) if cpuinfo.is_file() else []
    name = names[0] if names else platform.processor()
    return f"CPU {platform.machine()} {name}, {torch.backends.cpu.get_cpu_capability()}"
