"""What ended a run: in TAO's words, and as an exit code."""

from __future__ import annotations

from typing import Any

from pydantic import ValidationError

from stereo_core.errors import GPU_ERROR, SpecError, UserError, is_gpu_error, is_out_of_memory
from stereo_core.run.termination import Terminated

_INTERRUPTIONS = (KeyboardInterrupt, SystemExit, Terminated)
_PREFIXES: tuple[tuple[type[BaseException] | tuple[Any, ...], str], ...] = (
    (SpecError, "Configuration error"),
    (NotImplementedError, "Feature not implemented"),
    (ValidationError, "Schema validation error"),
    ((ValueError, TypeError), "Parameter validation error"),
    (OSError, "File system error"),
)
"""TAO's words for an exception class; the first that fits counts, so subclasses stand before their parents."""


def reason(error: BaseException) -> str:
    """One line that says what ended a run: TAO's prefix for the classes it knows, the class name for all others."""
    name, text = type(error).__name__, " ".join(str(error).split())
    named = f"{name}: {text}" if text else name
    if isinstance(error, _INTERRUPTIONS):
        return f"User/System interruption: {named}"
    for classes, prefix in _PREFIXES:
        if isinstance(error, classes):
            return f"{prefix}: {text or name}"
    return named


def exit_code(error: BaseException) -> int:
    """2 the user's input is wrong; 130 Ctrl-C; 143 SIGTERM; 3 the GPU failed, not for want of its memory; else 1."""
    if isinstance(error, UserError):
        return 2
    if isinstance(error, KeyboardInterrupt):
        return 130
    if isinstance(error, Terminated):
        return 143
    if isinstance(error, SystemExit) and isinstance(error.code, int) and error.code > 0:
        return error.code
    return GPU_ERROR if is_gpu_error(error) and not is_out_of_memory(error) else 1
