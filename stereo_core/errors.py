"""Errors that a user can mend.

Their message says what is wrong, where (file, line or key) and what to do; the command line prints it without a
traceback and exits 2. Every other exception is a failed run: exit 1, with its traceback unless it is RefusedResult.
"""

import re


class UserError(Exception):
    """The user's input is wrong: a spec key, a command line, a file."""


class SpecError(UserError):
    """A spec that can not be accepted: unknown key, wrong type, value out of range, missing file."""


class RefusedResult(Exception):
    """A run did its work and the user's own limit refuses what came out: exit 1, without a traceback."""


class DataError(UserError):
    """An image, a disparity, a mask, an annotation or a calibration file that can not be used."""


class ModelError(UserError):
    """A checkpoint, an ONNX file or an engine that can not be used here."""


class GpuError(RuntimeError):
    """The GPU failed: in place of a library's own error where that can not leave the process it arose in."""


GPU_ERROR = 3
"""Exit code of a run that the GPU failed (not for want of its memory): another attempt, or another node, may do."""

WORTH_ANOTHER_TRY = (GPU_ERROR, 130, 137, 143)
"""Exit codes of a GPU that failed, and of Ctrl-C, SIGKILL and SIGTERM."""


def is_gpu_error(error: BaseException) -> bool:
    """Whether CUDA, one of its libraries or NCCL failed, or the GPU's memory is full.

    Told by name, since torch may not be there, and by the words of torch, Triton, TensorRT and ONNX Runtime, which wrap
    them into errors of their own.
    """
    kinds = {kind.__name__ for kind in type(error).__mro__}
    named = kinds & {"GpuError", "AcceleratorError", "OutOfMemoryError", "DistBackendError"}
    return bool(named) or bool(_GPU_FAILED.search(str(error)))


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the GPU's memory is full: the same work will fill it again."""
    return is_gpu_error(error) and bool(_FULL.search(str(error)))


_GPU_FAILED = re.compile(
    r"\b(cuda|cudnn|cudnn_fe|cublas|cublas_lt|cufft|nccl|triton)\)? (driver |runtime )?(error|failure)\b"
    r"|\bcuda (runtime|driver) \("
    r"|CUDA out of memory",
    re.IGNORECASE,
)
_FULL = re.compile(r"out of memory|OutOfMemory|ALLOC_FAILED|failed to allocate", re.IGNORECASE)
