"""An error as TAO's one-line reason and as an exit code."""

from __future__ import annotations

import errno
from typing import Any

from pydantic import ValidationError

from stereo_core.errors import GPU_ERROR, ExplainedError, SpecError, UserError, is_gpu_error, is_out_of_memory
from stereo_core.run.termination import Terminated

_INTERRUPTIONS = (KeyboardInterrupt, SystemExit, Terminated)
_PREFIXES: tuple[tuple[type[BaseException] | tuple[Any, ...], str], ...] = (
    (SpecError, "Configuration error"),
    (NotImplementedError, "Feature not implemented"),
    (ValidationError, "Schema validation error"),
    ((ValueError, TypeError), "Parameter validation error"),
    (OSError, "File system error"),
)
"""Exception class -> TAO's prefix. The first match counts, so subclasses come before their parents."""
_LOADER = (
    "the system killed a loader process, usually because memory or shared memory (/dev/shm) ran out: lower workers of "
    "the data set (as dataset.train_dataset.workers) or provide more memory"
)
_DISK = {errno.ENOSPC: "free some space there", errno.EDQUOT: "free some space there", errno.EROFS: "write elsewhere"}
"""Errors of the system that are no fault of the program, and the mend."""


def is_explained(error: BaseException) -> bool:
    """Whether the message says all that a user needs, so that a traceback would only hide it."""
    return isinstance(error, UserError | ExplainedError | FloatingPointError) or bool(_mend(error))


def _mend(error: BaseException) -> str:
    if isinstance(error, RuntimeError) and "DataLoader worker" in str(error):  # torch has no class for it
        return _LOADER
    return _DISK.get(error.errno or 0, "") if isinstance(error, OSError) else ""


def reason(error: BaseException) -> str:
    """One line that says why a run ended: TAO's prefix for the classes above, the class name for all others."""
    name, text = type(error).__name__, " ".join(str(error).split())
    if mend := _mend(error):
        text += f"; {mend}"
    named = f"{name}: {text}" if text else name
    if isinstance(error, _INTERRUPTIONS):
        return f"User/System interruption: {named}"
    for classes, prefix in _PREFIXES:
        if isinstance(error, classes):
            return f"{prefix}: {text or name}"
    return named


def exit_code(error: BaseException) -> int:
    """2 wrong user input; 130 Ctrl-C; 143 SIGTERM; 3 a GPU error other than out of memory; 1 anything else."""
    if isinstance(error, UserError):
        return 2
    if isinstance(error, KeyboardInterrupt):
        return 130
    if isinstance(error, Terminated):
        return 143
    if isinstance(error, SystemExit) and isinstance(error.code, int) and error.code > 0:
        return error.code
    return GPU_ERROR if is_gpu_error(error) and not is_out_of_memory(error) else 1
