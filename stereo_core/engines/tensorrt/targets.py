"""GPUs that engines are built for and run on."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from stereo_core.engines.tensorrt.library import PRECISIONS, Library
from stereo_core.errors import SpecError, UserError

Capability = tuple[int, int]
"""A GPU generation: (8, 6) is 8.6."""

OLDEST: Capability = (7, 5)  # oldest for TensorRT; TensorRT-RTX lists the ones it supports
# The oldest GPUs that support a type; other types run on all GPUs that the libraries support.
LEAST_CAPABILITY: dict[str, Capability] = {"bf16": (8, 0), "fp8": (8, 9)}


@dataclass(frozen=True)
class Gpu:
    """A GPU of this machine; `memory` in bytes."""

    name: str
    capability: Capability
    memory: int

    @property
    def text(self) -> str:
        return f"{self.name}, compute capability {dotted(self.capability)}"


def find_gpu(gpu_id: int) -> Gpu | str:
    """The GPU with an index, found by PyTorch; or the reason why there is none, for the user."""
    try:
        import torch
    except ImportError:
        return "PyTorch is not installed, but is needed to use the GPU"
    if not torch.cuda.is_available():
        return f"PyTorch {torch.__version__} finds no usable GPU on this machine"
    if gpu_id >= torch.cuda.device_count():
        return f"there is no GPU {gpu_id}; this machine has GPUs 0 to {torch.cuda.device_count() - 1}"
    found = torch.cuda.get_device_properties(gpu_id)
    return Gpu(found.name, (found.major, found.minor), found.total_memory)


def capabilities_of(target: str) -> list[Capability]:
    """The compute capabilities that a side-car's `target` names."""
    return [parse_capability(text) for text in re.findall(r"\d+\.\d+", target.partition("compute capabilit")[2])]


def known_capabilities(trt: Any) -> list[Capability]:
    """The compute capabilities that TensorRT-RTX supports: SM86 is 8.6, SM120 is 12.0."""
    names = [re.fullmatch(r"SM(\d+)(\d)", name) for name in trt.ComputeCapability.__members__]
    return sorted((int(found[1]), int(found[2])) for found in names if found)


def parse_capability(text: str) -> Capability:
    found = re.fullmatch(r"(\d+)\.(\d)", text.strip())
    if not found:
        raise SpecError(f"gen_trt_engine.compute_capabilities: {text!r} is not a compute capability such as 8.6")
    return int(found[1]), int(found[2])


def dotted(capability: Capability) -> str:
    return f"{capability[0]}.{capability[1]}"


def why_not_gpu(library: Library, trt: Any, gpu: Gpu) -> str | None:
    """None if the library runs on a GPU, else the reason, for the user."""
    if not library.ahead_of_time:
        old = gpu.capability < OLDEST
        return (
            f"{library.title} needs compute capability {dotted(OLDEST)} or newer, but this GPU is {gpu.text}"
            if old
            else None
        )
    known = known_capabilities(trt)
    if gpu.capability in known:
        return None
    return f"{library.title} does not run on {gpu.text}, only on {', '.join(map(dotted, known))}"


def targets_ahead(library: Library, trt: Any, requested: Sequence[Capability]) -> list[Capability]:
    """The targets of an engine that is built without a GPU.

    Raises:
        SpecError: the library does not support one of them.
    """
    known = known_capabilities(trt)
    unknown = [capability for capability in requested if capability not in known]
    if unknown:
        raise SpecError(
            f"gen_trt_engine.compute_capabilities: {library.title} does not build for "
            f"{', '.join(map(dotted, unknown))}, only for {', '.join(map(dotted, known))}"
        )
    return sorted(set(requested))


def target_text(library: Library, targets: Sequence[Capability], gpu: Gpu | str) -> str:
    """The side-car's `target`."""
    if not library.ahead_of_time:
        return gpu if isinstance(gpu, str) else gpu.text
    word = "compute capability" if len(targets) == 1 else "compute capabilities"
    return f"{word} {', '.join(map(dotted, targets))}"


def check_precision(library: Library, precision: str, targets: Sequence[Capability]) -> None:
    """Raise SpecError if a GPU does not support a precision."""
    least = LEAST_CAPABILITY.get(precision, (0, 0))
    too_old = [target for target in targets if target < least]
    if too_old:
        possible = [p for p in PRECISIONS if LEAST_CAPABILITY.get(p, (0, 0)) <= min(targets)]
        raise SpecError(
            f"gen_trt_engine.tensorrt.data_type: {precision} needs compute capability {dotted(least)} or higher, "
            f"but the target has {', '.join(map(dotted, too_old))}; set one of {', '.join(possible)}"
        )


def gpu_id_of(device: Any) -> int:
    """The index of a GPU given as cuda, cuda:N or None; UserError for any other device."""
    name, _, index = str(device or "cuda").partition(":")
    if name != "cuda" or not (index or "0").isdigit():
        raise UserError(f"device {device}: a TensorRT engine runs only on cuda or cuda:N")
    return int(index or 0)


def current(gpu: Gpu | str, gpu_id: int) -> contextlib.AbstractContextManager[Any]:
    """Make the GPU CUDA's current device, on which TensorRT builds."""
    if isinstance(gpu, str):
        return contextlib.nullcontext()
    import torch

    return torch.cuda.device(gpu_id)
