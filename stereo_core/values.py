"""Values in messages, in JSON and in metadata."""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

NEAR = 0.7  # similarity, 0..1, from which a name counts as a likely typo of another
TRIFLE = 0.001  # share of the pixels below which a message about them is a note, not a warning


def near(name: str, names: Iterable[str]) -> str | None:
    """The most similar of `names`, for "did you mean"; None if none is similar."""
    return next(iter(difflib.get_close_matches(name, list(names), 1, NEAR)), None)


def counted(count: int, one: str, many: str = "") -> str:
    """`1 image`, `2 images`; give `many` for an irregular plural."""
    return f"{count} {one if count == 1 else many or f'{one}s'}"


def size_text(size: Sequence[int]) -> str:
    """A size (height, width) as messages show it: width x height."""
    height, width = size
    return f"{width} x {height}"


def digits(text: str) -> int | None:
    """The number that at most 18 digits write; None for any other text (Python's own parser raises for 5000 digits)."""
    return int(text) if text.isascii() and text.isdigit() and len(text) <= 18 else None


def from_json(text: str | bytes) -> Any:
    """The value of a JSON text.

    Raises:
        ValueError: the text is not JSON, is nested too deeply, or has a number with more digits than Python reads.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    except (json.JSONDecodeError, UnicodeDecodeError):
        raise
    except ValueError:  # Python's limit of digits
        raise ValueError("a number has too many digits") from None


def with_integers(value: Any) -> Any:
    """Turn whole floats back into integers, at any depth: protobuf makes all JSON numbers floats."""
    if isinstance(value, dict):
        return {key: with_integers(item) for key, item in value.items()}
    if isinstance(value, list):
        return [with_integers(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def json_ready(value: Any, not_finite: Callable[[float], Any] = lambda number: None) -> Any:
    """A value that strict JSON can hold: NumPy and torch numbers become Python's, other objects become text.

    NaN and infinity become `not_finite(value)`.
    """
    if isinstance(value, dict):
        return {str(name): json_ready(item, not_finite) for name, item in value.items()}
    if isinstance(value, list | tuple | set):
        return [json_ready(item, not_finite) for item in value]
    if value is None or isinstance(value, bool | int | str):
        return value
    if hasattr(value, "tolist"):
        return json_ready(value.tolist(), not_finite)
    if isinstance(value, float):
        return value if math.isfinite(value) else not_finite(value)
    return str(value)


def as_metadata(value: Any) -> Any:
    """A value for an artifact's metadata: strict JSON, NaN and infinities as text, keys with None left out."""
    return _without_none(json_ready(value, str))


def _without_none(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_none(item) for name, item in value.items() if item is not None}
    return [_without_none(item) for item in value] if isinstance(value, list) else value
