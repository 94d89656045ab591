"""convert: a folder of stereo pairs -> annotation lists.

A left image is a file whose path below data_root contains every entry of `image_dir_pattern` and ends in
`image_extension` (case-insensitive; at most one character: any suffix). To find its right image, disparity and mask,
`image_dir_pattern[i]` is replaced in that path by `right_dir_pattern[i]` (`depth_...`, `nocc_...`) for every i that
both lists have, and, for disparity and mask, the suffix by `depth_extension` (`nocc_extension`). If the extension is
empty, the image's suffix is used, or that of the only file with this name.

Every folder is listed once, and derived files are looked up in the listings. A sample with a missing derived file is
left out and listed in `missing.txt`; with `strict` it is an error.

Split: with `split_ratio` 0 or 1 all samples go to test.txt; otherwise train.txt gets int(samples * ratio) samples
    chosen
by `seed`, and val.txt the rest. With `split_by_scene` whole scenes (first folders below data_root) go to one list.
Lists are sorted.
"""

from __future__ import annotations

import logging
import operator
import os
import random
from collections.abc import Collection, Iterator
from functools import partial
from itertools import compress, islice
from pathlib import Path
from typing import Any

from stereo_core.data import shards
from stereo_core.data.annotations import write_annotations
from stereo_core.data.trees import Rule, Tree, dotted, replacing
from stereo_core.errors import DataError, SpecError
from stereo_core.progress import bars, heartbeat
from stereo_core.run.outcome import Outcome
from stereo_core.spec import results_dir
from stereo_core.values import counted

logger = logging.getLogger(__name__)

CHUNK = 4096
"""Number of samples whose derived paths are in memory at once."""


def run(spec: Any, status: Any) -> Outcome:
    """Write {train,val} or {test}.txt (and missing.txt) to the results folder.

    Raises:
        SpecError: patterns that cannot match any pair.
        DataError: no sample is found, a folder is unreadable, or with `strict` a file is missing.
    """
    folder, root = results_dir(spec, "convert"), os.path.abspath(spec.data_root).rstrip("/")
    rules = _rules(spec)
    files = shards.packed(root or "/")
    if files and not spec.relative_paths:
        mend = "set relative_paths=true, and set the same data_root where the lists are used"
        raise SpecError(f"data_root: {root} is a packed folder: {mend}")
    tree, lefts = _lefts(spec, root, files)
    extensions = ("?", spec.depth_extension, spec.nocc_extension)
    samples, respelled, missing = _check(tree, lefts, rules, [not extension for extension in extensions])
    _report_missing(spec, folder, root, missing, bool(samples))

    prefix = None if spec.relative_paths else root
    parts = split(samples, spec.split_ratio, spec.seed, spec.split_by_scene)
    for name, part in parts.items():
        write_annotations(folder / f"{name}.txt", _rows(part, rules, respelled, prefix))
        if not part:
            logger.warning(
                "%s.txt is empty with split_ratio %s and %d samples; set another split_ratio if it should not be",
                *(name, spec.split_ratio, len(samples)),
            )
    shares = ", ".join(f"{name} {len(part)}" for name, part in parts.items())
    message = f"{counted(len(samples), 'sample')} ({shares}) in {folder}"
    message += f", {len(missing)} left out because of a missing file"
    return Outcome(message, artifacts={"annotations": folder})


def _listed(tree: Tree, root: str) -> str:
    return f"listing {root}: {tree.files} files so far"


def _lefts(spec: Any, root: str, files: Collection[str]) -> tuple[Tree, list[str]]:
    """The listings below data_root, and the left images there, sorted.

    If no path contains all entries of image_dir_pattern, those that data_root itself contains are ignored, unless they
    are to be replaced: TAO's examples have such entries.
    """
    above = [entry for entry in _unreplaced(spec) if entry in f"{root}/"]
    for left_out in ([], above) if above else ([],):
        tree, patterns = Tree(root, files), [entry for entry in spec.image_dir_pattern if entry not in left_out]
        with heartbeat(partial(_listed, tree, root)):
            lefts = sorted(tree.find(patterns, _suffix(spec.image_extension)))
        if lefts:
            if left_out:
                logger.info("image_dir_pattern: ignoring %s, which is part of data_root itself", ", ".join(left_out))
            if tree.left_out:
                logger.info("ignoring files that are no data (._*, __MACOSX, Thumbs.db, ...): %d", tree.left_out)
            return tree, lefts
    raise DataError(
        f"data_root {root}: no left image found; none of {counted(tree.files, 'file')} has image_dir_pattern"
        f" {list(spec.image_dir_pattern)} in its path below data_root and ends in image_extension"
        f" '{spec.image_extension}'{_absent(spec, root, files)}; correct these keys"
    )


def _absent(spec: Any, root: str, files: Collection[str]) -> str:
    """Which of several entries of image_dir_pattern no path has."""
    entries, suffix = spec.image_dir_pattern, _suffix(spec.image_extension)
    absent = [entry for entry in entries if len(entries) > 1 and not any(Tree(root, files).find([entry], suffix))]
    return f" (no such path has {', '.join(map(repr, absent))})" if absent else ""


def _unreplaced(spec: Any) -> list[str]:
    """The entries of image_dir_pattern that are equal in every other list."""
    others = (spec.right_dir_pattern, spec.depth_dir_pattern, spec.nocc_dir_pattern)
    targets = [targets for targets in others if targets]
    return [
        entry
        for index, entry in enumerate(spec.image_dir_pattern)
        if all(target[index : index + 1] in ([], [entry]) for target in targets)
    ]


def _suffix(extension: str) -> str:
    """An extension as a lower-case suffix: 'png' means '.png'; '_10.png' stays; one character or none is any suffix."""
    return dotted(extension).lower() if len(extension) > 1 else ""


def _rules(spec: Any) -> list[Rule]:
    """The rules that derive right image, disparity and mask from the left path, as far as the spec sets them."""
    if not spec.right_dir_pattern:
        raise SpecError("right_dir_pattern is empty; set it, because a stereo list needs right images")
    if spec.nocc_dir_pattern and not spec.depth_dir_pattern:
        raise SpecError("nocc_dir_pattern: a mask needs a disparity; set depth_dir_pattern too")
    sources, suffix = spec.image_dir_pattern, _suffix(spec.image_extension)
    columns = (
        ("right_dir_pattern", spec.right_dir_pattern, ""),
        ("depth_dir_pattern", spec.depth_dir_pattern, spec.depth_extension),
        ("nocc_dir_pattern", spec.nocc_dir_pattern, spec.nocc_extension),
    )
    rules = []
    for key, targets, extension in columns:
        if not targets:
            continue
        pairs = dict(zip(sources, targets, strict=False))
        same_suffix = not extension or _suffix(extension) == suffix
        if same_suffix and all(source == target for source, target in pairs.items()):
            raise SpecError(
                f"{key}: {list(targets)} replaces no entry of image_dir_pattern {list(sources)}, so it names the left "
                "images again; change at least one entry"
            )
        rules.append(replacing(pairs, suffix, extension))
    return rules


def _check(
    tree: Tree, lefts: list[str], rules: list[Rule], any_suffix: list[bool]
) -> tuple[list[str], dict[tuple[str, int], str], dict[str, str]]:
    """Look up every derived file in the listings.

    Args:
        any_suffix: for each column, whether the only file with that name is accepted with any suffix.

    Returns:
        the left paths of complete samples; (left, column) -> path if the tree has another suffix;
        left -> missing path of the others.
    """
    samples: list[str] = []
    respelled: dict[tuple[str, int], str] = {}
    missing: dict[str, str] = {}
    with bars() as progress:
        task = progress.add_task("looking up the files of each pair", total=len(lefts))
        for chunk in _chunks(lefts):
            for column, rule in enumerate(rules):
                for left, path in _without_exact_match(tree, chunk, rule(chunk)):
                    spelling = tree.respelling(path, any_suffix[column])
                    if spelling is None:
                        missing.setdefault(left, path)
                    else:
                        respelled[left, column] = spelling
            samples += [left for left in chunk if left not in missing]
            progress.advance(task, len(chunk))
    return samples, respelled, missing


def _without_exact_match(tree: Tree, lefts: list[str], paths: list[str]) -> Iterator[tuple[str, str]]:
    """The pairs of left and derived path for which the tree has no file with exactly that name."""
    folder, names = "/", tree.names("/")
    for left, path in zip(lefts, paths, strict=True):
        if path.startswith(folder) and path[len(folder) :] in names:
            continue
        folder = path[: path.rfind("/") + 1]
        names = tree.names(folder)
        if path[len(folder) :] not in names:
            yield left, path


def _chunks(paths: list[str]) -> Iterator[list[str]]:
    for start in range(0, len(paths), CHUNK):
        yield paths[start : start + CHUNK]


def _report_missing(spec: Any, folder: Path, root: str, missing: dict[str, str], any_sample: bool) -> None:
    (folder / "missing.txt").unlink(missing_ok=True)
    if not missing:
        return
    examples = "\n".join(f"  {path[1:]} (for {left[1:]})" for left, path in islice(missing.items(), 5))
    text = f"data_root {root}: {counted(len(missing), 'left image')} without a derived file, for example\n{examples}"
    if spec.strict or not any_sample:
        mend = (
            f"check right_dir_pattern {list(spec.right_dir_pattern)}, depth_dir_pattern {list(spec.depth_dir_pattern)},"
            f" depth_extension '{spec.depth_extension}', nocc_dir_pattern {list(spec.nocc_dir_pattern)},"
            f" nocc_extension '{spec.nocc_extension}'"
        )
        raise DataError(f"{text}\n{mend}" + (" or set strict=false to leave them out" if any_sample else ""))
    write_annotations(folder / "missing.txt", ((root + path, root + left) for left, path in missing.items()))
    logger.warning("%s\nthey are left out; %s lists all of them", text, folder / "missing.txt")


def _rows(
    lefts: list[str], rules: list[Rule], respelled: dict[tuple[str, int], str], prefix: str | None
) -> Iterator[tuple[str, ...]]:
    """The columns of each sample; relative to data_root when `prefix` is None."""
    for chunk in _chunks(lefts):
        columns = [chunk, *(rule(chunk) for rule in rules)]
        if respelled:
            for column, paths in enumerate(columns[1:]):
                paths[:] = [respelled.get((left, column), path) for left, path in zip(chunk, paths, strict=True)]
        if prefix is None:
            columns = [[path[1:] for path in paths] for paths in columns]
        else:
            columns = [[prefix + path for path in paths] for paths in columns]
        yield from zip(*columns, strict=True)


def split(samples: list[str], ratio: float, seed: int, by_scene: bool) -> dict[str, list[str]]:
    """Divide sorted samples into {"test": ...} (ratio 0 or 1) or {"train": ..., "val": ...}; each part is sorted.

    By scene, int(scenes * ratio) scenes go to train, but at least one to each list.

    Raises:
        SpecError: the ratio is outside 0..1.
        DataError: by scene, but there is only one.
    """
    if not 0 <= ratio <= 1:
        raise SpecError(f"split_ratio: {ratio} is not in 0..1")
    if ratio in (0, 1):
        return {"test": samples}
    chooser = random.Random(seed)
    if not by_scene:
        count = int(len(samples) * ratio)
        chosen = bytearray(b"\1" * count + b"\0" * (len(samples) - count))
        chooser.shuffle(chosen)
    else:
        scenes = sorted({_scene(left) for left in samples})
        if len(scenes) < 2:
            raise DataError(
                f"split_by_scene: all {len(samples)} samples are in one scene ('{scenes[0]}'; a scene is the first"
                " folder below data_root); set split_by_scene=false or another data_root"
            )
        count = min(max(int(len(scenes) * ratio), 1), len(scenes) - 1)
        train_scenes = set(chooser.sample(scenes, count))
        chosen = bytearray(_scene(left) in train_scenes for left in samples)
    return {"train": list(compress(samples, chosen)), "val": list(compress(samples, map(operator.not_, chosen)))}


def _scene(left: str) -> str:
    """The first folder below data_root; '' for a file directly below it."""
    folder, _, rest = left[1:].partition("/")
    return folder if rest else ""
