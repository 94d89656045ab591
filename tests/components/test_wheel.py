"""Another repository's point of view: the wheel, a component from it, one from its YAML, and one of its own."""

from __future__ import annotations

import ast
import json
import os
import shutil
import subprocess
import sys
import tomllib
import venv
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
FOLDERS = ("stereo_core", "components", "pipelines")
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


def required(distribution: metadata.Distribution, *extras: str) -> Iterator[metadata.Distribution]:
    """Those of this environment's distributions that pip would install beside one, by their own metadata."""
    seen, open_ends = set(), [(distribution, extras)]
    while open_ends:
        one, extras = open_ends.pop()
        for requirement in map(Requirement, one.requires or []):
            here = requirement.marker is None or any(requirement.marker.evaluate({"extra": e}) for e in ("", *extras))
            key = requirement.name, *sorted(requirement.extras)
            if here and key not in seen:
                seen.add(key)
                open_ends.append((metadata.distribution(requirement.name), requirement.extras))
                yield open_ends[-1][0]


OF_TORCH = {"triton"}  # a torch for CUDA has it by its own requirements; without, plain twins of the kernels are taken


def test_what_is_imported_is_required():
    """By its own name: what only another package brings may go with it."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = {name: lines for name, lines in project["optional-dependencies"].items() if name != "dev"}
    lines = [*project["dependencies"], *(line for lines in extras.values() for line in lines)]
    ours = {canonicalize_name(Requirement(line).name) for line in lines} | {"stereo-pipelines"}
    brought_by = metadata.packages_distributions()
    for file in (file for folder in FOLDERS for file in (ROOT / folder).rglob("*.py")):
        for name in imported(ast.parse(file.read_text())) - sys.stdlib_module_names - OF_TORCH:
            assert ours & set(map(canonicalize_name, brought_by.get(name, [name]))), f"{file} imports {name}"


def imported(tree: ast.Module) -> set[str]:
    """The packages that a module imports, wherever it does."""
    names = [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
    names += [node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and not node.level]
    return {name.partition(".")[0] for name in names}


@pytest.mark.slow
def test_the_wheel_alone_serves_another_repository(tmp_path):
    source, home = tmp_path / "source", tmp_path / "venv"
    for name in FOLDERS:
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
    (site,) = home.glob("lib/python*/site-packages")
    (wheel,) = metadata.distributions(name="stereo-pipelines", path=[str(site)])
    for library in required(wheel, "pipelines"):
        for name in {file.parts[0] for file in library.files} - {"..", "__pycache__"}:
            if not (site / name).exists():
                (site / name).symlink_to(library.locate_file(name))

    assert (site / "stereo_core" / "py.typed").is_file(), "type checkers take the annotations"
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
