"""Finds the checkpoint that a key names: `starter`, or `results/train@best`, `@latest`, `@epoch=7`, `@step=1600`."""

from __future__ import annotations

import filecmp
import math
import os
import re
from pathlib import Path

from stereo_core.storage import is_uri

STARTER = "starter"  # the model in the package; write ./starter for a file of that name
STARTER_FILE = Path(__file__).parents[1] / "models" / "starter" / "starter.safetensors"
LATEST = "dn_model_latest.pth"
BEST = "dn_model_best.pth"
CHOICES = "best, latest, epoch=N or step=N"
OF_A_TRAINING = "or <training folder>@best, @latest, @epoch=N, @step=N"  # for the keys' descriptions
OR_STARTER = f"{OF_A_TRAINING}, or starter (the model in the package)"
_LINKS = {"best": BEST, "latest": LATEST}
_NAME = re.compile(r"model_epoch_(\d+)_step_(\d+)\.pth")
_CHOICE = re.compile(r"best|latest|(epoch|step)=([0-9]{1,18})")


class NoChoice(ValueError):
    """A name that matches no checkpoint; the message lists those that exist."""


def checkpoints_of(folder: Path) -> list[Path]:
    """The checkpoints of the training run in a folder, sorted by step.

    Checkpoints after the one that dn_model_latest.pth links to belong to an earlier run and are left out.
    """
    steps = {path: int(match[2]) for path in folder.glob("model_epoch_*") if (match := _NAME.fullmatch(path.name))}
    newest = _NAME.fullmatch(led_to(folder / LATEST).name)
    last = int(newest[2]) if newest else math.inf
    return sorted((path for path, step in steps.items() if step <= last), key=lambda path: steps[path])


def led_to(link: Path) -> Path:
    """The checkpoint that one of a training run's links points to.

    On a file system without symbolic links the "link" is a hard link or a copy; then the equal checkpoint beside it is
    returned, or the file itself if there is none (e.g. in a partly copied folder).
    """
    if link.is_symlink():
        return Path(os.path.normpath(link.parent / os.readlink(link)))
    like = (path for path in sorted(link.parent.glob("model_epoch_*"), reverse=True) if _NAME.fullmatch(path.name))
    return next((path for path in like if link.is_file() and _same(link, path)), link)


def _same(one: Path, other: Path) -> bool:
    return one.samefile(other) or filecmp.cmp(one, other, shallow=False)


def chosen(named: str | Path) -> Path:
    """The file that a checkpoint key names: the package's model for `starter`, a path unchanged, or the choice after
    the last `@` of a folder.

    best and latest follow the training run's links (best by its `train.monitor`). epoch counts from 0, as in the file
    names, and gives the last checkpoint of that epoch.

    Raises:
        NoChoice: the folder has no such checkpoint, or a choice is missing. Another checkpoint is never used instead.
    """
    if named == STARTER:  # only a string; Path("starter") is a file
        return STARTER_FILE
    text = str(named)
    path, (where, _, choice) = Path(text), text.rpartition("@")
    match, folder = _CHOICE.fullmatch(choice), Path(where)
    if is_uri(text) and match:
        raise NoChoice(f"{text}: @ works only for local folders; name the file in the bucket, such as {where}/{BEST}")
    if is_uri(text) or os.path.isfile(path):
        return path
    if os.path.isdir(path):
        raise NoChoice(f"{text}: is a folder; add @ and a choice of its checkpoints: {CHOICES}{_held(path)}")
    if not where or not (match or os.path.isdir(folder)):
        return path
    if not match:
        raise NoChoice(f"{text}: {choice} is not one of {CHOICES}{_held(folder)}")
    if not os.path.isdir(folder):
        raise NoChoice(f"{text}: no such folder: {where}")
    file = _linked(folder / _LINKS[choice]) if choice in _LINKS else _numbered(folder, match[1], int(match[2]))
    if file is None:
        raise NoChoice(f"{text}: no such checkpoint{_held(folder)}")
    return file


def _linked(link: Path) -> Path | None:
    file = led_to(link)
    return file if file.is_file() else None


def _numbered(folder: Path, unit: str, number: int) -> Path | None:
    group = {"epoch": 1, "step": 2}[unit]
    files = [
        path for path in checkpoints_of(folder) if (match := _NAME.fullmatch(path.name)) and int(match[group]) == number
    ]
    return files[-1] if files else None


def beside(path: Path) -> str:
    """For an error about a missing checkpoint: the checkpoints in its folder; empty if there are none."""
    return _held(path.parent) if checkpoints_of(path.parent) else ""


def _held(folder: Path) -> str:
    files = {name: _linked(folder / link) for name, link in _LINKS.items()}
    held = [", ".join(path.name for path in checkpoints_of(folder)) or "no checkpoint of a training"]
    held += [f"{name} is {os.path.relpath(file, folder)}" for name, file in files.items() if file]
    return f"; the folder holds {', '.join(held)}"
