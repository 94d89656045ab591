"""Another repository's point of view: the wheel alone, a component from it, one from its YAML, and one of its own."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
THEIRS = """
import sys
from pathlib import Path
import stereo_components, stereo_core
from kfp import compiler, components, dsl

home = Path(stereo_components.__file__).parent
assert home.is_relative_to(sys.prefix) and stereo_core.__file__.startswith(sys.prefix), home
convert = components.load_component_from_file(str(home / "convert" / "component.yaml"))


@dsl.container_component
def count(lists: dsl.Input[dsl.Dataset], pairs: dsl.OutputPath(int)):
    code = "import pathlib, sys; files = pathlib.Path(sys.argv[1]).glob('*.txt'); "
    code += "n = sum(len(file.read_text().splitlines()) for file in files); "
    code += "pathlib.Path(sys.argv[2]).write_text(str(n))"
    return dsl.ContainerSpec(image="theirs", command=["python"], args=["-c", code, lists.path, pairs])


PATTERNS = {"image_dir_pattern": ["left/rgb"], "right_dir_pattern": ["right/rgb"], "image_extension": ".png"}


@dsl.pipeline(name="theirs")
def theirs(scenes: int = 3):
    images = stereo_components.synthesize(num_scenes=scenes, height=64, width=96, max_disparity=16)
    lists = convert(images=images.outputs["images"], spec=PATTERNS)
    count(lists=lists.outputs["annotations"])


compiler.Compiler().compile(theirs, "theirs.yaml")
"""


@pytest.mark.slow
def test_the_wheel_alone_serves_another_repository(tmp_path):
    source, home = tmp_path / "source", tmp_path / "venv"
    for name in ("stereo_core", "components", "pipelines"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    build = "from setuptools import build_meta; print(build_meta.build_wheel(sys.argv[1]))"
    subprocess.run([sys.executable, "-c", f"import sys; {build}", str(tmp_path)], cwd=source, check=True)
    (wheel,) = tmp_path.glob("*.whl")

    venv.create(home, with_pip=False, symlinks=True)
    python = home / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--no-index", "--no-deps", "--quiet"]
    subprocess.run([*pip, str(wheel)], check=True)
    # The libraries of this environment, without its own .pth files: an editable install of this tree stays unseen.
    (site,) = home.glob("lib/python*/site-packages")
    (site / "libraries.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")

    (tmp_path / "theirs.py").write_text(THEIRS)
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    environment["PATH"] = f"{home / 'bin'}{os.pathsep}{environment['PATH']}"
    run = {"cwd": tmp_path, "env": environment, "check": True}
    subprocess.run([python, "theirs.py"], **run)
    engine = [home / "bin" / "stereo-pipelines", "run", "theirs.yaml", "--output-dir", "run", "--param", "scenes=2"]
    subprocess.run(engine, **run)
    tasks = json.loads((tmp_path / "run" / "run.json").read_text())["tasks"]
    assert set(tasks) == {"synthesize", "convert", "count"}
    assert tasks["count"]["parameters"] == {"pairs": 2}
    assert tasks["convert"]["artifacts"]["annotations"]["metadata"]["kind"] == "annotations"
    listed = subprocess.run([home / "bin" / "stereo-pipelines", "list"], **run, capture_output=True, text=True).stdout
    assert "nightly_regression" in listed and "publish_model" in listed, "each folder travels with its compiled YAML"
    refused = subprocess.run([home / "bin" / "stereo-pipelines", "compile"], **run | {"check": False})
    assert refused.returncode == 2, "an installed library is not written to"
    environment["STEREO_PIPELINES_IMAGE"] = "registry.example/stereo:1@sha256:0f"
    subprocess.run([home / "bin" / "stereo-pipelines", "compile", "--output-dir", "mine"], **run)
    for name in ("stereo_components/train/component.yaml", "stereo_pipelines/demo/compiled/demo.argo.yaml"):
        text = (tmp_path / "mine" / name).read_text()
        assert "registry.example/stereo:1@sha256:0f" in text and "stereo-pipelines/runtime" not in text
