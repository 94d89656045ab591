"""What is in a bucket, and what runs leave on this machine."""

from __future__ import annotations

from pathlib import Path

from stereo_core import storage


def names(uri: str) -> set[str]:
    return set(storage.children(uri, recursive=True))


def left_over(folder: Path) -> list[Path]:
    return list((folder / "cache" / "runs").glob("*"))
