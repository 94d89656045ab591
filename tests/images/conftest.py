"""The runtime image, built for real: debootstrap's Debian as its base, podman's storage below build/containers.

The base stays there from one session to the next (.ci/run makes its base.tar beside the other tests); the image is
built anew in each.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from needs import lacking

from stereo_core import __version__
from stereo_core.orchestration.podman import Containers

ROOT = Path(__file__).parents[2]
BASE = "localhost/stereo-base:bookworm"
IMAGE = f"stereo-pipelines/runtime:{__version__}"
# For machines whose cgroups only runc can handle, whose limits no container may raise, and which have no systemd.
CONFIG = """
[containers]
netns = "none"
default_ulimits = ["nofile=1024:4096", "nproc=4096:4096"]
[engine]
cgroup_manager = "cgroupfs"
runtime = "runc"
events_logger = "file"
"""


sys.path.append(str(ROOT / "tests/orchestration"))  # for Argo's simulator


def run(*command: str | Path, **options) -> None:
    made = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, **options)
    assert made.returncode == 0, (made.stdout + made.stderr)[-3000:]


@pytest.fixture(scope="session")
def podman() -> Containers:
    """podman with storage of its own, where it, its parts and the right to use them are there."""
    missing = [tool for tool in ("podman", "runc", "debootstrap") if shutil.which(tool) is None]
    if missing or os.getuid():
        lacking("containers", f"needs root, podman, runc and debootstrap; missing here: {', '.join(missing) or 'root'}")
    folder = ROOT / "build/containers"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "containers.conf").write_text(CONFIG)
    storage = f'[storage]\ndriver = "overlay"\ngraphroot = "{folder}/root"\nrunroot = "{folder}/run"\n'
    (folder / "storage.conf").write_text(storage)
    os.environ["CONTAINERS_CONF"] = str(folder / "containers.conf")
    os.environ["CONTAINERS_STORAGE_CONF"] = str(folder / "storage.conf")
    if subprocess.run(["podman", "image", "exists", BASE], capture_output=True).returncode:
        base = folder / "base.tar"
        if not base.is_file():
            run(ROOT / "images/debootstrap-base.sh", base)
        run("podman", "import", base, BASE)
    tried = subprocess.run(
        ["podman", "run", "--rm", "--network=none", "--read-only", BASE, "true"], capture_output=True, text=True
    )
    if tried.returncode:
        lacking("containers", f"this machine runs no containers: {tried.stderr[-500:]}")
    return Containers("podman")


@pytest.fixture(scope="session")
def image(podman) -> str:
    """The name of runtime-cpu, as `make image-cpu` builds it."""
    flags = "--network none --isolation oci --layers=false"
    run("make", "image-cpu", "ENGINE=podman", f"BASE={BASE}", f"BUILD_FLAGS={flags}")
    subprocess.run(["podman", "image", "prune", "--force"], capture_output=True)
    return IMAGE


@pytest.fixture(scope="session")
def no_shell(image) -> str:
    """The name of the same image without a shell."""
    name = "localhost/stereo-pipelines/no-shell:1"  # as podman lists it
    text = f"FROM {image}\nUSER 0:0\nRUN rm /bin/sh /bin/dash /bin/bash /bin/rbash\nUSER 10001:0\n"
    run("podman", "build", "--network=none", "--isolation=oci", "--format=docker", f"--tag={name}", "-", input=text)
    tried = subprocess.run(["podman", "run", "--rm", "--network=none", name, "sh", "-c", "true"], capture_output=True)
    assert tried.returncode == 127
    return name
