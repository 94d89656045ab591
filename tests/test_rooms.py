"""The rooms of the house: who may import whom."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import stereo_components
import stereo_pipelines

import stereo_core

TIERS = (
    ("cli", "step", "orchestration"),
    ("actions",),
    ("run", "training", "engines", "report", "automl", "quantization"),
    ("models", "data", "metrics"),
    ("spec", "storage"),
    ("arguments", "verbs", "files", "locks", "cores", "overlap", "progress", "values", "errors"),
)
"""From the top of the house to its ground: a room imports from its own tier and from those below it."""
TIER = {room: number for number, rooms in enumerate(TIERS) for room in rooms}
APART = {"orchestration": {"step", "actions"}}  # an engine starts steps; it never imports what they run
CORE = Path(stereo_core.__file__).parent


def imports(file: Path, package: str) -> Iterator[tuple[int, str]]:
    """Line and full name of everything that a file imports, wherever it does."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")[: -node.level + 1 or None] if node.level else []
            module = ".".join([*parents, *filter(None, [node.module])])
            yield from ((node.lineno, f"{module}.{alias.name}") for alias in node.names)


def upward(file: Path) -> list[str]:
    """The imports of a file of the core that do not run downwards."""
    *folders, _ = parts = file.relative_to(CORE).parts
    room, package = parts[0].removesuffix(".py"), ".".join(("stereo_core", *folders))
    found = []
    for line, name in imports(file, package):
        head, _, rest = name.partition(".")
        other = rest.partition(".")[0]
        if head == "stereo_core" and other in TIER and (TIER[other] < TIER[room] or other in APART.get(room, ())):
            found.append(f"{file.relative_to(CORE)}:{line} imports {name}")
    return found


def test_every_module_stands_in_a_room():
    here = {path.name.removesuffix(".py") for path in CORE.iterdir() if path.suffix == ".py" or path.is_dir()}
    assert here - {"__init__", "__pycache__"} <= set(TIER), "name its tier in TIERS"


def test_imports_run_downwards():
    files = set(CORE.rglob("*.py")) - {CORE / "__init__.py"}  # the front door, which names all rooms
    assert [one for file in sorted(files) for one in upward(file)] == []


@pytest.mark.parametrize(
    "text",
    [
        "from stereo_core.step.ports import Artifact",
        "import stereo_core.step.launch",
        "from stereo_core import cli",
        "def late():\n    from ..step import launch",
    ],
)
def test_an_upward_import_is_seen_in_any_form(tmp_path, monkeypatch, text):
    monkeypatch.setattr("test_rooms.CORE", tmp_path)
    file = tmp_path / "actions" / "train.py"
    file.parent.mkdir()
    file.write_text(text)
    assert len(upward(file)) == 1


@pytest.mark.parametrize("package", [stereo_components, stereo_pipelines])
def test_components_and_pipelines_never_import_torch(package):
    files = Path(package.__file__).parent.rglob("*.py")
    found = {name.partition(".")[0] for file in files for _, name in imports(file, package.__name__)}
    assert found.isdisjoint({"torch", "pytorch_lightning", "torchvision"})


def test_the_libraries_of_components_and_pipelines_load_without_torch():
    """Nor does what they take from the core bring it."""
    code = """
import sys, stereo_components, pkgutil, importlib, stereo_pipelines
for module in pkgutil.walk_packages(stereo_pipelines.__path__, "stereo_pipelines."):
    importlib.import_module(module.name)
print("torch" in sys.modules)
"""
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "False"
