"""Benchmarks are run by hand and seldom: that they still start is looked at here."""

from __future__ import annotations

import re
import runpy
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "benchmarks"
SCRIPTS = sorted(path.name for path in FOLDER.glob("*.py") if "__main__" in path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", SCRIPTS)
def test_it_imports_what_it_needs_and_says_how_it_is_run(name, monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(FOLDER))
    monkeypatch.setattr(sys, "argv", [name, "--help"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(FOLDER / name), run_name="__main__")
    assert ended.value.code == 0
    assert f"benchmarks/{name}" in capsys.readouterr().out


@pytest.mark.parametrize("page", ["benchmarks/RESULTS.md", "README.md", "Makefile"])
def test_scripts_that_a_page_names_are_there(page):
    named = set(re.findall(r"benchmarks/(\w+\.py)", (ROOT / page).read_text(encoding="utf-8")))
    assert named <= set(SCRIPTS)
    assert named or page == "README.md"
