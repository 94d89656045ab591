"""Which checkpoint is meant: `starter`, or of a training `results/train@best`, `@latest`, `@epoch=7`, `@step=1600`."""

from __future__ import annotations

import filecmp
import math
import os
import re
from pathlib import Path

from stereo_core.storage import is_uri

STARTER = "starter"  # the word; ./starter is a file
STARTER_FILE = Path(__file__).parents[1] / "models" / "starter" / "starter.safetensors"
LATEST = "dn_model_latest.pth"
BEST = "dn_model_best.pth"
CHOICES = "best, latest, epoch=N or step=N"
OF_A_TRAINING = "or <folder of a training>@best, @latest, @epoch=N, @step=N"  # for the keys' descriptions
OR_STARTER = f"{OF_A_TRAINING}, or starter: the package's own"
_LINKS = {"best": BEST, "latest": LATEST}
_NAME = re.compile(r"model_epoch_(\d+)_step_(\d+)\.pth")
_CHOICE = re.compile(r"best|latest|(epoch|step)=(\d+)")


class NoChoice(ValueError):
    """A choice that can not be made, and what there is instead."""


def checkpoints_of(folder: Path) -> list[Path]:
    """The checkpoints of the training in a folder, by their steps.

    Later steps than the link to the latest says are of an earlier run in the same folder and do not count.
    """
    steps = {path: int(match[2]) for path in folder.glob("model_epoch_*") if (match := _NAME.fullmatch(path.name))}
    newest = _NAME.fullmatch(led_to(folder / LATEST).name)
    last = int(newest[2]) if newest else math.inf
    return sorted((path for path, step in steps.items() if step <= last), key=steps.get)


def led_to(link: Path) -> Path:
    """The checkpoint that a training's link leads to.

    Where a file system has no symbolic links it is another name, or a copy, of a checkpoint beside it; a file that none
    is like, of a folder that was copied in part, is itself.
    """
    if link.is_symlink():
        return Path(os.path.normpath(link.parent / os.readlink(link)))
    like = (path for path in sorted(link.parent.glob("model_epoch_*"), reverse=True) if _NAME.fullmatch(path.name))
    return next((path for path in like if link.is_file() and _same(link, path)), link)


def _same(one: Path, other: Path) -> bool:
    return one.samefile(other) or filecmp.cmp(one, other, shallow=False)


def chosen(named: str | Path) -> Path:
    """The file that a key for checkpoints names: the package's own for the word starter, a path as it is, or the choice
    behind the last `@` of a folder.

    best and latest are where the training's links lead (best: by its `train.monitor`); epoch (from 0, as in the files'
    names) is the last checkpoint of that epoch.

    Raises:
        NoChoice: the folder has no such checkpoint, or it is not said which one is meant. None is taken in its place.
    """
    if named == STARTER:  # a Path never equals a text: it is a file
        return STARTER_FILE
    text = str(named)
    path, (where, _, choice) = Path(text), text.rpartition("@")
    match, folder = _CHOICE.fullmatch(choice), Path(where)
    if is_uri(text) and match:
        raise NoChoice(f"{text}: only a folder of this machine can be searched; name the object, as {where}/{BEST}")
    if is_uri(text) or os.path.isfile(path):
        return path
    if os.path.isdir(path):
        raise NoChoice(f"{text}: a folder; say which checkpoint, {text}@ with {CHOICES}{_held(path)}")
    if not where or not (match or os.path.isdir(folder)):
        return path
    if not match:
        raise NoChoice(f"{text}: {choice} is no choice, they are {CHOICES}{_held(folder)}")
    if not os.path.isdir(folder):
        raise NoChoice(f"{text}: no such folder: {where}")
    file = _linked(folder / _LINKS[choice]) if choice in _LINKS else _numbered(folder, match[1], int(match[2]))
    if file is None:
        raise NoChoice(f"{text}: there is none{_held(folder)}")
    return file


def _linked(link: Path) -> Path | None:
    file = led_to(link)
    return file if file.is_file() else None


def _numbered(folder: Path, unit: str, number: int) -> Path | None:
    group = {"epoch": 1, "step": 2}[unit]
    files = [path for path in checkpoints_of(folder) if int(_NAME.fullmatch(path.name)[group]) == number]
    return files[-1] if files else None


def beside(path: Path) -> str:
    """What a training left where a checkpoint is missing, for an error message; empty where it left nothing."""
    return _held(path.parent) if checkpoints_of(path.parent) else ""


def _held(folder: Path) -> str:
    files = {name: _linked(folder / link) for name, link in _LINKS.items()}
    held = [", ".join(path.name for path in checkpoints_of(folder)) or "no checkpoint of a training"]
    held += [f"{name} is {os.path.relpath(file, folder)}" for name, file in files.items() if file]
    return f"; the folder holds {', '.join(held)}"
