"""CPU cores and threads that this process may use."""

from __future__ import annotations

import os
from collections.abc import Mapping

from stereo_core.values import digits


def usable_cores() -> int:
    """CPU cores that this process may use. The limits of a container or a batch system count, not the whole machine."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def threads(environment: Mapping[str, str] = os.environ) -> int:
    """Threads for a library that does not read OMP_NUM_THREADS itself, so that the variable limits every library.

    OpenMP takes a number, or a list with one for each level of nested parallel regions; the first level counts here.
    """
    limit = environment.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    return digits(limit) or usable_cores()


def share_cores() -> None:
    """Let idle threads of numeric libraries sleep instead of spin. Call it before torch is imported.

    Spinning threads are fast on an idle machine, but ten times slower when actions, data loaders or other pods share
    the cores.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
