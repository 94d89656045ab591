from __future__ import annotations

from pathlib import Path

import pytest
from samples import make_pair

from stereo_core.data.annotations import write_annotations


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    """A list `list.txt` of five samples with masks, made by `make_pair`."""
    write_annotations(tmp_path / "list.txt", [make_pair(tmp_path, f"{n:03d}", seed=n) for n in range(5)])
    return tmp_path
