"""Run a network on stereo pairs from a folder or a video and print frames per second. It needs no ROS and, with an
engine, no PyTorch.

    python examples/ros_free_camera.py pairs/  # pairs/left/NAME and pairs/right/NAME
    python examples/ros_free_camera.py side_by_side.mp4 --model model.engine

If your images are on a GPU, pass torch tensors (B, 3, H, W) to `predict`: neither they nor the disparity are then
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
from stereo_core.data.images import read_views

Pair = tuple[np.ndarray, np.ndarray]
"""Rectified left and right image, uint8 RGB (H, W, 3)."""


def pairs_of_folder(folder: Path) -> Iterator[Pair]:
    names = sorted((folder / "left").glob("*"))
    if not names:
        raise SystemExit(f"{folder}: there are no images in left/; put the right ones in right/ under the same names")
    for left in names:
        yield read_views(left, folder / "right" / left.name)


def pairs_of_video(path: Path) -> Iterator[Pair]:
    """Split each frame: the left half is the left image, the right half the right one."""
    video = cv2.VideoCapture(str(path))
    if not video.isOpened():
        raise SystemExit(f"{path}: this is neither a folder nor a video that OpenCV can read")
    while (frame := video.read()[1]) is not None:
        half = frame.shape[1] // 2
        yield frame[:, :half, ::-1], frame[:, half : 2 * half, ::-1]


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Measure a network's frames per second on the pairs of a folder or a video."
    )
    parser.add_argument("source", type=Path, help="a folder with left/ and right/, or a side-by-side video")
    parser.add_argument("--model", default="starter", help="starter, a checkpoint, or an engine with its side-car")
    options = parser.parse_args()
    pairs = pairs_of_folder if options.source.is_dir() else pairs_of_video
    end = time.perf_counter()
    for number, (left, right) in enumerate(pairs(options.source), start=1):
        disparity = predict(left, right, options.model)  # float32 (H, W), in px of the images
        start, end = end, time.perf_counter()
        rate = f"{1 / (end - start):.2f} frames per second" + (", including warm-up" if number == 1 else "")
        print(f"{number}: {left.shape[1]} x {left.shape[0]}, median {np.median(disparity):.2f} px, {rate}", flush=True)


if __name__ == "__main__":
    main()
