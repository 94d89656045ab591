"""convert: a folder of stereo pairs -> annotation lists.

A left image is a file whose path below data_root holds every entry of `image_dir_pattern` and ends in
`image_extension` (in any case; at most one character: any suffix). Its right image, disparity and mask are found by
replacing, in that path, `image_dir_pattern[i]` by `right_dir_pattern[i]` (`depth_...`, `nocc_...`) for every i that
both lists have, and, for disparity and mask, the suffix by `depth_extension` (`nocc_extension`).

Every folder is listed once and derived files are looked up in the listings. A sample whose derived file is missing is
left out and listed in `missing.txt`; with `strict` it is an error.

Split: `split_ratio` 0 or 1 gives test.txt; otherwise train.txt gets int(samples * ratio) of them, chosen by `seed`, and
val.txt the rest; with `split_by_scene` whole scenes (first folders below data_root) go to one side. Lists are sorted.
"""

from __future__ import annotations

import functools
import logging
import os
import random
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from stereo_core.actions import Outcome
from stereo_core.data.annotations import write_annotations
from stereo_core.errors import DataError, SpecError
from stereo_core.spec import results_dir

logger = logging.getLogger(__name__)

Derive = Callable[[str], str]


def run(spec: Any, status: Any) -> Outcome:
    """Write {train,val} or {test}.txt (and missing.txt) to the results folder.

    Raises:
        SpecError: patterns that can not pair anything.
        DataError: no sample found, an unreadable folder, or with `strict` a missing file.
    """
    folder, root = results_dir(spec, "convert"), os.path.abspath(spec.data_root)
    derives = _derives(spec)
    tree = Tree(root)
    lefts = sorted(tree.find(spec.image_dir_pattern, _suffix(spec.image_extension)))
    if not lefts:
        raise DataError(
            f"data_root {root}: none of {tree.files} files has image_dir_pattern {list(spec.image_dir_pattern)}"
            f" in its path below data_root and ends in image_extension '{spec.image_extension}'"
        )
    samples, respelled, missing = _check(tree, lefts, derives)
    _report_missing(spec, folder, root, missing, samples)

    prefix = "" if spec.relative_paths else os.path.join(root, "")
    counts = {}
    for name, chosen in split(samples, spec.split_ratio, spec.seed, spec.split_by_scene).items():
        rows = (_row(left, derives, respelled, prefix) for left in chosen)
        write_annotations(folder / f"{name}.txt", rows)
        counts[name] = len(chosen)
        if not chosen:
            logger.warning("%s.txt is empty: split_ratio %s of %d samples", name, spec.split_ratio, len(samples))
    shares = ", ".join(f"{name} {count}" for name, count in counts.items())
    message = f"{len(samples)} samples ({shares}), {len(missing)} left out because a file is missing"
    return Outcome(message, artifacts={"annotations": folder})


class Tree:
    """The files below a root. Each folder is read once; its names are kept as one string, the cheapest way.

    Folders are written relative to the root with a `/` at the end; the root itself is ''.
    """

    def __init__(self, root: str) -> None:
        self.root, self.files = root, 0
        self._listings: dict[str, str] = {}
        self._names = functools.lru_cache(maxsize=32)(self._split_listing)

    def find(self, patterns: list[str], suffix: str) -> Iterator[str]:
        """Walk the tree, of any depth; yield the paths that hold all patterns and end in `suffix` (lower case)."""
        for folder, names in self._walk():
            self._listings[folder] = "/".join(names)
            self.files += len(names)
            open_patterns = [pattern for pattern in patterns if pattern not in folder]
            for name in names:
                if name.endswith(suffix) or name.lower().endswith(suffix):
                    path = folder + name
                    if not open_patterns or all(pattern in path for pattern in open_patterns):
                        yield path

    def spelling(self, path: str) -> str | None:
        """The path as it stands in the tree (its suffix may be in another case), or None when there is no such file."""
        folder, slash, name = path.rpartition("/")
        names = self._names(folder + slash)
        if name in names:
            return path
        stem, suffix = os.path.splitext(name)
        spellings = (stem + suffix.lower(), stem + suffix.upper())
        return next((folder + slash + spelling for spelling in spellings if spelling in names), None)

    def _split_listing(self, folder: str) -> frozenset[str]:
        listing = self._listings.get(folder)
        if listing is not None:
            return frozenset(listing.split("/"))
        try:  # a replacement may lead out of the tree that was walked, as '../' does
            return frozenset(os.listdir(os.path.join(self.root, folder)))
        except OSError:
            return frozenset()

    def _walk(self) -> Iterator[tuple[str, list[str]]]:
        pending = [""]
        while pending:
            folder, names = pending.pop(), []
            try:
                with os.scandir(os.path.join(self.root, folder)) as entries:
                    for entry in entries:
                        if not entry.is_dir():
                            names.append(entry.name)
                        elif not (entry.is_symlink() and _leads_back(entry.path)):
                            pending.append(f"{folder}{entry.name}/")
            except OSError as error:
                where = os.path.join(self.root, folder)
                raise DataError(f"data_root: can not list the folder {where}: {error.strerror}") from error
            yield folder, names


def _leads_back(link: str) -> bool:
    """Whether a symbolic link leads to a folder that holds it: following it would never end."""
    return (os.path.realpath(os.path.dirname(link)) + os.sep).startswith(os.path.realpath(link) + os.sep)


def _suffix(extension: str) -> str:
    """An extension as a lower-case suffix: 'png' means '.png'; '_10.png' stays; one character or none is any suffix."""
    if len(extension) <= 1:
        return ""
    return (f".{extension}" if extension.isalnum() else extension).lower()


def _derives(spec: Any) -> list[Derive]:
    """The rules left path -> right, disparity and mask path, as many as the spec asks for."""
    if not spec.right_dir_pattern:
        raise SpecError("right_dir_pattern: empty; a stereo list needs the right image")
    if spec.nocc_dir_pattern and not spec.depth_dir_pattern:
        raise SpecError("nocc_dir_pattern: a mask needs a disparity; set depth_dir_pattern too")
    old = spec.image_extension
    rules = [("right_dir_pattern", spec.right_dir_pattern, None)]
    if spec.depth_dir_pattern:
        rules.append(("depth_dir_pattern", spec.depth_dir_pattern, spec.depth_extension))
    if spec.nocc_dir_pattern:
        rules.append(("nocc_dir_pattern", spec.nocc_dir_pattern, spec.nocc_extension))
    return [_derive(key, spec.image_dir_pattern, patterns, old, new) for key, patterns, new in rules]


def _derive(key: str, sources: list[str], targets: list[str], old: str, new: str | None) -> Derive:
    pairs = {source: target for source, target in zip(sources, targets, strict=False) if source}
    if all(source == target for source, target in pairs.items()) and new is None:
        raise SpecError(f"{key}: {list(targets)} replaces nothing of image_dir_pattern {list(sources)}")
    replace = _replacement(pairs)
    if not new:
        return replace
    old_suffix, new_suffix = _suffix(old), f".{new}" if new.isalnum() else new

    def derive(left: str) -> str:
        path = replace(left)
        if not old_suffix:
            return os.path.splitext(path)[0] + new_suffix
        if path.lower().endswith(old_suffix):
            return path[: -len(old_suffix)] + new_suffix
        return path  # a pattern has replaced the suffix already

    return derive


def _replacement(pairs: dict[str, str]) -> Derive:
    """Replace all pairs at once, so that no pair replaces what another has written; the longest pattern first."""
    if len(pairs) == 1:
        [(source, target)] = pairs.items()
        return lambda path: path.replace(source, target)
    if not pairs:
        return lambda path: path
    pattern = re.compile("|".join(map(re.escape, sorted(pairs, key=len, reverse=True))))
    return lambda path: pattern.sub(lambda match: pairs[match[0]], path)


def _check(
    tree: Tree, lefts: list[str], derives: list[Derive]
) -> tuple[list[str], dict[tuple[str, int], str], list[tuple[str, str]]]:
    """Look up every derived file.

    Returns:
        the left paths of whole samples; (left, column) -> path where the tree spells a suffix in another case;
        (missing path, left path) of the others.
    """
    samples, respelled, missing = [], {}, []
    for left in lefts:
        for column, derive in enumerate(derives):
            path = derive(left)
            spelling = tree.spelling(path)
            if spelling is None or spelling == left:
                missing.append((path, left))
                break
            if spelling != path:
                respelled[left, column] = spelling
        else:
            samples.append(left)
    return samples, respelled, missing


def _report_missing(spec: Any, folder: Path, root: str, missing: list[tuple[str, str]], samples: list[str]) -> None:
    (folder / "missing.txt").unlink(missing_ok=True)
    if not missing:
        return
    examples = "\n".join(f"  {path} (for {left})" for path, left in missing[:5])
    text = f"data_root {root}: {len(missing)} left images lack a derived file, among them\n{examples}"
    if spec.strict or not samples:
        mend = (
            f"check right_dir_pattern {list(spec.right_dir_pattern)}, depth_dir_pattern {list(spec.depth_dir_pattern)},"
            f" depth_extension '{spec.depth_extension}', nocc_dir_pattern {list(spec.nocc_dir_pattern)},"
            f" nocc_extension '{spec.nocc_extension}'"
        )
        raise DataError(f"{text}\n{mend}" + (" or set strict=false to leave them out" if samples else ""))
    write_annotations(folder / "missing.txt", missing)
    logger.warning("%s\nthey are left out; all of them are in %s", text, folder / "missing.txt")


def split(samples: list[str], ratio: float, seed: int, by_scene: bool) -> dict[str, list[str]]:
    """Divide sorted samples into {"test": ...} (ratio 0 or 1) or {"train": ..., "val": ...}; each part is sorted.

    By scene, int(scenes * ratio) scenes, but at least one on either side, go to train.

    Raises:
        SpecError: the ratio is outside 0..1.
        DataError: by scene, and there is only one.
    """
    if not 0 <= ratio <= 1:
        raise SpecError(f"split_ratio: {ratio} is outside 0..1")
    if ratio in (0, 1):
        return {"test": samples}
    chooser = random.Random(seed)
    if not by_scene:
        train = set(chooser.sample(range(len(samples)), int(len(samples) * ratio)))
        chosen = [index in train for index in range(len(samples))]
    else:
        scenes = sorted({_scene(left) for left in samples})
        if len(scenes) < 2:
            raise DataError(
                f"split_by_scene: all {len(samples)} samples are in one scene ('{scenes[0]}'; a scene is the first"
                " folder below data_root); set split_by_scene=false or another data_root"
            )
        count = min(max(int(len(scenes) * ratio), 1), len(scenes) - 1)
        train_scenes = set(chooser.sample(scenes, count))
        chosen = [_scene(left) in train_scenes for left in samples]
    parts = {"train": True, "val": False}
    return {
        name: [left for left, in_train in zip(samples, chosen, strict=True) if in_train is part]
        for name, part in parts.items()
    }


def _scene(left: str) -> str:
    return left.partition("/")[0] if "/" in left else ""


def _row(left: str, derives: list[Derive], respelled: dict[tuple[str, int], str], prefix: str) -> list[str]:
    if respelled:
        derived = [respelled.get((left, column)) or derive(left) for column, derive in enumerate(derives)]
    else:
        derived = [derive(left) for derive in derives]
    return [prefix + path for path in (left, *derived)]
