"""Feed stereo pairs from a folder or a video through a network and show frames a second: no ROS; with an engine no
PyTorch is needed either.

    python examples/ros_free_camera.py pairs/  # pairs/left/NAME and pairs/right/NAME
    python examples/ros_free_camera.py side_by_side.mp4 --model model.engine

With images on a GPU, give `predict` torch tensors (B, 3, H, W) that lie there: neither they nor the disparity are
copied through the host.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np

from stereo_core import predict
from stereo_core.data.images import read_image

Pair = tuple[np.ndarray, np.ndarray]
"""Rectified left and right image, uint8 RGB (H, W, 3)."""


def pairs_of_folder(folder: Path) -> Iterator[Pair]:
    names = sorted((folder / "left").glob("*"))
    if not names:
        raise SystemExit(f"{folder}: has no images in left/; their right ones belong in right/, under the same names")
    for left in names:
        yield read_image(left), read_image(folder / "right" / left.name)


def pairs_of_video(path: Path) -> Iterator[Pair]:
    """The left half of a frame is the left image, the right half the right one."""
    video = cv2.VideoCapture(str(path))
    if not video.isOpened():
        raise SystemExit(f"{path}: neither a folder nor a video that OpenCV can read")
    while (frame := video.read()[1]) is not None:
        half = frame.shape[1] // 2
        yield frame[:, :half, ::-1], frame[:, half : 2 * half, ::-1]


def main() -> None:
    parser = argparse.ArgumentParser(description="Frames a second of a network on the pairs of a folder or a video.")
    parser.add_argument("source", type=Path, help="a folder with left/ and right/, or a side-by-side video")
    parser.add_argument("--model", default="starter", help="starter, a checkpoint, or an engine with its side-car")
    options = parser.parse_args()
    pairs = pairs_of_folder if options.source.is_dir() else pairs_of_video
    end = time.perf_counter()
    for number, (left, right) in enumerate(pairs(options.source), start=1):
        disparity = predict(left, right, options.model)  # float32 (H, W), px of the images given
        start, end = end, time.perf_counter()
        rate = f"{1 / (end - start):.2f} frames a second" + (", warm-up included" if number == 1 else "")
        print(f"{number}: {left.shape[1]} x {left.shape[0]}, median {np.median(disparity):.2f} px, {rate}", flush=True)


if __name__ == "__main__":
    main()
