"""The starter's model card shows the figures of the file beside it."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

FOLDER = Path(__file__).parents[2] / "benchmarks"


def test_the_card_has_the_figures_of_its_file(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    pack = runpy.run_path(str(FOLDER / "pack_starter.py"))
    card, figures = pack["CARD"].read_text(encoding="utf-8"), json.loads(pack["FIGURES"].read_text(encoding="utf-8"))
    assert figures["rounds"] and figures["pairs"]
    assert all(row["pair"] in card for row in figures["pairs"])
    assert pack["with_tables"](card, figures) == card, "run benchmarks/pack_starter.py"
