"""The names of the newest and the best checkpoint, on file systems that have no links."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from stereo_core.files import point


def refuse(*_, **__):
    raise PermissionError(1, "Operation not permitted")


@pytest.mark.parametrize("missing", [(), ("symlink",), ("symlink", "link")])
def test_a_name_points_at_the_newest_whatever_links_can_be_made(tmp_path: Path, monkeypatch, missing):
    for name in missing:
        monkeypatch.setattr(os, name, refuse)
    link = tmp_path / "dn_model_latest.pth"
    for text in ("one", "two", "two"):
        target = tmp_path / f"{text}.pth"
        target.write_text(text)
        point(link, target)
        assert link.read_text() == text
    assert link.is_symlink() is (not missing)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dn_model_latest.pth", "one.pth", "two.pth"]
