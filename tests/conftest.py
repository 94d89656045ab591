"""What every test may use."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from needs import lacking

pytest_plugins = ["s3_server"]

# Test processes run side by side: threads that wait for each other while spinning would slow all of them tenfold.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# Runs of tests go to nobody's account.
os.environ["WANDB_MODE"] = "disabled"
os.environ.pop("MLFLOW_TRACKING_URI", None)

ROOT = Path(__file__).parents[1]


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu"):
        import torch  # few tests need it

        if not torch.cuda.is_available():
            lacking("gpu", "needs a CUDA device")


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of facts, goldens and real data that lies beside the project, where it is there."""
    folder = ROOT.parent / "shared"
    if not (folder / "INTERFACES.md").is_file():
        lacking("shared", f"{folder} is not here: facts, goldens and real benchmark pairs are not part of the project")
    return folder


@pytest.fixture
def terminal(monkeypatch) -> io.StringIO:
    """A terminal, for a test to set as sys.stderr; it keeps what it gets to see."""

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setenv("TERM", "xterm")
    return Terminal()


@pytest.fixture
def on_a_small_disk():
    """Runs a command to which a folder is a file system of its own, of a size, that goes with the command."""

    def run(folder: Path, size: str, *command: str | Path) -> subprocess.CompletedProcess:
        alone = ["unshare", "-rm"]
        if shutil.which("unshare") is None or subprocess.run([*alone, "true"], capture_output=True).returncode:
            pytest.skip("no file system can be mounted here")
        folder.mkdir(parents=True, exist_ok=True)
        mount = f"mount -t tmpfs -o size={size} tmpfs '{folder}' && exec \"$@\""
        return subprocess.run([*alone, "sh", "-c", mount, "sh", *command], capture_output=True, text=True)

    return run
