"""How much is tried: little in `make test`, the same each time; as much as FUZZ_CASES says in `make fuzz`."""

from __future__ import annotations

import os
import resource
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

sys.path += [str(Path(__file__).parents[1] / room) for room in ("orchestration", "step")]  # their helpers

FAST_CASES = 40
ROOM = 1 << 30  # bytes that reading a damaged file may take

_COMMON = {"deadline": None, "database": None, "suppress_health_check": list(HealthCheck)}
settings.register_profile("fast", max_examples=FAST_CASES, derandomize=True, **_COMMON)
settings.register_profile("long", max_examples=int(os.environ.get("FUZZ_CASES", 10_000)), print_blob=True, **_COMMON)
settings.load_profile("fast")

CASES: Counter[str] = Counter()  # tried so far, by target
SECONDS: Counter[str] = Counter()


@pytest.fixture
def little_memory():
    """A process that may grow by ROOM: what asks for more fails here, not on the machine."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    with open("/proc/self/statm") as file:
        used = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + ROOM, hard))
    yield
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


@pytest.fixture
def counted(request):
    """A function to call once a case; `make fuzz` prints the counts and the seconds."""
    name, began = request.node.name, time.monotonic()
    yield lambda: CASES.update([name])
    SECONDS[name] += time.monotonic() - began


def pytest_terminal_summary(terminalreporter) -> None:
    if settings.get_current_profile_name() != "long":
        return
    width = max(map(len, CASES), default=0)
    terminalreporter.section("cases")
    for name, count in CASES.most_common():
        terminalreporter.line(f"{name:{width}} {count:>9,} cases {SECONDS[name]:>8.1f} s")
    terminalreporter.line(f"{'all':{width}} {CASES.total():>9,} cases {SECONDS.total():>8.1f} s")
