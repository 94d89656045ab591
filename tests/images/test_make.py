"""What `make image-...` would do; runtime-cpu is built for real in test_runtime_image.py."""

import re
import subprocess
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BASE = "registry.example/python:3.11@sha256:" + "0f" * 32
ON_GPU = {"tensorrt", "tensorrt-rtx"}
RUNTIME = {"quantize", "automl", "tracking"}


@pytest.mark.parametrize(("target", "slim"), [("image-cpu", True), ("image-gpu", False), ("image-deploy", True)])
def test_what_compiles_at_run_time_has_a_base_with_a_compiler(target, slim):
    """Docker's python images have gcc and Python's headers, the slim ones no gcc."""
    told = subprocess.run(["make", "--dry-run", target], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    (base,) = re.findall(r"base='([^']*)'", told)
    assert base == "docker.io/library/python:3.11-" + ("slim-bookworm" if slim else "bookworm")


@pytest.mark.parametrize("engine", ["podman", "docker"])
@pytest.mark.parametrize(
    ("target", "name", "extras"),
    [
        ("image-cpu", "runtime-cpu", RUNTIME | {"openvino"}),
        ("image-gpu", "runtime-gpu", RUNTIME | ON_GPU | {"modelopt"}),
        ("image-deploy", "deploy-gpu", ON_GPU),
    ],
)
def test_each_image_has_its_extras_and_base(target, name, extras, engine):
    command = ["make", "--dry-run", target, f"ENGINE={engine}", f"BASE={BASE}"]
    told = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    build = " ".join(told.replace("\\\n", " ").split())
    given = dict(word.split("=", 1) for word in re.findall(r"--build-arg (\S+)", build))
    assert set(given["EXTRAS"].split(",")) == extras and given["NAME"] == name
    assert f"'.[{given['EXTRAS']}]'" in build  # the wheels
    assert f"base='{BASE}'" in build and given["BASE"] == "$base"
    steps = ["stereo-pipelines/runtime:$version"] if name.startswith("runtime") else []
    assert re.findall(r"--tag (\S+)", build) == [f"stereo-pipelines/{name}:$version", *steps]
    assert (f"{engine} build --format docker" in build) == (engine == "podman")  # docker has no other
    assert extras <= tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"].keys()
