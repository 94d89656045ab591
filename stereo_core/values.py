"""Values as messages carry them."""

from __future__ import annotations

from typing import Any


def with_integers(value: Any) -> Any:
    """Undo what protobuf does to JSON numbers: whole floats are integers again, at any depth."""
    if isinstance(value, dict):
        return {key: with_integers(item) for key, item in value.items()}
    if isinstance(value, list):
        return [with_integers(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value
