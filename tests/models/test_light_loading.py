"""What loading and running a network must not import: torch's compiler takes seconds at the start of every run."""

from __future__ import annotations

import subprocess
import sys

import pytest

COMPILER = "print([name for name in ('torch._dynamo', 'torch._inductor', 'sympy') if name in sys.modules])"


@pytest.mark.parametrize("make", ["load_model('starter')", "create_model(name='FastFoundationStereo')"])
def test_a_network_needs_no_compiler(make):
    script = f"import sys, torch; from stereo_core.models import create_model, load_model; {make}; "
    script += f"import stereo_core.actions.predict.fast; {COMPILER}"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[-2] == "[]"
