"""Annotation lists -> a torch data set of stereo samples."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import PurePath
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset, default_collate

from stereo_core.data.annotations import Sample, check_files, read_annotations
from stereo_core.data.augmentation import random_crop
from stereo_core.data.codecs import read_disparity
from stereo_core.data.images import read_image, read_mask
from stereo_core.errors import DataError

DATASETS = ("FSD", "IsaacRealDataset", "Crestereo", "Middlebury", "Eth3d", "Kitti", "GenericDataset")


class StereoDataset(Dataset):
    """Stereo pairs with or without ground truth, read from their files one by one.

    An item is a dict of
        left, right: float32 tensor (3, H, W), RGB, 0..255;
        disparity: float32 tensor (1, H, W), px, 0 where not valid;
        valid: bool tensor (1, H, W): measured, finite, above 0 and, where a mask is given, visible to both cameras
            (dataset.max_disparity is not applied here);
        has_gt: whether the line names a disparity file;
        path: the left image; rel: its unique short name without suffix, for outputs; index: its place in the list.

    Args:
        samples: the list.
        sources: the data source of each sample (attributes dataset_name, disparity_format, disparity_scale).
        rels: the short name of each sample.
        crop_size: (height, width) of random training crops; None keeps images whole.
        seed: of the crops; a crop depends on (seed, epoch, index) alone, whatever the number of workers or ranks.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        sources: Sequence[Any],
        rels: Sequence[str],
        crop_size: tuple[int, int] | None = None,
        seed: int = 1234,
    ) -> None:
        self.samples, self.sources, self.rels = samples, sources, rels
        self.crop_size, self.seed = crop_size, seed

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, key: int | tuple[int, int]) -> dict[str, Any]:
        """Item `index`, or `(index, epoch)` for another crop in every epoch.

        Raises:
            DataError: a file of the sample can not be used; the message begins with the list's file and line.
        """
        index, epoch = key if isinstance(key, tuple) else (key, 0)
        sample = self.samples[index]
        try:
            arrays = read_pair(sample, self.sources[index])
            if self.crop_size is not None:
                rng = np.random.default_rng((max(self.seed, 0), epoch, index))
                arrays = random_crop(*arrays, size=self.crop_size, rng=rng)
        except DataError as error:
            raise DataError(f"{sample.where}: {error}") from error
        left, right, disparity, valid = arrays
        return {
            "left": _image_tensor(left),
            "right": _image_tensor(right),
            "disparity": torch.from_numpy(disparity)[None],
            "valid": torch.from_numpy(valid)[None],
            "has_gt": sample.disparity is not None,
            "path": sample.left,
            "rel": self.rels[index],
            "index": index,
        }


def read_pair(sample: Sample, source: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Read left and right (uint8 (H, W, 3)), disparity (float32 (H, W), px) and valid (bool (H, W)) of one sample.

    Raises:
        DataError: a file can not be used, or the sizes differ.
    """
    left, right = read_image(sample.left), read_image(sample.right)
    _same_size(sample.left, left, sample.right, right)
    if sample.disparity is None:
        return left, right, np.zeros(left.shape[:2], np.float32), np.zeros(left.shape[:2], bool)
    disparity, valid = read_disparity(
        sample.disparity, source.disparity_format or "auto", source.disparity_scale, source.dataset_name
    )
    _same_size(sample.left, left, sample.disparity, disparity)
    if sample.mask is not None:
        visible = read_mask(sample.mask)
        _same_size(sample.left, left, sample.mask, visible)
        valid = valid & visible
    return left, right, np.where(valid, disparity, np.float32(0)), valid


def _same_size(left_path: str, left: np.ndarray, path: str, array: np.ndarray) -> None:
    if array.shape[:2] != left.shape[:2]:
        raise DataError(
            f"{path} is {array.shape[1]}x{array.shape[0]} px, but the left image {left_path} is"
            f" {left.shape[1]}x{left.shape[0]} px; the line pairs files that do not belong together"
        )


def _image_tensor(image: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(image.transpose(2, 0, 1).astype(np.float32))


def build_dataset(spec: Any, split: str) -> StereoDataset:
    """The data set of `dataset.<split>_dataset` (train, val, test or infer) over all its data sources.

    Random crops for train; whole images at native resolution otherwise.

    Raises:
        DataError: no data source, an unusable list, a missing file, or (train and val) a line without ground truth.
    """
    section = getattr(spec.dataset, f"{split}_dataset")
    samples, sources, roots = [], [], []
    for source in section.data_sources or []:
        listed = read_annotations(source.data_file, source.data_root or "")
        samples += listed
        sources += [source] * len(listed)
        roots += [str(source.data_root or "")] * len(listed)
    if not samples:
        raise DataError(f"dataset.{split}_dataset.data_sources: no data source; give data_file and dataset_name")
    if split in ("train", "val"):
        _need_ground_truth(samples, split)
    check_files(samples)
    crop_size = tuple(section.augmentation.crop_size) if split == "train" else None
    return StereoDataset(samples, sources, relative_names(samples, roots), crop_size, spec.train.seed)


def _need_ground_truth(samples: Sequence[Sample], split: str) -> None:
    for sample in samples:
        if sample.disparity is None:
            raise DataError(
                f"{sample.where}: 2 columns, but dataset.{split}_dataset needs ground truth:"
                " 'left right disparity [mask]'"
            )


def relative_names(samples: Sequence[Sample], roots: Sequence[str]) -> list[str]:
    """A unique name for the outputs of each sample: its left path without suffix, with / between folders.

    Below its data_root where it has one; if that leaves a name outside or two images with one name, all are named below
    their deepest common folder; files that differ in nothing but the suffix keep it (`a_png`, `a_jpg`).
    """
    paths = [os.path.abspath(sample.left) for sample in samples]
    common = os.path.commonpath([os.path.dirname(path) for path in paths])
    names = [os.path.relpath(path, root or common) for path, root in zip(paths, roots, strict=True)]
    if any(name.startswith("..") for name in names) or not _unique(names, paths):
        names = [os.path.relpath(path, common) for path in paths]
    stems = [PurePath(name).with_suffix("").as_posix() for name in names]
    if _unique(stems, paths):
        return stems
    return [f"{stem}_{PurePath(name).suffix[1:]}" for stem, name in zip(stems, names, strict=True)]


def _unique(names: Sequence[str], paths: Sequence[str]) -> bool:
    """Whether no two different files share a name (one file listed twice may)."""
    return max(Counter(name for name, _ in set(zip(names, paths, strict=True))).values()) == 1


def collate(items: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A batch of images of any sizes: the list itself."""
    return items


def group_by_size(items: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Stack the items of equal size: one dict a size, with tensors (B, ...) and lists `path`, `rel`; order is kept."""
    groups: dict[tuple[int, ...], list[dict[str, Any]]] = {}
    for item in items:
        groups.setdefault(tuple(item["left"].shape), []).append(item)
    return [default_collate(group) for group in groups.values()]
