"""Stereo pairs on disk whose every value the tests know, and specs that name them."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from stereo_core.data.codecs import write_disparity_png16
from stereo_core.spec import ExperimentSpec

PLAIN = {
    **dict.fromkeys(("spatial_aug_prob", "hshift_prob", "yjitter_prob", "color_aug_prob", "eraser_aug_prob"), 0.0),
    **dict.fromkeys(("color_aug_brightness", "color_aug_contrast"), 0.0),
    "color_aug_saturation": [1.0, 1.0],
    "color_aug_hue_range": [0.0, 0.0],
}
"""Settings of `augmentation` that leave nothing of it but the crop."""


def make_spec(split: str, sources: list[dict], **section) -> ExperimentSpec:
    tree = {"dataset": {f"{split}_dataset": {"data_sources": sources, "workers": 0, **section}}}
    return ExperimentSpec.model_validate(tree)


def make_pair(folder: Path, name: str, height: int = 40, width: int = 70, seed: int = 0) -> list[str]:
    """Left, right (noise), a KITTI disparity of 1 + column / 16 px with one hole at (2, 3), a mask that hides row 0."""
    rng = np.random.default_rng(seed)
    paths = [folder / side / f"{name}.png" for side in ("left", "right", "disparity", "mask")]
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
    for path in paths[:2]:
        cv2.imwrite(str(path), rng.integers(0, 256, (height, width, 3), dtype=np.uint8))
    disparity = np.tile(1 + np.arange(width) / 16, (height, 1))
    disparity[2, 3] = np.inf
    write_disparity_png16(paths[2], disparity)
    mask = np.full((height, width), 255, np.uint8)
    mask[0] = 128
    cv2.imwrite(str(paths[3]), mask)
    return [str(path) for path in paths]
