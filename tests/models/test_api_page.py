"""docs/api.md: each call is what the code takes, each has a text that `help` shows, and the example runs."""

from __future__ import annotations

import importlib
import inspect
import pydoc
import re
from pathlib import Path

import pytest

from stereo_core.models import FastFoundationStereo, FoundationStereo

PAGE = (Path(__file__).parents[2] / "docs/api.md").read_text(encoding="utf-8")
CALLS = re.findall(r"^\| `(stereo_core[\w.]*)(\(.*?\))` \|", PAGE, re.MULTILINE)


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


def without_types(thing) -> str:
    signature = inspect.signature(thing)
    parameters = [one.replace(annotation=one.empty) for one in signature.parameters.values()]
    return str(signature.replace(parameters=parameters, return_annotation=signature.empty))


@pytest.mark.parametrize(("name", "arguments"), CALLS, ids=[name for name, _ in CALLS])
def test_a_call_of_the_page_is_the_one_of_the_code(name, arguments):
    assert without_types(found(name)) == arguments
    assert inspect.getdoc(found(name))


def test_the_page_names_the_calls_of_the_interface():
    assert {name.rpartition(".")[2] for name, _ in CALLS} >= {
        "create_model",
        "load_model",
        "forward",
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
