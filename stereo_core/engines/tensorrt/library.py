"""The two libraries, and what differs between them."""

from __future__ import annotations

from dataclasses import dataclass

PRECISIONS = ("fp32", "fp16", "bf16", "int8", "fp8")
"""What both build."""


@dataclass(frozen=True)
class Library:
    """What differs between the two libraries.

    Attributes:
        module: the Python module.
        extra: the extra of this package that installs it.
        title: its name in texts.
        suffix: the end of its engines' file names.
        ahead_of_time: it builds for compute capabilities, without a GPU; else for the GPU that it finds.
        timing_cache: it measures layers on the GPU and can remember the times.
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
