"""The result of an action."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Outcome:
    """The result of an action. Output ports are those of the component with the same name.

    Attributes:
        message: one line for the console and the SUCCESS line of status.json.
        kpi: metrics by name without a prefix (`epe`, `bp1`, ...; shares in 0..1, errors in px).
        artifacts: output port -> file or folder.
        metadata: output port -> further artifact metadata, besides kind, format, sha256, bytes and producer.
        printed: the action has printed its figures itself, so `kpi` is not printed.
    """

    message: str
    kpi: dict[str, float] = field(default_factory=dict)
    artifacts: dict[str, Path] = field(default_factory=dict)
    metadata: dict[str, dict[str, Any]] = field(default_factory=dict)
    printed: bool = False
