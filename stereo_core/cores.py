"""How much of the machine's processor is for this process."""

from __future__ import annotations

import os


def usable_cores() -> int:
    """Processor cores that this process may use: a container's or a batch system's set counts, not the machine's."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
