from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from messages import executor_input, output_of


@pytest.fixture(scope="session")
def images(tmp_path_factory) -> dict:
    """The images artifact of a real synthesize task."""
    folder = tmp_path_factory.mktemp("synthesize")
    small = {"num_scenes": 3.0, "height": 64.0, "width": 96.0, "max_disparity": 24.0}
    command = [str(Path(sys.executable).parent / "depth_net-launch"), "synthesize"]
    subprocess.run([*command, executor_input(folder, {}, ("images",), small)], check=True)
    return output_of(folder, "images")
