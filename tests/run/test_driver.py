"""The driver starts beside other work, and no thread is left afterwards. A library of this test's stands for it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import pytest
from needs import lacking

DRIVER = '#include <unistd.h>\nint cuInit(unsigned flags) { sleep(1); return write(1, "driver\\n", 7), 0; }'
USE = """
import threading
from stereo_core.run.driver import driver_started
with driver_started():
    print("beside", flush=True)
assert threading.active_count() == 1
"""
STOPPED = """
from stereo_core.run.driver import driver_started
try:
    with driver_started():
        raise KeyboardInterrupt
except KeyboardInterrupt:
    print("stopped")
"""


@pytest.fixture
def library(tmp_path):
    """The folder of a libcuda.so.1 that prints one second after the call."""
    compiler = shutil.which("cc")
    if not compiler:
        lacking("compiler", "needs a C compiler")
    source, target = tmp_path / "driver.c", tmp_path / "libcuda.so.1"
    source.write_text(DRIVER)
    subprocess.run([compiler, "-shared", "-fPIC", "-o", target, source], check=True)
    return tmp_path


def _used(code: str = USE, **environment: str) -> list[str]:
    env = os.environ | environment
    return subprocess.run(
        [sys.executable, "-c", code], env=env, check=True, capture_output=True, text=True
    ).stdout.split()


def test_the_block_runs_while_the_driver_starts_and_waits_for_it(library):
    assert _used(LD_LIBRARY_PATH=str(library)) == ["beside", "driver"]


def test_ctrl_c_does_not_wait_for_the_driver(library):
    assert _used(STOPPED, LD_LIBRARY_PATH=str(library)) == ["stopped"]


def test_a_machine_without_a_driver_needs_none():
    assert _used() == ["beside"]
