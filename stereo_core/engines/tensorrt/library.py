"""The two libraries and their differences."""

from __future__ import annotations

from dataclasses import dataclass

PRECISIONS = ("fp32", "fp16", "bf16", "int8", "fp8")
"""The precisions that both build."""


@dataclass(frozen=True)
class Library:
    """The differences between the two libraries.

    Attributes:
        module: the Python module.
        extra: this package's extra that installs it.
        title: its name in messages.
        suffix: file suffix of its engines.
        ahead_of_time: it builds for compute capabilities without a GPU; otherwise for the GPU of this machine.
        timing_cache: it times layers on the GPU and can store the times.
    """

    module: str
    extra: str
    title: str
    suffix: str
    ahead_of_time: bool
    timing_cache: bool


LIBRARIES = {
    "tensorrt": Library("tensorrt", "tensorrt", "TensorRT", ".engine", False, True),
    "tensorrt_rtx": Library("tensorrt_rtx", "tensorrt-rtx", "TensorRT-RTX", ".rtx.engine", True, False),
}
