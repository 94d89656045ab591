"""docs/api.md: each name is one with a docstring, from which `make docs` makes the page, and the example runs."""

from __future__ import annotations

import importlib
import inspect
import pydoc
import re
from pathlib import Path

import pytest

from stereo_core.models import FastFoundationStereo, FoundationStereo

PAGE = (Path(__file__).parents[2] / "docs/api.md").read_text(encoding="utf-8")
NAMES = re.findall(r"^\.\. auto\w+:: (\S+)", PAGE, re.MULTILINE)


def found(name: str):
    """What a dotted name stands for."""
    parts = name.split(".")
    for length in range(len(parts) - 1, 0, -1):
        try:
            thing = importlib.import_module(".".join(parts[:length]))
        except ImportError:
            continue
        for part in parts[length:]:
            thing = getattr(thing, part)
        return thing
    raise LookupError(name)


@pytest.mark.parametrize("name", NAMES)
def test_a_name_of_the_page_has_a_docstring(name):
    assert inspect.getdoc(found(name))


def test_the_page_names_the_calls_of_the_interface():
    assert {name.rpartition(".")[2] for name in NAMES} >= {
        "create_model",
        "load_model",
        "StereoNetwork",
        "infer",
        "predict",
    }


@pytest.mark.parametrize("network", [FoundationStereo, FastFoundationStereo])
def test_help_of_a_network_says_shapes_and_units(network):
    text = pydoc.plain(pydoc.render_doc(network.forward))
    for word in ("(B, 3, H, W)", "RGB, float, 0..255", "px of the given size", "(B, 1, H/4, W/4)", "ValueError"):
        assert word in text


def test_the_example_runs():
    [code] = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    there: dict = {}
    exec(code, there)
    assert there["disparity"].shape == (64, 96) and there["disparity"].dtype == "float32"
