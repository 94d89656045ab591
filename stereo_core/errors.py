"""Errors that a user can fix.

Their message says what is wrong, where (file, line or key) and what to do. The command line prints it without a
traceback and exits with 2. Any other exception is a failed run: exit code 1, and a traceback unless it is an
ExplainedError.
"""

import re


class UserError(Exception):
    """The user's input is wrong: a spec key, a command line, a file."""


class SpecError(UserError):
    """The spec is invalid: unknown key, wrong type, value out of range, missing file."""


class ExplainedError(Exception):
    """The run failed, and the message says why and what to do: exit code 1, no traceback."""


class RefusedResult(ExplainedError):
    """The run finished, but its result exceeds a limit that the user set."""


class NotWrittenError(ExplainedError, OSError):
    """A file could not be written, or is not on the disk as it was written."""


class DataError(UserError):
    """An image, a disparity, a mask, an annotation or a camera calibration file cannot be used."""


class ModelError(UserError):
    """A checkpoint, an ONNX file or an engine cannot be used here."""


class GpuError(RuntimeError):
    """The GPU failed. Replaces a GPU library's error that cannot be pickled."""


GPU_ERROR = 3
"""Exit code of a run that ended with a GPU error other than out of memory: a retry, or another node, may succeed."""

WORTH_ANOTHER_TRY = (GPU_ERROR, 130, 137, 143)
"""Exit codes that justify a retry: GPU error, Ctrl-C, SIGKILL and SIGTERM."""


def is_gpu_error(error: BaseException) -> bool:
    """Whether the error comes from CUDA, one of its libraries or NCCL, or from full GPU memory.

    Checks the class by name, because torch may not be installed, and the message, because torch, Triton, TensorRT and
    ONNX Runtime wrap CUDA errors into errors of their own.
    """
    kinds = {kind.__name__ for kind in type(error).__mro__}
    named = kinds & {"GpuError", "AcceleratorError", "OutOfMemoryError", "DistBackendError"}
    return bool(named) or bool(_GPU_FAILED.search(str(error)))


def is_out_of_memory(error: BaseException) -> bool:
    """Whether GPU memory is full: a retry would run out of memory again."""
    return is_gpu_error(error) and bool(_FULL.search(str(error)))


_GPU_FAILED = re.compile(
    r"\b(cuda|cudnn|cudnn_fe|cublas|cublas_lt|cufft|nccl|triton)\)? (driver |runtime )?(error|failure)\b"
    r"|\bcuda (runtime|driver) \("
    r"|CUDA out of memory",
    re.IGNORECASE,
)
_FULL = re.compile(r"out of memory|OutOfMemory|ALLOC_FAILED|failed to allocate", re.IGNORECASE)
