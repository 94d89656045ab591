"""Annotation lists -> a torch data set of stereo samples."""

from __future__ import annotations

import contextlib
import logging
import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset, default_collate

from stereo_core.data import shards
from stereo_core.data.annotations import Sample, check_files, read_annotations
from stereo_core.data.augmentation import Pair, augment
from stereo_core.data.codecs import read_disparity
from stereo_core.data.doubts import Doubts, Look, look
from stereo_core.data.images import AUTO, BITS, bits_for, decode, largest_deep, read_mask, read_views
from stereo_core.data.scenes import Scenes, scene_samples
from stereo_core.errors import DataError
from stereo_core.files import UniqueNames, shared, stem, stems, with_hash
from stereo_core.overlap import mapped
from stereo_core.values import size_text

LOG = logging.getLogger(__name__)
SPLITS = ("train", "val", "test", "infer")
LOOKS = 5  # 16-bit pairs of a source whose largest value decides its bits
WHOLE_LOOKS = 3  # pairs of a source that are read whole and doubted before any work, side by side, 0.1 s each
REPLACEMENTS = 10  # pairs tried instead of an unreadable one; if a tenth is unreadable, all fail once in 10**10


class StereoDataset(Dataset[Any]):
    """Stereo pairs with or without ground truth, read from their files one by one.

    An item is a dict of
        left, right: float32 tensor (3, H, W), RGB, 0..255;
        disparity: float32 tensor (1, H, W), px, 0 where not valid;
        valid: bool tensor (1, H, W): measured, finite, above 0 and, if a mask is given, visible to both cameras
            (dataset.max_disparity is not applied here);
        path: the left image; rel: its unique short name without suffix, for outputs; index: its position in the list;
        source: the position of its data source in the spec;
        skipped: 1 if this pair replaces an unreadable one, else 0; unreadable: why that one could not be read.

    Args:
        samples: the list.
        sources: the data source of each sample (attributes dataset_name, disparity_format, disparity_scale,
            image_bits), or the `Scenes` that draw it.
        rels: the short name of each sample.
        augment: `augment(pair, rng=generator)` changes a pair at random; None keeps pairs as they are.
        seed: of that generator; the result depends only on (seed, epoch, index), not on the number of workers
            or ranks.
        skip_unreadable: replace a pair that cannot be read by another one, drawn by the same rule.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        sources: Sequence[Any],
        rels: Sequence[str],
        augment: Callable[..., Pair] | None = None,
        seed: int = 1234,
        skip_unreadable: bool = False,
    ) -> None:
        self.samples, self.sources, self.rels = samples, sources, rels
        self.augment, self.seed, self.skip_unreadable = augment, seed, skip_unreadable
        self.least_bits = [BITS[0]] * len(samples)  # of each sample whose source has image_bits auto
        self.places = [0] * len(samples)  # position of each sample's source in the spec

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, key: int | tuple[int, int]) -> dict[str, Any]:
        """Item `index`, or `(index, epoch)` for another augmentation in every epoch.

        Raises:
            DataError: a file of the sample cannot be used; the message begins with the list's file and line. With
                skip_unreadable: the pairs tried as its replacement cannot be used either.
        """
        index, epoch = key if isinstance(key, tuple) else (key, 0)
        rng = np.random.default_rng((max(self.seed, 0), epoch, index))
        index, pair, unreadable = self._read_or_replace(index, epoch, rng)
        if self.augment is not None:
            pair = self.augment(pair, rng=rng)
        disparity = np.ascontiguousarray(pair.disparity)
        return {
            "left": _image_tensor(pair.left),
            "right": _image_tensor(pair.right),
            "disparity": torch.from_numpy(disparity)[None],
            "valid": torch.from_numpy(disparity > 0)[None],
            "path": self.samples[index].left,
            "rel": self.rels[index],
            "index": index,
            "source": self.places[index],
            "skipped": int(bool(unreadable)),
            "unreadable": unreadable,
        }

    def _read_or_replace(self, index: int, epoch: int, rng: np.random.Generator) -> tuple[int, Pair, str]:
        """The pair, its index, and the error of the requested pair if this one replaces it."""
        try:
            return index, self._read(index, epoch), ""
        except DataError as error:
            if not self.skip_unreadable:
                raise
            first = error
        for other in rng.integers(len(self), size=REPLACEMENTS).tolist():
            try:
                return other, self._read(other, epoch), str(first)
            except DataError:
                continue
        raise DataError(
            f"{first}; {REPLACEMENTS} other pairs, drawn at random, cannot be used either; check the "
            "paths and files of the data source"
        ) from first

    def _read(self, index: int, epoch: int) -> Pair:
        sample, source = self.samples[index], self.sources[index]
        if isinstance(source, Scenes):
            return source.pair(sample.line, epoch)
        try:
            return read_pair(sample, source, self.least_bits[index])
        except DataError as error:
            raise DataError(f"{sample.where}: {error}") from error


def read_pair(sample: Sample, source: Any, least_bits: int = BITS[0]) -> Pair:
    """Read one sample; pixels hidden by its mask have no disparity. Without a disparity file no pixel has one.

    Args:
        least_bits: as `read_views`.

    Raises:
        DataError: a file cannot be used, or the sizes differ.
    """
    left, right = read_views(sample.left, sample.right, source.image_bits, least_bits)
    _same_size(sample.left, left, sample.right, right)
    if sample.disparity is None:
        return Pair(left, right, np.zeros(left.shape[:2], np.float32))
    disparity, valid = _decoded(sample.disparity, source)
    _same_size(sample.left, left, sample.disparity, disparity)
    if sample.mask is not None:
        visible = read_mask(sample.mask)
        _same_size(sample.left, left, sample.mask, visible)
        valid = valid & visible
    return Pair(left, right, np.where(valid, disparity, np.float32(0)))


def _decoded(path: str, source: Any) -> tuple[np.ndarray, np.ndarray]:
    """Disparity (H, W) in px, and where it was measured."""
    return read_disparity(path, source.disparity_format or "auto", source.disparity_scale, source.dataset_name)


def _same_size(left_path: str, left: np.ndarray, path: str, array: np.ndarray) -> None:
    if array.shape[:2] != left.shape[:2]:
        raise DataError(
            f"{path} is {size_text(array.shape[:2])} px, but the left image {left_path} is "
            f"{size_text(left.shape[:2])} px; correct the line, which combines files of different pairs"
        )


def _image_tensor(image: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(image.transpose(2, 0, 1).astype(np.float32))


def build_dataset(spec: Any, split: str) -> StereoDataset:
    """The data set of `dataset.<split>_dataset` (train, val, test or infer) over all its data sources.

    train gets augmented crops; with `dataset.on_error: skip` an unreadable pair is replaced by another. The other
    splits get whole images at native resolution, and an unreadable one is an error. A source named Synthetic draws its
    pairs; each split gets different ones.

    Raises:
        DataError: no data source, an unusable list, a missing file, or (train and val) a line without ground truth or a
            source without a pixel of ground truth that counts.
    """
    section = getattr(spec.dataset, f"{split}_dataset")
    lists, samples, sources, roots = [], [], [], []
    for place, source in enumerate(section.data_sources or []):
        listed = list_pairs(source, place)
        if split == "infer":  # needs no ground truth: a missing or broken disparity file is no reason to stop
            listed = [replace(sample, disparity=None, mask=None) for sample in listed]
        lists.append((source, listed))
        samples += listed
        seed = max(spec.train.seed, 0), SPLITS.index(split), place
        sources += [Scenes(source, seed) if source.drawn else source] * len(listed)
        roots += [str(source.data_root or "")] * len(listed)
    if not samples:
        raise DataError(
            f"dataset.{split}_dataset.data_sources: the list is empty; add a source with data_file and dataset_name"
        )
    if split in ("train", "val"):
        need_ground_truth(samples, split)
    check_files([sample for sample, source in zip(samples, sources, strict=True) if not isinstance(source, Scenes)])
    bits: list[int] = []
    places: list[int] = []
    for place, (source, listed) in enumerate(lists):
        least, doubt = image_bits(listed, source)
        bits += [least] * len(listed)
        places += [place] * len(listed)
        for text in [*filter(None, [doubt]), *doubts_of(listed, source, least)]:
            LOG.warning("dataset.%s_dataset.data_sources[%d]: %s", split, place, text)
    if split != "infer":
        _need_pixels(split, lists, spec.dataset.max_disparity)
    dataset = StereoDataset(samples, sources, relative_names(samples, roots), seed=spec.train.seed)
    dataset.least_bits, dataset.places = bits, places
    if split == "train":
        dataset.augment = partial(augment, settings=section.augmentation, max_disparity=spec.dataset.max_disparity)
        dataset.skip_unreadable = spec.dataset.on_error == "skip"
    return dataset


def image_bits(samples: Sequence[Sample], source: Any) -> tuple[int, str]:
    """How many bits the values in a source's 16-bit images use, judged by some of its pairs, and a warning about it.

    Returns:
        bits: BITS[0] if the images have 8 bits or `image_bits` is set.
        doubt: a sentence if auto chooses fewer than 16; else "".
    """
    if source.drawn or source.image_bits != AUTO:
        return BITS[0], ""
    largest, where = 0, ""
    for sample in samples[:: math.ceil(len(samples) / LOOKS) or 1]:
        for path in (sample.left, sample.right):
            largest, where = max((largest, where), (_largest_deep(path), path))
        if not largest:
            break  # 8-bit images need no further checks
    bits = bits_for(largest)
    if not largest or bits == BITS[-1]:
        return bits, ""
    return bits, (
        f"the largest value in its 16-bit images is {largest} ({where}), so they are read as {bits}-bit values; "
        f"if that is right set image_bits={bits}, otherwise set it to the camera's bit depth"
    )


def _largest_deep(path: str) -> int:
    try:
        return largest_deep(decode(path))
    except DataError:
        return 0  # the later full read reports what is wrong


def doubts_of(samples: Sequence[Sample], source: Any, least_bits: int = BITS[0]) -> Iterator[str]:
    """Warnings about a source, a sentence each, from its first, middle and last pair.

    It ignores pairs that cannot be read: the later full read reports or skips them.
    """
    chosen = [] if source.drawn else spread(samples, WHOLE_LOOKS)
    looks = mapped(partial(_looked_at, source=source, least_bits=least_bits), chosen)
    doubts = Doubts([*filter(None, looks)])
    yield from doubts.of_views().values()
    yield from doubts.of_ground_truth()


def _looked_at(sample: Sample, source: Any, least_bits: int) -> Look | None:
    try:
        return look(sample.where, read_pair(sample, source, least_bits))
    except DataError:
        return None


def spread(samples: Sequence[Sample], most: int) -> list[Sample]:
    """At most `most` samples, evenly spread from the first to the last."""
    places = np.linspace(0, len(samples) - 1, min(most, len(samples)))
    return [samples[place] for place in places.astype(int)]


def list_pairs(source: Any, place: int = 0) -> list[Sample]:
    """The pairs of a data source: the lines of its list, or one epoch of its scenes."""
    if source.drawn:
        return scene_samples(source, place)
    return read_annotations(source.data_file, source.data_root or "")


def need_ground_truth(samples: Sequence[Sample], split: str) -> None:
    """Raise DataError if a pair has none."""
    for sample in samples:
        if sample.disparity is None:
            raise DataError(
                f"{sample.where}: the line has 2 columns, but dataset.{split}_dataset needs ground truth:"
                " write 'left right disparity [mask]'"
            )


def name_of(split: str, place: int, source: Any) -> str:
    """How messages name a data source: by its key and its list."""
    file = f" ({source.data_file})" if source.data_file else ""
    return f"dataset.{split}_dataset.data_sources[{place}]{file}"


def _need_pixels(split: str, lists: Sequence[tuple[Any, list[Sample]]], max_disparity: float) -> None:
    """Raise DataError before any work if a source has no pixel of ground truth that counts; of test, if all have none.

    evaluate warns of a single such source.
    """
    names = [name_of(split, place, source) for place, (source, _) in enumerate(lists)]
    seen = {name: _without_pixels(*one, max_disparity) for name, one in zip(names, lists, strict=True)}
    missing = [f"{name}: none of its pairs ({pairs})" for name, pairs in seen.items() if pairs]
    if missing and (split != "test" or len(missing) == len(lists)):
        raise DataError(
            f"{missing[0]} has a valid pixel of ground truth (visible in the mask, 0 < disparity < "
            "dataset.max_disparity); check dataset_name, disparity_format, disparity_scale, the masks and "
            "dataset.max_disparity, or remove the source"
        )


def _without_pixels(source: Any, samples: Sequence[Sample], max_disparity: float) -> int:
    """The pairs of a source, if none of them has a pixel of ground truth that counts; else 0.

    It reads pairs until one has such a pixel, usually the first. It ignores files that cannot be read: the later full
    read reports or skips them.
    """
    seen = 0
    for sample in () if source.drawn else samples:
        if sample.disparity is None:  # refused elsewhere, with its line
            continue
        with contextlib.suppress(DataError):
            disparity, valid = _decoded(sample.disparity, source)
            if sample.mask is not None:
                visible = read_mask(sample.mask)
                _same_size(sample.disparity, disparity, sample.mask, visible)
                valid = valid & visible
            if (valid & (disparity > 0) & (disparity < max_disparity)).any():
                return 0
            seen += 1
    return seen


def relative_names(samples: Sequence[Sample], roots: Sequence[str]) -> list[str]:
    """A unique name for the outputs of each sample: its left path without suffix and shard, with / between folders.

    The name is relative to data_root, else to the folder of its list, else absolute: it does not depend on the other
    pairs. Only images that share such a name get a longer one: the absolute path, with the suffix (`a_png`, `a_jpg`)
    if nothing else distinguishes them. A left image with several right ones gets a hash of the right one's name
    (`a-1f0c93d2`), and a pair that is listed twice a number (`a-2`): the order of the list changes no pair's files.
    """
    paths = [_from_root(shards.loose(sample.left)) for sample in samples]
    names = [_below(path, root, sample.file) for path, root, sample in zip(paths, roots, samples, strict=True)]
    ambiguous = shared(map(stem, names), paths)
    names = [path[1:] if stem(name) in ambiguous else name for name, path in zip(names, paths, strict=True)]
    names = stems(names, paths)
    if len(set(names)) < len(names):
        names = _with_rights(names, samples, roots)
    return names


def _with_rights(names: list[str], samples: Sequence[Sample], roots: Sequence[str]) -> list[str]:
    paths = [_from_root(shards.loose(sample.right)) for sample in samples]
    rights = [_below(path, root, sample.file) for path, root, sample in zip(paths, roots, samples, strict=True)]
    ambiguous = shared(names, rights)
    names = [with_hash(n, right) if n in ambiguous else n for n, right in zip(names, rights, strict=True)]
    return list(map(UniqueNames(), names))


def _from_root(path: str) -> str:
    """The absolute path without the leading slash; of a URI, from the bucket on."""
    _, scheme, rest = path.partition("://")
    return f"/{rest}" if scheme else os.path.abspath(path)


def _below(path: str, root: str, list_file: str) -> str:
    for folder in ([_from_root(root)] if root else []) + [os.path.dirname(os.path.abspath(list_file))]:
        if path.startswith(f"{folder.rstrip('/')}/"):
            return path[len(folder.rstrip("/")) + 1 :]
    return path[1:]


def collate(items: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A batch of images of any size: the list itself."""
    return items


def group_by_size(items: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Stack the items of equal size: one dict per size, with tensors (B, ...) and lists `path`, `rel`; order is
    kept."""
    groups: dict[tuple[int, ...], list[dict[str, Any]]] = {}
    for item in items:
        groups.setdefault(tuple(item["left"].shape), []).append(item)
    return [default_collate(group) for group in groups.values()]
