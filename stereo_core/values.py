"""Values as messages carry them."""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

NEAR = 0.7  # likeness, 0..1, from which on a name was probably meant


def near(name: str, names: Iterable[str]) -> str | None:
    """The name, of those there are, that was probably meant."""
    return next(iter(difflib.get_close_matches(name, list(names), 1, NEAR)), None)


def counted(count: int, one: str, many: str = "") -> str:
    """`1 image`, `2 images`; `many` where it is not `one` with an s."""
    return f"{count} {one if count == 1 else many or f'{one}s'}"


def size_text(size: Sequence[int]) -> str:
    """(height, width) as messages have it: width x height."""
    height, width = size
    return f"{width} x {height}"


def from_json(text: str | bytes) -> Any:
    """The value of a JSON text.

    Raises:
        ValueError: it is none, or is nested deeper than Python reads.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def with_integers(value: Any) -> Any:
    """Undo what protobuf does to JSON numbers: whole floats are integers again, at any depth."""
    if isinstance(value, dict):
        return {key: with_integers(item) for key, item in value.items()}
    if isinstance(value, list):
        return [with_integers(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def plain(value: Any, not_finite: Callable[[float], Any] = lambda number: None) -> Any:
    """A value as strict JSON has it: NumPy's and torch's numbers as Python's, else text.

    NaN and infinity become what `not_finite` makes of them.
    """
    if isinstance(value, dict):
        return {str(name): plain(item, not_finite) for name, item in value.items()}
    if isinstance(value, list | tuple | set):
        return [plain(item, not_finite) for item in value]
    if value is None or isinstance(value, bool | int | str):
        return value
    if hasattr(value, "tolist"):
        return plain(value.tolist(), not_finite)
    if isinstance(value, float):
        return value if math.isfinite(value) else not_finite(value)
    return str(value)


def as_metadata(value: Any) -> Any:
    """A value as an artifact's metadata has it: plain, NaN and infinities by their names, no key without a value."""
    return _without_none(plain(value, str))


def _without_none(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_none(item) for name, item in value.items() if item is not None}
    return [_without_none(item) for item in value] if isinstance(value, list) else value
