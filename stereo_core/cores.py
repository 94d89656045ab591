"""How much of the machine's processor is for this process."""

from __future__ import annotations

import os


def usable_cores() -> int:
    """Processor cores that this process may use: a container's or a batch system's set counts, not the machine's."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def threads() -> int:
    """Threads that a library may compute with which reads no OMP_* variables: OMP_NUM_THREADS holds for all alike."""
    asked = os.environ.get("OMP_NUM_THREADS", "")
    return int(asked) if asked.isdigit() and int(asked) else usable_cores()


def share_cores() -> None:
    """Let the threads of numeric libraries sleep while they wait; before torch is imported, which reads it.

    Spinning threads are fast on an idle machine and ten times slower where actions, data loaders or other pods share
    the cores.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
